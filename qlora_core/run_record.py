"""run.json: everything a run was made of, so that it can be repeated, judged and resumed; and the folder it lies in."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from qlora_core.checkpoints import checkpoints, judge_resume, latest
from qlora_core.data.rows import Row
from qlora_doctor.errors import UsageError

RUN = "run.json"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers", "safetensors")


def check_output(output: Path, resume: bool | str, run: Mapping[str, Any] | None = None) -> str | None:
    """The checkpoint to go on from, or None for a new run into an empty or new folder. `run` identifies this run.

    Raises:
        UsageError: the folder holds something else, cannot be written, or its checkpoint is of another run.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file; give a folder for the run")
    if isinstance(resume, str) and not Path(resume).is_dir():
        raise UsageError(
            f"resume={resume!r}: there is no such folder; give a checkpoint, or only --resume for the newest"
        )
    if resume:
        found = Path(resume) if isinstance(resume, str) else latest(output)
        if found is None:
            held = checkpoints(output) if output.is_dir() else []
            if held:
                # The newest says best what is missing.
                judge_resume(held[-1], run or {})
            raise UsageError(f"{output} holds no checkpoint to resume from; leave --resume away to begin anew")
        if run is not None:
            judge_resume(found, run)
        return str(found)
    _writable(output)
    held_names = sorted(p.name for p in output.iterdir()) if output.is_dir() else []
    # A run that was refused or stopped before its first step leaves its record alone: the next one may take its place.
    if held_names and not (held_names == [RUN] and read_run(output).get("status") == "stopped"):
        if any(name == RUN for name in held_names) and latest(output):
            raise UsageError(f"{output} holds a run already: --resume goes on with it, another --output begins anew")
        some = ", ".join(held_names[:4])
        raise UsageError(f"{output} is not empty ({some}); give another folder, nothing is overwritten")
    return None


