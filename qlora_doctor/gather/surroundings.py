"""What lies in a folder that the doctor could look at: scripts, settings, data, adapters, checkpoints, models, logs.

For the first screen, so it must be quick in any folder, a home or a dataset of a million files too: only this folder and
the folders in it are listed, and only so many entries of each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

Kind = Literal["script", "notebook", "settings", "data", "adapter", "checkpoint", "model", "log"]

ENTRIES = 500
FOLDERS = 40
_HEAD = 64 << 10
_WORDS = re.compile(rb"\b(transformers|peft|bitsandbytes|trl|unsloth|accelerate|qlora_core)\b")
# Words of settings for the trainers that are known; a package.json or a compose file has none of them.
_SETTINGS = re.compile(
    rb"\b(model_name_or_path|base_model|load_in_[48]bit|quantization_bit|lora_(?:r|rank|alpha|target)|per_device_train_"
    rb"batch_size|gradient_accumulation_steps|finetuning_type|bf16|qlora)\b"
)
_LOG = re.compile(r"(?:.*\.(?:log|out|err)|nohup\.out|slurm-.*|.*traceback.*\.txt|stderr.*|stdout.*)\Z", re.IGNORECASE)
_SKIPPED = ("node_modules", "site-packages", "__pycache__", "venv", "env", "wandb")
_DATA = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing that was found: its path from the folder, and when it was last changed (seconds since 1970)."""

    path: str
    kind: Kind
    changed: float


def look(folder: str = ".") -> tuple[Thing, ...]:
    """What is in a folder and, for models, adapters and checkpoints, one or two levels below; the newest first.

    A folder that cannot be listed holds nothing.
    """
    found = []
    folders = 0
    for entry in _entries(folder):
        if _is_folder(entry):
            folders += 1
            if folders <= FOLDERS and not entry.name.startswith(".") and entry.name not in _SKIPPED:
                found += list(_in_folder(entry, entry.name))
        else:
            kind = _kind(entry) if _is_file(entry) else None
            if kind is not None:
                found.append(Thing(entry.name, kind, _changed(entry)))
    return tuple(sorted(found, key=lambda t: (-t.changed, t.path)))


def is_log(name: str) -> bool:
    """Whether a file of this name is the output of a run: train.log, nohup.out, slurm-42.out."""
    return bool(_LOG.match(name))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(islice(entries, ENTRIES), key=lambda e: e.name)
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    # A named pipe called train.py would hold the first screen for ever.
    try:
        return entry.is_file()
    except OSError:
        return False


def _changed(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat().st_mtime
    except OSError:
        return 0.0


def _in_folder(entry: os.DirEntry[str], path: str, deep: bool = True) -> Iterator[Thing]:
    inside = _entries(entry.path)
    names = {e.name for e in inside}
    if "adapter_config.json" in names and "trainer_state.json" not in names:
        yield Thing(path, "adapter", _changed(entry))
    elif "trainer_state.json" in names:
        yield Thing(path, "checkpoint", _changed(entry))
    elif "config.json" in names and any(n.endswith((".safetensors", ".bin", ".gguf")) for n in names):
        yield Thing(path, "model", _changed(entry))
    elif deep:
        # `output/checkpoint-500` is where the Trainer puts them.
        for sub in [e for e in inside if _is_folder(e)][:FOLDERS]:
            yield from _in_folder(sub, os.path.join(path, sub.name), deep=False)
        for file in inside:
            if is_log(file.name) and _is_file(file):
                yield Thing(os.path.join(path, file.name), "log", _changed(file))


def _kind(entry: os.DirEntry[str]) -> Kind | None:
    name = entry.name.lower()
    suffix = os.path.splitext(name)[1]
    if suffix in (".py", ".ipynb"):
        if not _mentions(entry.path, _WORDS):
            return None
        return "notebook" if suffix == ".ipynb" else "script"
    if suffix in _DATA:
        return "data"
    if suffix in (".json", ".yaml", ".yml", ".toml"):
        if suffix == ".json" and _starts_with_list(entry.path):
            return "data"
        return "settings" if name != "pyproject.toml" and _mentions(entry.path, _SETTINGS) else None
    return "log" if is_log(name) else None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD)
    except OSError:
        return b""


def _mentions(path: str, words: re.Pattern[bytes]) -> bool:
    return bool(words.search(_read(path)))


def _starts_with_list(path: str) -> bool:
    return _read(path).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["
