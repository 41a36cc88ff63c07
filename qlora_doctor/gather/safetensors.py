"""The header of a safetensors file: the tensors' names, shapes and dtypes, and how long the file should be.

A file of a model repository is untrusted: the header's length, its nesting and the number of its tensors are bounded,
and a name that comes twice is refused. The weights themselves are never read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO, TypeGuard

from qlora_doctor.facts import FileFault, StoredFile, Tensor

# transformers' largest checkpoints (90,000 tensors in 160 files) stay far below each of these.
LONGEST_HEADER = 8 * 2**20
MOST_TENSORS = 100_000
MOST_DIMENSIONS = 16


class Refused(ValueError):
    """What a file is instead of what its name says. `fault` is the word of `StoredFile.fault`."""

    def __init__(self, fault: FileFault, detail: str) -> None:
        super().__init__(detail)
        self.fault: FileFault = fault


def read_header(file: BinaryIO, name: str, size: int) -> tuple[StoredFile, dict[str, Tensor]]:
    """The file, with its fault where it has one, and its tensors. Never raises but OSError."""
    head = file.read(8)
    if len(head) < 8:
        return StoredFile(name, size, "truncated", f"{size} bytes, not even the length of its header"), {}
    length = int.from_bytes(head, "little")
    if not 2 <= length <= 100_000_000:
        return StoredFile(name, size, "damaged", f"its header claims {length} bytes"), {}
    if length > size - 8:
        return StoredFile(name, size, "truncated", f"{size} bytes, and its header alone has {length}", 8 + length), {}
    if length > LONGEST_HEADER:
        return StoredFile(name, size, "unreadable", f"its header has {length} bytes, more than is read"), {}
    try:
        header = strict_json(file.read(length))
        tensors, end = _tensors(header, name)
    except Refused as error:
        return StoredFile(name, size, error.fault, str(error)), {}
    whole = 8 + length + end
    fault: FileFault = "truncated" if size < whole else "too long" if size > whole else ""
    detail = f"{size} bytes instead of {whole}" if fault else ""
    return StoredFile(name, size, fault, detail, whole), tensors


def _tensors(header: Any, name: str) -> tuple[dict[str, Tensor], int]:
    if not isinstance(header, Mapping):
        raise Refused("damaged", "its header is no JSON object")
    if len(header) > MOST_TENSORS:
        raise Refused("unreadable", f"it holds {len(header)} tensors, more than are read")
    tensors: dict[str, Tensor] = {}
    end = 0
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, Mapping) else None
        shape = entry.get("shape") if isinstance(entry, Mapping) else None
        dtype = entry.get("dtype") if isinstance(entry, Mapping) else None
        if not (_numbers(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1] and isinstance(dtype, str)):
            raise Refused("damaged", f"its header describes no tensor at {key[:60]!r}")
        if not (_numbers(shape) and len(shape) <= MOST_DIMENSIONS):
            raise Refused("damaged", f"its header gives {key[:60]!r} no shape")
        tensors[key] = Tensor(dtype[:16], tuple(shape), name)
        end = max(end, offsets[1])
    return tensors, end


def _numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def strict_json(raw: bytes) -> Any:
    """JSON that is UTF-8, names nothing twice and is not nested beyond reason.

    Raises:
        Refused: it is not.
    """
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError:
        raise Refused("damaged", "it is not UTF-8") from None
    except RecursionError:
        raise Refused("damaged", "it is nested too deeply") from None
    except Refused:
        raise
    except ValueError as error:
        raise Refused("damaged", f"it is no JSON: {error}"[:120]) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise Refused("damaged", f"it names {twice[:60]!r} twice")
    return found