def _writable(output: Path) -> None:
    there = next(p for p in (output, *output.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"{output} cannot be written: no right to write in {there}")


def data_hash(rows: Iterable[Row]) -> str:
    """A hash of what the rows say, in their order; of an image its path, or its bytes where it is given so."""
    digest = hashlib.sha256()
    for row in rows:
        for message in row.messages:
            digest.update(message.role.encode())
            for part in message.parts:
                digest.update(
                    b"\0" + (part.encode("utf-8", "surrogatepass") if isinstance(part, str) else _image(part))
                )
        digest.update(b"\1")
    return digest.hexdigest()


def _image(part: Any) -> bytes:
    source = part.source
    if isinstance(source, bytes):
        return source
    if hasattr(source, "tobytes"):
        data: bytes = source.tobytes()
        return data
    if not isinstance(source, (str, os.PathLike)):
        return str(getattr(source, "key", type(source).__name__)[1:]).encode()
    # The name alone, so that moved data are still the same data.
    return os.path.basename(os.fspath(source)).encode("utf-8", "surrogatepass")


def versions() -> dict[str, str]:
    """The versions of what trains."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_run(output: Path, record: Mapping[str, Any]) -> None:
    """Writes run.json whole or not at all."""
    write_whole(output / RUN, json.dumps(record, indent=2, ensure_ascii=False, default=_plain) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a text file beside its place and renames it, so that it is never half there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_run(output: Path) -> dict[str, Any]:
    """The run.json of a folder; {} where there is none that can be read."""
    try:
        data = json.loads((output / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(timezone.utc).replace(microsecond=0).isoformat()


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset, tuple)):
        return sorted(map(str, value)) if not isinstance(value, tuple) else list(value)
    return str(value)


def begin(p: Any) -> dict[str, Any]:
    """What is known of a run (a `Prepared`) before its first step."""
    import qlora_doctor

    b = p.plan.breakdown
    facts = p.train.facts
    return {
        "schema": 1,
        "qlora_doctor": qlora_doctor.__version__,
        "status": "running",
        "begun": now(),
        "model": {"name": p.name, "family": p.family, "vision": p.vision, "revision": p.settings.revision},
        "settings": p.settings.to_dict(),
        "given": sorted(p.given),
        "chosen": [{"setting": name, "value": value, "why": why} for name, value, why in p.plan.chosen],
        "fixes": [str(change) for change in p.gate.changes],
        "training_arguments": p.gate.settings(),
        "data": {
            "hash": p.identity["data"], "files": list(p.train.rows.files), "format": p.train.rows.format,
            "rows": len(p.train.kept), "dropped": len(p.train.dropped), "counts": dict(facts.counts),
            "tokens": facts.tokens, "supervised": facts.supervised,
        },
        "memory": {
            "card": p.plan.room.card, "room": p.plan.room.bytes,
            "predicted": None if b is None else {"low": b.low, "expected": b.expected, "high": b.high, "allocated": b.allocated},
        },
        "seeds": {"seed": p.settings.seed, "data_seed": p.settings.data_seed},
        "versions": versions(),
        "resumed_from": p.checkpoint,
    }  # fmt: skip


def stopped(record: Mapping[str, Any], error: BaseException) -> dict[str, Any]:
    """The record of a run that ended early; no text of an exception but its first line."""
    line = (str(error).splitlines() or [""])[0][:300]
    kind = getattr(error, "kind", type(error).__name__)
    return {**record, "status": "stopped", "ended": now(), "stopped": {"kind": kind, "what": line}}


def finished(result: Any, held: int) -> dict[str, Any]:
    """The record of a run that came to its end. `held` is the host memory before training, libraries and all."""
    report = result.report
    measured = {"kind": next(iter(result.peak), ""), **result.peak, "resident_before": held}
    return {
        **result.run,
        "status": "finished",
        "ended": now(),
        "load": report.to_dict() if report is not None else None,
        "scope": {part: {"tensors": t, "parameters": w} for part, (t, w) in result.scope.items()},
        "memory": {**result.run["memory"], "measured": measured},
        "warnings": list(result.warnings),
        "result": {
            "steps": result.steps,
            "rows_a_step": result.prepared.course.rows_a_step,
            "first_loss": result.losses[0][1] if result.losses else None,
            "last_loss": result.losses[-1][1] if result.losses else None,
            "eval_loss": result.eval_losses[-1][1] if result.eval_losses else None,
            "step_seconds": result.step_seconds,
            "metrics": dict(result.metrics),
        },
    }


def result_lines(result: Any) -> list[str]:
    """A result as a person reads it."""
    if result.report is None:
        return [str(result.prepared)]
    lines = []
    if result.adapter is None and result.report.verification is not None:
        lines += ["really 4-bit:" if result.settings.bits == 4 else "loaded:"]
        lines += [f"  {line}" for line in result.report.verification.lines()]
    lines += [f"learned   {part}: {w:,} weights in {t} tensors" for part, (t, w) in result.scope.items()]
    first, last = (result.losses[0][1], result.losses[-1][1]) if result.losses else (None, None)
    loss = f", loss {first:.4g} -> {last:.4g}" if first is not None else ""
    lines.append(f"steps     {result.steps}{loss}")
    if result.eval_losses:
        lines.append(f"eval      loss {result.eval_losses[0][1]:.4g} -> {result.eval_losses[-1][1]:.4g}")
    lines += [f"metric    {name} {value:.4g}" for name, value in result.metrics.items()]
    if result.step_seconds is not None:
        lines.append(f"a step    {result.step_seconds:.3g} s")
    lines.append(f"memory    {_memory_words(result)}")
    for one in result.samples:
        lines += ["sample", str(one)]
    lines += [f"warning   {text}" for text in result.warnings]
    if result.adapter is not None:
        lines.append(f"adapter   {result.adapter}")
    return lines


def _memory_words(result: Any) -> str:
    from qlora_core.errors import show_size

    words = [f"{show_size(size)} {name}" for name, size in result.peak.items()]
    said = f"at its peak {', '.join(words)}"
    if result.predicted is None:
        return f"{said}; nothing was predicted for this architecture"
    if "allocated" in result.peak:
        off = result.peak["allocated"] / result.predicted - 1
        return f"{said}; predicted {show_size(result.predicted)} allocated ({off:+.0%})"
    return f"{said} (the libraries' too); predicted {show_size(result.predicted)} of tensors"
