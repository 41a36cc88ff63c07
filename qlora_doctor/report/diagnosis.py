"""A diagnosis as text and as JSON data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qlora_doctor import redaction
from qlora_doctor.finding import Finding
from qlora_doctor.fix import fix_to_data
from qlora_doctor.i18n import said, tr
from qlora_doctor.logs.diagnose import Diagnosis, Report
from qlora_doctor.logs.reader import Line
from qlora_doctor.report.columns import wrap
from qlora_doctor.report.text import sanitized

WORDS = {"sure": "", "likely": "probably: ", "possible": "possible: "}


def render(report: Report, columns: int | None = None) -> str:
    """The report: each message with its causes and fixes, in the order of cause and effect."""
    out: list[str] = []
    for number, diagnosis in enumerate(report.diagnoses):
        out += [*([""] if out else []), *_diagnosis(diagnosis, columns, follows=number > 0)]
    if not report.diagnoses:
        out += _nothing(report)
    elif report.unknown:
        out += [
            "",
            tr("not known to any signature, and maybe what matters:"),
            *(_quoted(line) for line in report.unknown),
        ]
    if report.benign:
        out += ["", tr("no reason for the failure, though it looks like one:")]
        out += [
            "  " + tr("line {number}: {says}", number=d.line.number, says=said(d.best.cause.says))
            for d in report.benign
        ]
    return redaction.secrets(sanitized("\n".join(out)))


def _diagnosis(diagnosis: Diagnosis, columns: int | None, follows: bool) -> list[str]:
    best = diagnosis.best
    title = (tr("then, ") if follows else "") + tr("line {number}", number=diagnosis.line.number)
    title += tr(" ({count} times)", count=diagnosis.line.count) if diagnosis.line.count > 1 else ""
    out = [_plain(diagnosis.line.text.strip()[:300]) or f"{title}: {diagnosis.line.text.strip()[:300]}"]
    out += _indented(f"{tr(WORDS[best.confidence])}{said(best.cause.says)} [{best.cause.id}]", columns)
    if best.why:
        out += _indented(f"because: {'; '.join(best.why)}", columns)
    out += _indented(f"fix: {best.cause.fix}", columns)
    out += [f"    - {said(fix.title)}" for fix in best.cause.fixes]
    for other in diagnosis.candidates[1:4]:
        out += _indented(f"or: {other.cause.says} [{other.cause.id}]", columns)
        out += _indented(f"    fix: {other.cause.fix}", columns)
    for ruled in diagnosis.ruled_out:
        out += _indented(f"ruled out: {ruled.cause.says} ({ruled.because})", columns)
    return out


def _plain(text: str) -> str:
    """The words for what is no line of the log but was seen in it as a whole; "" for a line."""
    mark, _, rest = text.partition(" ")
    words = {"@exit": "the exit code is", "@last": "the log ends without an error at:", "@loss": "the losses:"}
    return f"{tr(words[mark])} {rest}" if mark in words else ""


def _indented(text: str, columns: int | None) -> list[str]:
    lead = "  " + " " * (len(text) - len(text.lstrip()))
    return [lead + line for line in wrap(text.strip(), None if columns is None else columns - len(lead))]


def _nothing(report: Report) -> list[str]:
    if report.bytes == 0:
        return [tr("The log is empty: nothing can be said.")]
    if not report.unknown:
        return [tr("No failure that is known was found in {lines} lines.", lines=report.lines)]
    return [
        tr(
            "Nothing known was found in {lines} lines, so no cause is named. The decisive lines are:",
            lines=report.lines,
        ),
        *(_quoted(line) for line in report.unknown),
        "For a bug report: `qlora-doctor report --log LOG --script FILE` bundles this and the environment, without secrets.",
    ]


def _quoted(line: Line) -> str:
    return "  " + tr("line {number}: {says}", number=line.number, says=line.text.strip()[:300])


def finding_lines(found: Sequence[Finding], columns: int | None = None) -> list[str]:
    """Findings that have a name and no code (of an adapter), as lines."""
    out = []
    for finding in found:
        out += [f"{finding.severity} {finding.name}", *_indented(sanitized(finding.text), columns)]
    return out or ["nothing is wrong with the adapter as far as can be seen"]


def data(report: Report) -> dict[str, Any]:
    """The report as JSON data, without secrets; the lines that nobody knows are fit to be shown to others."""
    found = {
        "schema": 1,
        "diagnoses": [_data(d) for d in report.diagnoses],
        "benign": [_data(d) for d in report.benign],
        "unknown": [{"line": line.number, "text": redaction.private(line.text[:1000])} for line in report.unknown],
        "tail": [redaction.private(line) for line in report.tail] if not report.diagnoses else [],
        "lines": report.lines,
        "bytes": report.bytes,
    }
    shown: dict[str, Any] = redaction.data(found, redaction.secrets)
    return shown


def _data(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "signature": diagnosis.signature.id,
        "category": diagnosis.signature.category,
        "source": diagnosis.signature.source,
        "line": diagnosis.line.number,
        "count": diagnosis.line.count,
        "text": diagnosis.line.text[:1000],
        "causes": [
            {
                "id": c.cause.id,
                "confidence": c.confidence,
                "why": list(c.why),
                "says": c.cause.says,
                "fix": c.cause.fix,
                "fixes": [fix_to_data(f) for f in c.cause.fixes],
            }
            for c in diagnosis.candidates
        ],
        "ruled_out": [{"id": r.cause.id, "because": r.because} for r in diagnosis.ruled_out],
    }
