"""Findings and outcomes: what a check has to say, and how its run ended."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qlora_doctor.fix import Fix
from qlora_doctor.source import Site

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")

OutcomeWord = Literal["ok", "found", "unknown", "skipped", "crashed"]
OUTCOMES: tuple[OutcomeWord, ...] = ("crashed", "found", "unknown", "ok", "skipped")


def at_least(severity: Severity, floor: Severity) -> bool:
    """Whether `severity` is as grave as `floor`, or graver."""
    return SEVERITIES.index(severity) <= SEVERITIES.index(floor)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, with its evidence and its fixes.

    `message` is a constant template; its `{fields}` come from `evidence`, so that it can be translated. A message
    says what is wrong and what to do. `evidence` holds JSON values; keys beyond the message's fields are shown with
    `--verbose`. `site` is the place in a script, where there is one. `code` and `name` are filled in by the runner.
    """

    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    severity: Severity = "warning"
    site: Site | None = None
    fixes: tuple[Fix, ...] = ()
    code: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        missing = fields_of(self.message) - set(self.evidence)
        if missing:
            raise ValueError(f"the message names {', '.join(sorted(missing))}, which the evidence lacks")

    @property
    def text(self) -> str:
        """The message with its fields filled in."""
        return fill(self.message, self.evidence)


def fields_of(template: str) -> set[str]:
    """The names of the fields in a template."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def fill(template: str, evidence: Mapping[str, Any]) -> str:
    """A template with its fields from `evidence`; lists are joined with commas."""
    shown = {k: ", ".join(map(str, v)) if isinstance(v, (list, tuple)) else v for k, v in evidence.items()}
    return template.format(**shown)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one check's run ended. `reason` says why for unknown, skipped and crashed."""

    code: str
    name: str
    outcome: OutcomeWord
    reason: str = ""
    distribution: str = ""
