"""The losses of a run from the files that it left: train_log.jsonl of qlora-core, trainer_state.json of transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LOG, STATE = "train_log.jsonl", "trainer_state.json"
MOST = 64 * 2**20  # bytes that are read of one file


@dataclass(frozen=True, slots=True)
class Losses:
    """Points of (step, loss): of training, and of the held-out rows."""

    path: str
    train: tuple[tuple[float, float], ...]
    held_out: tuple[tuple[float, float], ...]


def losses_in(folder: str) -> Losses | None:
    """What the run in `folder` logged; None where it left no log that can be read. Never raises."""
    log = os.path.join(folder, LOG)
    if os.path.isfile(log):
        return _losses(log, _lines(log))
    state = os.path.join(folder, STATE)
    states = [state] if os.path.isfile(state) else [os.path.join(path, STATE) for path in _checkpoints(folder)]
    newest = next((path for path in states if os.path.isfile(path)), None)
    return _losses(newest, _history(newest)) if newest else None


def _checkpoints(folder: str) -> list[str]:
    """The `checkpoint-N` folders, the latest first."""
    try:
        names = [n for n in os.listdir(folder) if n.startswith("checkpoint-") and n[11:].isdigit()]
    except OSError:
        return []
    return [os.path.join(folder, name) for name in sorted(names, key=lambda n: -int(n[11:]))]


def _lines(path: str) -> Iterator[Any]:
    for line in _read(path).splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            # The last line of a run that was killed may be half there.
            continue


def _history(path: str) -> list[Any]:
    try:
        data = json.loads(_read(path))
    except ValueError:
        return []
    history = data.get("log_history") if isinstance(data, Mapping) else None
    return history if isinstance(history, list) else []


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MOST)
    except OSError:
        return b""


def _losses(path: str, rows: Iterable[Any]) -> Losses | None:
    train, held_out = [], []
    for row in rows:
        if not isinstance(row, Mapping) or not _is_number(row.get("step")):
            continue
        if _is_number(row.get("loss")):
            train.append((float(row["step"]), float(row["loss"])))
        if _is_number(row.get("eval_loss")):
            held_out.append((float(row["step"]), float(row["eval_loss"])))
    return Losses(path, tuple(train), tuple(held_out)) if train or held_out else None


def _is_number(value: Any) -> bool:
    # A huge integer would not become a float; NaN and infinity are kept, as they are what a reader looks for.
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**60)
