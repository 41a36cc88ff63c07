"""The names and shapes of a checkpoint's tensors, from a few kilobytes of its files. No weight is read, no pickle opened."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_core.errors import ModelProblem

CONFIG_LIMIT = 16 * 2**20
HEADER_LIMIT = 100 * 2**20


def names(folder: Path) -> frozenset[str]:
    """The names of all tensors: from the safetensors headers, else from the index of the pickles; may be empty.

    Raises:
        ModelProblem: a file that an index names is missing, or a safetensors file is not whole.
    """
    found = set(shapes(folder))
    for path in sorted(folder.glob("*.index.json")):
        weight_map = read_json(path).get("weight_map")
        if not isinstance(weight_map, Mapping):
            raise ModelProblem(f"{path} has no weight_map. Download it again")
        lost = sorted({str(f) for f in weight_map.values()} - {p.name for p in folder.iterdir()})
        if lost and not found:
            raise ModelProblem(f"{folder} lacks {len(lost)} of its weight files: {', '.join(lost[:3])}. Download them")
        if lost and path.name.startswith("model.safetensors"):
            raise ModelProblem(f"{folder} lacks {len(lost)} of its weight files: {', '.join(lost[:3])}. Download them")
        if not found:
            found |= {str(name) for name in weight_map}
    return frozenset(found)


def shapes(folder: Path, *, adapter: bool = False) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the safetensors files of a folder, a model's or an adapter's; {} where there are none."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name.startswith("adapter") is adapter:
            found |= _header(path)
    return found


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    whole = os.path.getsize(path)
    with open(path, "rb") as file:
        raw = file.read(8)
        size = struct.unpack("<Q", raw)[0] if len(raw) == 8 else -1
        if not 2 <= size <= min(HEADER_LIMIT, whole):
            what = "a Git LFS pointer" if raw == b"version " else f"no safetensors file (a header of {size} bytes)"
            raise ModelProblem(f"{path} is {what}. Download it again")
        try:
            header = json.loads(file.read(size))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise ModelProblem(f"the header of {path} cannot be read. Download the file again")
    found, end = {}, 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            found[name] = tuple(int(n) for n in entry["shape"])
            end = max(end, int(entry["data_offsets"][1]))
        except (KeyError, TypeError, ValueError, IndexError):
            raise ModelProblem(f"the header of {path} cannot be read. Download the file again") from None
    if 8 + size + end > whole:
        raise ModelProblem(f"{path} is cut short: {whole:,} of {8 + size + end:,} bytes. Download it again")
    return found


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object from a small file of a model folder.

    Raises:
        ModelProblem: it is something else, and what.
    """
    try:
        if path.stat().st_size > CONFIG_LIMIT:
            raise ModelProblem(f"{path} has {path.stat().st_size} bytes, too many for a configuration")
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        start = path.read_bytes()[:64].lstrip()
        what = "an HTML page, so the download was caught by a proxy or login page" if start[:1] == b"<" else str(error)
        what = "a Git LFS pointer, not the file itself" if start.startswith(b"version https://git-lfs") else what
        raise ModelProblem(f"{path} is not JSON: {what}. Download it again") from None
    except OSError as error:
        raise ModelProblem(f"{path} cannot be read: {error.strerror or error}") from None
    if not isinstance(data, Mapping):
        raise ModelProblem(f"{path} holds {type(data).__name__}, not an object. Download it again")
    return data
