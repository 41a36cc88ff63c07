"""Reading Python without running it: an evaluator over `ast` that keeps both sides of what it cannot decide.

`values` are what variables hold, `world` is the store with its branches, `evaluate` and `execute` walk expressions
and statements, `invoke` calls functions, `library` knows the names of the stack, `scan` reads what needs no evaluation.
"""
