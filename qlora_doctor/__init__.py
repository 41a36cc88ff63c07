"""Checks a 4-bit fine-tuning run before it starts: environment, model, arguments, data and GPU, and repairs what it can.

Importing this package imports nothing but itself: no torch, no transformers, no click.
"""

__version__ = "0.1.0"
