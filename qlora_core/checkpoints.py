"""Checkpoints that are whole or not there, and a judgement of one before a run resumes from it.

A checkpoint is written into `.checkpoint-N.writing` beside its place, made durable, and renamed. Whatever kills the
process (SIGKILL, power, a full disk) leaves the older ones as they were.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qlora_core.errors import TrainingStopped, show_size
from qlora_doctor.errors import UsageError

RUN_FILE = "qlora_core.json"
LAST_FINITE = "last-finite"
STATE_FILE = "trainer_state.json"
# What a resumed run needs beside the weights, and what is lost without it.
NEEDED = {
    STATE_FILE: "the step it was at",
    "optimizer.pt": "the optimizer's state",
    "scheduler.pt": "the learning rate's place in its schedule",
}
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "model.safetensors", "pytorch_model_fsdp_0")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` when the block ends without an error."""
    temporary = staging(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        settle(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def staging(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.writing")


def settle(temporary: Path, folder: Path) -> None:
    """Makes what is in `temporary` durable and renames it to `folder`; what was there before goes away afterwards."""
    for path in [*temporary.rglob("*"), temporary]:
        _sync(path)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def sweep(run: Path) -> list[str]:
    """Removes what a killed run left half-written; gives back a checkpoint that was being replaced. Returns the names."""
    swept = []
    for path in sorted(run.glob(".*.writing")):
        shutil.rmtree(path, ignore_errors=True)
        swept.append(path.name)
    for path in sorted(run.glob(".*.old")):
        whole = path.with_name(path.name[1 : -len(".old")])
        if whole.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(whole)
        swept.append(path.name)
    return swept


def keep_finite(model: Any, folder: str | Path) -> Path | None:
    """Writes the adapter of `model` to FOLDER/last-finite, where all of it is finite and the disk lets us; else None."""
    from qlora_core.blame import spoiled

    if not hasattr(model, "save_pretrained") or spoiled(model):
        return None
    place = Path(folder) / LAST_FINITE
    try:
        with atomic_folder(place) as temporary:
            model.save_pretrained(str(temporary))
    except Exception as error:
        # The stop that we are in the middle of matters more than this copy; without it `adapter` is None.
        if not is_write_error(error):
            raise
        return None
    return place


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest step first."""
    found = [(int(m.group(1)), p) for p in run.glob("checkpoint-*") if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))]
    return [path for _, path in sorted(found)]


def latest(run: Path) -> Path | None:
    """The newest checkpoint that can be resumed; None where there is none."""
    return next((path for path in reversed(checkpoints(run)) if not missing(path)), None)


def missing(checkpoint: Path) -> list[str]:
    """What a checkpoint lacks to be resumed, one line each; empty for a whole one."""
    if not checkpoint.is_dir():
        return [f"{checkpoint} is not a folder"]
    lacking = [f"{name}: {what}" for name, what in NEEDED.items() if not _has(checkpoint, name)]
    if not any(_has(checkpoint, name) for name in WEIGHTS) and not _inner_adapters(checkpoint):
        lacking.append("adapter_model.safetensors: the adapter")
    if not (_has(checkpoint, "rng_state.pth") or any(checkpoint.glob("rng_state_*.pth"))):
        lacking.append("rng_state.pth: the random numbers, without which the losses are not those of one long run")
    if _has(checkpoint, STATE_FILE):
        try:
            json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        except ValueError as error:
            lacking.append(f"{STATE_FILE}: damaged ({error})")
    return lacking


def judge_resume(checkpoint: Path, run: Mapping[str, Any]) -> None:
    """Refuses a checkpoint that this run cannot go on from.

    Args:
        checkpoint: the folder.
        run: what identifies this run (from `describe`), compared with what the checkpoint's run wrote down.

    Raises:
        UsageError: naming what is missing, or what differs.
    """
    if lacking := missing(checkpoint):
        lines = "\n".join(f"  {line}" for line in lacking)
        only = (
            "\nIt was written with save_only_model=True: start anew from its adapter." if _adapter_only(lacking) else ""
        )
        raise UsageError(f"{checkpoint} cannot be resumed; it lacks\n{lines}{only}")
    path = checkpoint / RUN_FILE
    if not path.is_file():
        return
    was = json.loads(path.read_text(encoding="utf-8"))
    differs = [f"  {k}: {was[k]!r} there, {v!r} here" for k, v in run.items() if k in was and was[k] != v]
    if differs:
        raise UsageError(
            f"{checkpoint} was written by another run; resumed with these settings its losses would not be those of "
            "one run:\n" + "\n".join(differs) + "\nGive the settings and data of that run, or start anew."
        )


def write_run(checkpoint: Path, run: Mapping[str, Any]) -> None:
    (checkpoint / RUN_FILE).write_text(json.dumps(run, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def is_write_error(error: BaseException) -> bool:
    """Whether a file could not be written. A full disk is not an OSError here: safetensors and torch have their own."""
    text = str(error)
    known = type(error).__name__ == "SafetensorError" or "inline_container" in text or "PytorchStreamWriter" in text
    return isinstance(error, OSError) or known


def write_stopped(error: BaseException, run: Path, step: int, needed: int = 0) -> TrainingStopped:
    """A failed write, with the disk's state and what is still whole."""
    free = shutil.disk_usage(run).free
    text = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    # torch.save names no disk at all when one is full.
    full = "no space left" in text.lower() or "enforce fail" in text or free < max(needed, 1 << 20)
    older = checkpoints(run)
    way = f"free some space on the disk of {run}, or keep fewer checkpoints (save_total_limit), then resume"
    return TrainingStopped(
        "disk",
        "a checkpoint could not be written" + (": the disk is full" if full else ""),
        step=step,
        cause=f"{text}; {show_size(free)} free",
        remedy=way if full else f"look at {run}: {type(error).__name__}",
        adapter=str(older[-1]) if older else None,
        resumable=bool(older),
    )


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _adapter_only(lacking: list[str]) -> bool:
    names = {line.partition(":")[0] for line in lacking}
    return {"optimizer.pt", "scheduler.pt"} <= names and "adapter_model.safetensors" not in names


def _has(folder: Path, name: str) -> bool:
    path = folder / name
    if path.is_dir():
        return any(path.iterdir())
    if path.is_file() and path.stat().st_size > 0:
        return True
    # FSDP writes one file or a folder of shards for the optimizer, DeepSpeed a folder for each step.
    sharded = (folder / "optimizer_0").is_dir() or (folder / "optimizer.bin").is_file()
    return name == "optimizer.pt" and (sharded or any(folder.glob("global_step*")))


def _inner_adapters(folder: Path) -> bool:
    return any(folder.glob("*/adapter_model.safetensors"))


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
