"""Imports one module, and says which devices torch sees where the module is torch."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

# `import transformers` itself loads next to nothing; a model brings in what breaks: torchvision, flash_attn, torchao.
FURTHER = {"transformers": ("transformers.models.llama.modeling_llama",)}


def main(arguments: list[str]) -> dict[str, object]:
    """`arguments`: the module."""
    name = arguments[0]
    if importlib.util.find_spec(name) is None:
        return {"outcome": "absent", "detail": "it is not installed"}
    module = importlib.import_module(name)
    for further in FURTHER.get(name, ()):
        if exists(further.rpartition(".")[0]):
            importlib.import_module(further)
    found: dict[str, object] = {"outcome": "ok", "detail": str(getattr(module, "__version__", ""))}
    if name == "torch":
        found["devices"] = devices(module)
    return found


def exists(name: str) -> bool:
    """Whether there is such a package; releases before 4.28 have no llama."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def devices(torch: Any) -> list[str]:
    """The GPUs of one kind that torch sees: NVIDIA's and AMD's, else Intel's, else Apple's."""
    if torch.cuda.is_available():
        return [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    xpu = getattr(torch, "xpu", None)
    if xpu is not None and xpu.is_available():
        return [f"xpu:{n}" for n in range(xpu.device_count())]
    mps = getattr(getattr(torch, "backends", None), "mps", None)
    return ["mps"] if mps is not None and mps.is_available() else []
