"""Packages that this process has imported, against those on disk: a kernel that runs on after `pip install`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType

STACK = {
    "torch": "torch",
    "transformers": "transformers",
    "peft": "peft",
    "bitsandbytes": "bitsandbytes",
    "accelerate": "accelerate",
    "trl": "trl",
    "datasets": "datasets",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "huggingface_hub": "huggingface-hub",
    "unsloth": "unsloth",
    "triton": "triton",
    "xformers": "xformers",
    "flash_attn": "flash-attn",
    "deepspeed": "deepspeed",
    "numpy": "numpy",
    "PIL": "pillow",
    "pyarrow": "pyarrow",
}
"""The modules that are looked at, with their distributions."""


@dataclass(frozen=True, slots=True)
class Stale:
    """A package that was imported before another version of it was installed. `folder` is where it lies."""

    name: str
    loaded: str
    on_disk: str
    folder: str


def stale_packages(modules: Iterable[str] = STACK) -> tuple[Stale, ...]:
    """The imported packages of which another version lies on disk by now, in the same place.

    Nothing is imported. Not told: a package imported from elsewhere than its metadata (a folder that shadows it), and an
    editable one, whose metadata keep the version of the day on which it was installed.
    """
    found = []
    for module in modules:
        loaded = sys.modules.get(module)
        stale = None if loaded is None else _stale(loaded, STACK.get(module, module))
        if stale is not None:
            found.append(stale)
    return tuple(found)


def _stale(module: ModuleType, distribution: str) -> Stale | None:
    import importlib
    from importlib import metadata

    version, file = getattr(module, "__version__", None), getattr(module, "__file__", None)
    if not isinstance(version, str) or not isinstance(file, str):
        return None
    importlib.invalidate_caches()
    try:
        installed = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return None
    folder = os.path.dirname(os.path.realpath(file))
    home = os.path.realpath(str(installed.locate_file("")))
    on_disk: str | None = installed.version
    if os.path.dirname(folder) != home or not on_disk or _is_editable(installed) or _same(version, on_disk):
        return None
    return Stale(distribution, str(version), on_disk, folder)


def _is_editable(installed: object) -> bool:
    read = getattr(installed, "read_text", None)
    return '"editable": true' in ((read("direct_url.json") if read else None) or "")


def _same(one: str, other: str) -> bool:
    """Whether two versions are one; `2.13.0+cpu` is `2.13.0` where only one of them names its build."""
    from packaging.version import InvalidVersion, Version

    try:
        a, b = Version(one), Version(other)
    except InvalidVersion:
        return one == other
    return a.public == b.public and (a.local is None or b.local is None or a.local == b.local)


def restart_note(stale: Iterable[Stale]) -> str:
    """What to tell the person; "" where nothing is stale."""
    names = [f"{s.name} {s.loaded} (on disk: {s.on_disk})" for s in stale]
    if not names:
        return ""
    return f"restart the kernel: it still holds {', '.join(names)}, installed anew since it was imported"
