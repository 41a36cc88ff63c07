"""What a training run left on disk: an adapter or a checkpoint. Nothing is unpickled; pickles are measured, not read.

Of the adapter's weights only as much is read as shows whether they are finite and not all zero: bounded, without torch.
"""

from __future__ import annotations

import math
import os
import struct
import sys
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

from qlora_doctor.facts import SavedRun, Tensor
from qlora_doctor.gather.model_files import read_model
from qlora_doctor.gather.safetensors import LONGEST_HEADER, read_header, strict_json

WEIGHTS = "adapter_model.safetensors"
MOST_OF_A_TENSOR = 2**20
MOST_OF_ALL = 48 * 2**20
LARGEST_JSON = 8 * 2**20
STATE_KEYS = ("global_step", "max_steps", "epoch", "num_train_epochs", "train_batch_size", "save_steps")


def read_saved_runs(names: Iterable[str]) -> tuple[SavedRun, ...]:
    """The facts of each folder, in order and each once."""
    return tuple(read_saved_run(name) for name in dict.fromkeys(names) if os.path.isdir(name))


def read_saved_run(name: str) -> SavedRun:
    """The facts of one folder. Never raises: what cannot be read is a file with a fault, or is not there."""
    model = read_model(name)
    sound = {f.name for f in model.files if not f.fault}
    config = model.adapter_config
    tensors: dict[str, Tensor] = {}
    bad: tuple[str, ...] = ()
    zero: tuple[str, ...] = ()
    if WEIGHTS in sound:
        tensors, bad, zero = _weights(os.path.join(name, WEIGHTS))
    state = _json(name, "trainer_state.json", sound)
    above = os.path.dirname(os.path.abspath(name))
    return SavedRun(
        name,
        files=model.files,
        folders=_folders(name),
        adapter_config=config,
        tensors=tensors,
        not_finite=bad,
        zero=zero,
        state=None if state is None else {key: state[key] for key in STATE_KEYS if key in state},
        run=_json(name, "run.json", sound) or (_json(above, "run.json", {"run.json"}) if state is not None else None),
        base=_base(name, config),
    )


def _base(folder: str, config: Mapping[str, Any] | None) -> str:
    base = (config or {}).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        return ""
    local = base.startswith(("/", ".", "~")) or "\\" in base or (len(base) > 1 and base[1] == ":")
    places = (os.path.expanduser(base), os.path.join(folder, base))
    if any(os.path.isdir(place) for place in places):
        return "folder"
    return "missing" if local or base.count("/") > 1 else "name"


def _folders(name: str) -> tuple[str, ...]:
    try:
        return tuple(sorted(entry.name for entry in os.scandir(name) if entry.is_dir())[:100])
    except OSError:
        return ()


def _json(folder: str, name: str, sound: Iterable[str]) -> dict[str, Any] | None:
    """A JSON object of a folder; None where it is not there, too large or no JSON (then the file has a fault or is judged so)."""
    path = os.path.join(folder, name)
    if name not in sound or not os.path.isfile(path):
        return None
    try:
        if os.path.getsize(path) > LARGEST_JSON:
            return None
        with open(path, "rb") as file:
            data = strict_json(file.read(LARGEST_JSON))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _weights(path: str) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """The tensors, and the names of those with a value that is not finite, and of those in which only zeros were read."""
    bad, zero, left = [], [], MOST_OF_ALL
    try:
        with open(path, "rb") as file:
            stored, tensors = read_header(file, WEIGHTS, os.path.getsize(path))
            if stored.fault:
                return {}, (), ()
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            header = strict_json(file.read(min(length, LONGEST_HEADER)))
            for name in tensors:
                start, end = header[name]["data_offsets"]
                size = min(end - start, MOST_OF_A_TENSOR, left) // 4 * 4
                if size <= 0:
                    continue
                left -= size
                file.seek(8 + length + start)
                raw = file.read(size)
                if raw.count(0) == len(raw):
                    zero.append(name)
                elif not _finite(raw, tensors[name].dtype):
                    bad.append(name)
    except (OSError, ValueError, KeyError, TypeError):
        return {}, (), ()
    return tensors, tuple(bad), tuple(zero)


def _finite(raw: bytes, dtype: str) -> bool:
    """Whether all numbers are finite; True for a dtype that is not read. A sum is NaN or infinite where one of them is."""
    if dtype == "F16":
        return math.isfinite(sum(struct.unpack(f"<{len(raw) // 2}e", raw)))
    if dtype == "BF16":
        # The upper half of a float32.
        wide = bytearray(2 * len(raw))
        wide[2::4], wide[3::4] = raw[0::2], raw[1::2]
        raw, dtype = bytes(wide), "F32"
    if dtype != "F32":
        return True
    numbers = array("f")
    numbers.frombytes(raw)
    if sys.byteorder == "big":
        numbers.byteswap()
    return math.isfinite(sum(numbers))
