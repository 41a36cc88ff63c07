"""Trying it for real: programs that import, allocate and compute, each in a process of its own that may crash or hang."""
