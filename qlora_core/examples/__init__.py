"""Examples that run as they are: `python -m qlora_core.examples.NAME`."""
