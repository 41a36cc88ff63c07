"""What the loader raises, as a part of the doctor's tree.

QloraDoctorError
├── UsageError         a wrong argument
│   └── ModelProblem   the model's files cannot be loaded this way; the message says what they are and the way out
├── LoadBlocked        the checks found something that makes the load fail, before anything was loaded
└── NotVerified        the model was loaded, but it is not what was asked for
"""

from __future__ import annotations

from collections.abc import Sequence

from qlora_doctor.errors import QloraDoctorError, UsageError
from qlora_doctor.finding import Finding


class ModelProblem(UsageError):
    """The files are there, but not of a kind that this load can use."""


class LoadBlocked(QloraDoctorError):
    """The gate refused the load.

    `findings` are the errors left after the gate's own fixes. `command` is the command that repairs what can be
    repaired. `instead` says which other bits would pass the gate here, and what their weights take.
    """

    def __init__(self, findings: Sequence[Finding], command: str, *, reasons: Sequence[str] = (), instead: str = ""):
        self.findings = tuple(findings)
        self.command = command
        self.instead = instead
        lines = [f"{f.code} {f.text}" for f in self.findings] + list(reasons)
        count = len(lines)
        head = f"the load was stopped before it began: {count} problem{'' if count == 1 else 's'}"
        body = [f"  {line}" for line in lines]
        way = ["Repair it with:", f"  {command}"] if self.findings else []
        super().__init__("\n".join([head, *body, *way, *([instead] if instead else [])]))


class NotVerified(QloraDoctorError):
    """A loaded model that is not what was asked for; `problems` names what is wrong, one line each."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(["the loaded model is not what was asked for:", *(f"  {p}" for p in problems)]))


def show_size(count: int) -> str:
    """Bytes as a person reads them: `3.76 GiB`, `412 MiB`, `0.4 MiB`."""
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    return f"{count / 2**20:.0f} MiB" if count >= 10 * 2**20 else f"{count / 2**20:.1f} MiB"
