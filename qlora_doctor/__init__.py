"""Checks a 4-bit fine-tuning run before it starts: environment, model, arguments, data and GPU, and repairs what it can.

Importing this package imports nothing but itself: no torch, no transformers, no click.
"""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`explain_errors`, imported when it is first used."""
    if name == "explain_errors":
        from importlib import import_module

        return import_module("qlora_doctor.logs.explaining").explain_errors
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
