"""What is run in the interpreter that is judged. Nothing here is imported by the doctor.

Each file defines `main(arguments)`, which returns a dict for `LiveProbe` (at least `outcome`) or raises.
"""
