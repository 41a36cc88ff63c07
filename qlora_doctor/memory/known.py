"""Models by name: the small configurations that ship with the doctor, a folder, a config.json, the Hub's local cache."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from qlora_doctor.errors import UsageError
from qlora_doctor.memory.shapes import Shape, shape_of

MODELS = Path(__file__).parent / "models"
# What publishers append to the name of a model of the same shape.
_ENDINGS = ("-instruct", "-chat", "-base", "-it", "-v0.1", "-v0.2", "-v0.3", "-hf", "-bnb-4bit", "-unsloth")


@cache
def shipped() -> Mapping[str, str]:
    """File stems of the shipped configurations to the model's full name; read from the files."""
    return {path.stem: _read(path)["model"] for path in sorted(MODELS.glob("*.json"))}


@cache
def shipped_shape(word: str) -> Shape | None:
    """The shape of a model whose configuration ships with the doctor, by its full or last name; None otherwise.

    A tuned model of the same name (`-Instruct`, `-Chat`) has the same shape.
    """
    stem = _stem(word)
    if stem is None:
        return None
    data = _read(MODELS / f"{stem}.json")
    return shape_of(data["config"], data["model"])


def all_shapes() -> Iterator[tuple[str, Shape]]:
    """Every shipped model's name and shape, smallest first."""
    found = [(name, shape_of(_read(MODELS / f"{stem}.json")["config"], name)) for stem, name in shipped().items()]
    return iter(sorted(found, key=lambda pair: pair[1].parameters))


def find_shape(word: str, environ: Mapping[str, str]) -> tuple[str, Shape]:
    """The name and shape of a model: a folder or config.json, a shipped name, or one in the Hub's local cache.

    Raises:
        UsageError: it is none of these, or its config.json cannot be used; says what to give instead.
    """
    path = Path(word).expanduser()
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" or path.is_file():
        return word, shape_of(_read(path), word)
    shape = shipped_shape(word)
    if shape is not None:
        return shipped()[_stem(word) or ""], shape
    cached = _cached(word, environ)
    if cached is not None:
        return word, shape_of(_read(cached), word)
    import difflib

    near = difflib.get_close_matches(word.rpartition("/")[2].lower(), list(shipped()), 3, 0.5)
    hint = f"; near it are {', '.join(shipped()[n] for n in near)}" if near else ""
    raise UsageError(f"the shape of {word!r} is not known here{hint}; give its folder or config.json as --model")


def _stem(word: str) -> str | None:
    low = word.strip("/").rpartition("/")[2].lower()
    if "/" in word and not any(
        n.lower().rpartition("/")[0] == word.lower().rpartition("/")[0] for n in shipped().values()
    ):
        return None
    seen = {low}
    while True:
        for stem in shipped():
            if low == stem or low == stem.removesuffix("-hf") or any(low + e == stem for e in ("-hf", "-instruct")):
                return stem
        shorter = next((low.removesuffix(e) for e in _ENDINGS if low.endswith(e)), low)
        if shorter in seen:
            return None
        seen.add(shorter)
        low = shorter


def _cached(word: str, environ: Mapping[str, str]) -> Path | None:
    home = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    hub = Path(environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
    if word.count("/") != 1 or ".." in word:
        return None
    return next(iter(sorted((hub / f"models--{word.replace('/', '--')}" / "snapshots").glob("*/config.json"))), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{path}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected an object")
    return data
