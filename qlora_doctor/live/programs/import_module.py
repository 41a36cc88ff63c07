"""Imports one module, and says which devices torch sees where the module is torch."""

from __future__ import annotations

import importlib
import importlib.util


def main(arguments: list[str]) -> dict[str, object]:
    """`arguments`: the module."""
    name = arguments[0]
    if importlib.util.find_spec(name) is None:
        return {"outcome": "absent", "detail": "it is not installed"}
    module = importlib.import_module(name)
    found: dict[str, object] = {"outcome": "ok", "detail": str(getattr(module, "__version__", ""))}
    if name == "torch":
        found["devices"] = module.cuda.device_count() if module.cuda.is_available() else 0
    return found
