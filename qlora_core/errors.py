"""What the loader raises, as a part of the doctor's tree.

QloraDoctorError
├── UsageError         a wrong argument
│   ├── RowProblem     a row of the training data cannot be used; names the row, the reason and the way out
│   └── ModelProblem   the model's files cannot be loaded this way; the message says what they are and the way out
├── LoadBlocked        the checks found something that makes the load fail, before anything was loaded
├── NotVerified        the model was loaded, but it is not what was asked for
└── TrainingStopped    a run that went on would have spoilt its adapter, or could not go on
"""

from __future__ import annotations

from collections.abc import Sequence

from qlora_doctor.errors import QloraDoctorError, UsageError
from qlora_doctor.finding import Finding


class ModelProblem(UsageError):
    """The files are there, but not of a kind that this load can use."""


class RowProblem(UsageError):
    """A row of the data that cannot be trained on. `where` is `train.jsonl row 17`, `remedy` what to do about it."""

    def __init__(self, where: str, reason: str, remedy: str) -> None:
        super().__init__(f"{where or 'a row'}: {reason}. {remedy}")
        self.where = where
        self.reason = reason
        self.remedy = remedy


class LoadBlocked(QloraDoctorError):
    """The gate refused the load.

    `findings` are the errors left after the gate's own fixes. `command` is the command that repairs what can be
    repaired. `instead` says which other bits would pass the gate here, and what their weights take.
    """

    def __init__(
        self,
        findings: Sequence[Finding],
        command: str,
        *,
        reasons: Sequence[str] = (),
        instead: str = "",
        what: str = "the load",
    ):
        self.findings = tuple(findings)
        self.command = command
        self.instead = instead
        lines = [f"{f.code} {f.text}" for f in self.findings] + list(reasons)
        count = len(lines)
        problems = f"{count} problem" if count == 1 else f"{count} problems"
        head = f"{what} was stopped before it began: {problems}"
        body = [f"  {line}" for line in lines]
        way = ["Repair it with:", f"  {command}"] if self.findings and command else []
        super().__init__("\n".join([head, *body, *way, *([instead] if instead else [])]))


class NotVerified(QloraDoctorError):
    """A loaded model that is not what was asked for; `problems` names what is wrong, one line each."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(["the loaded model is not what was asked for:", *(f"  {p}" for p in problems)]))


class TrainingStopped(QloraDoctorError):
    """A training run was stopped; what it had learned is kept.

    `kind`: `loss`, `gradient`, `labels`, `adapter`, `memory`, `disk` or `signal`. `step` counts optimizer steps from 1
    and names the step that was not taken. `rows` are places in the training data (as the user counts, where they are
    known). `module` is the first module whose output was not finite, "" where all were. `adapter` is the folder of the
    last finite adapter or of the checkpoint to resume from. `exit_code` is what a command should end with.
    """

    def __init__(
        self,
        kind: str,
        what: str,
        *,
        step: int,
        cause: str = "",
        remedy: str = "",
        rows: Sequence[str] = (),
        module: str = "",
        dtype: str = "",
        adapter: str | None = None,
        resumable: bool = False,
        peak_bytes: int | None = None,
        exit_code: int = 1,
    ):
        self.kind, self.what, self.step, self.cause, self.remedy = kind, what, step, cause, remedy
        self.rows, self.module, self.dtype = tuple(rows), module, dtype
        self.adapter, self.resumable, self.peak_bytes, self.exit_code = adapter, resumable, peak_bytes, exit_code
        kept = f"{adapter} ({'resume from it' if resumable else 'the last finite adapter'})" if adapter else ""
        parts = {
            "rows": _some(self.rows),
            "module": module,
            "dtype": dtype,
            "peak": show_size(peak_bytes) if peak_bytes else "",
            "cause": cause,
            "remedy": remedy,
            "kept": kept,
        }
        head = f"training stopped at step {step}: {what}"
        super().__init__("\n".join([head, *(f"  {name + ':':<8} {text}" for name, text in parts.items() if text)]))


def _some(rows: Sequence[str], most: int = 8) -> str:
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return ", ".join(rows[:most]) + more


def show_size(count: int) -> str:
    """Bytes as a person reads them: `3.76 GiB`, `412 MiB`, `0.4 MiB`."""
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    return f"{count / 2**20:.0f} MiB" if count >= 10 * 2**20 else f"{count / 2**20:.1f} MiB"
