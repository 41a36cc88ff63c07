"""Reports: one examination, many dresses. What they share is here: the exit code and the counts."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_doctor.examine import Examination
from qlora_doctor.finding import SEVERITIES, Finding, Severity, at_least
from qlora_doctor.i18n import tr

_COUNTED: dict[Severity, tuple[str, str]] = {
    "error": ("{number} error", "{number} errors"),
    "warning": ("{number} warning", "{number} warnings"),
    "info": ("{number} note", "{number} notes"),
}


def exit_code(examination: Examination, fail_on: Severity = "warning", strict: bool = False) -> int:
    """0: nothing at or above `fail_on`. 1: something. 2 under `strict`: a check crashed, or could not say."""
    verdict = examination.verdict
    if strict and any(o.outcome in ("crashed", "unknown") for o in verdict.outcomes):
        return 2
    return int(any(at_least(f.severity, fail_on) for f in verdict.findings))


def counts(findings: Sequence[Finding]) -> str:
    """`2 errors, 1 warning`; "" for none."""
    parts = []
    for severity in SEVERITIES:
        number = sum(f.severity == severity for f in findings)
        if number:
            one, more = _COUNTED[severity]
            parts.append(tr(one if number == 1 else more, number=number))
    return ", ".join(parts)


def target(examination: Examination) -> str:
    """What was examined, in the words of the question."""
    question = examination.question
    subject = [*question.paths, *([question.model] if question.model else [])]
    if question.facts_file:
        place = f"the environment in {question.facts_file}"
    elif question.ssh:
        place = f"the environment of {question.ssh}"
    elif question.python:
        place = f"the environment of {question.python}"
    else:
        place = "this environment"
    return ", ".join(subject) if subject else place


__all__ = ["counts", "exit_code", "target"]
