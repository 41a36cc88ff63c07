"""The paper of `diagnose`: each message of a log with its causes, and the losses that it printed."""

from __future__ import annotations

from qlora_doctor.logs.diagnose import Candidate, Diagnosis, Report
from qlora_doctor.report.paper import Curve, Entry, Paper, Remedy, Section, Tone
from qlora_doctor.report.paper_check import to_copy
from qlora_doctor.source import Site

_WORDS = {"sure": "", "likely": "probably: ", "possible": "possible: "}


def of_log(report: Report, log: str, code: int, curve: Curve | None = None) -> Paper:
    """The report of `diagnose`. `log` is the file's name, or `-`."""
    entries = [_entry(d, log, "error") for d in report.diagnoses] + [_entry(d, log, "info") for d in report.benign]
    number = len(report.diagnoses)
    found = f"{number} failure{'s' if number != 1 else ''} explained" if number else ""
    if report.unknown:
        found += (", and " if found else "") + f"{len(report.unknown)} decisive lines that no signature knows"
    sections = []
    if report.unknown:
        lines = tuple(f"line {line.number}: {line.text.strip()[:300]}" for line in report.unknown)
        sections.append(Section("Not known, and maybe what matters", lines))
    if not report.diagnoses and report.tail:
        sections.append(Section("The log's end", report.tail, folded=True))
    tone: Tone = "error" if report.diagnoses else "warning" if report.unknown else "ok"
    verdict = found or ("the log is empty" if not report.bytes else f"no known failure in {report.lines} lines")
    curves = () if curve is None else (curve,)
    about = "standard input" if log == "-" else log
    return Paper("diagnose", about, verdict, tone, code, tuple(entries), tuple(sections), curves=curves)


def _entry(diagnosis: Diagnosis, log: str, severity: Tone) -> Entry:
    best, signature = diagnosis.best, diagnosis.signature
    evidence = [("line", diagnosis.line.text.strip()[:1000])]
    evidence += [("because", why) for why in best.why]
    evidence += [(f"or [{c.cause.id}]", f"{c.cause.says} Fix: {c.cause.fix}") for c in diagnosis.candidates[1:4]]
    evidence += [(f"ruled out [{r.cause.id}]", f"{r.cause.says} ({r.because})") for r in diagnosis.ruled_out]
    site = None if log == "-" else Site(log, line=max(diagnosis.line.number, 1))
    times = f" ({diagnosis.line.count} times)" if diagnosis.line.count > 1 else ""
    return Entry(
        best.cause.id,
        signature.id,
        severity,
        f"{_WORDS[best.confidence]}{best.cause.says}",
        f"line {diagnosis.line.number}{times}",
        site,
        tuple(evidence),
        _remedies(best),
        f"{signature.category}. Source: {signature.source}",
        best.cause.says,
    )


def _remedies(best: Candidate) -> tuple[Remedy, ...]:
    first = (Remedy(best.cause.fix, "display-only"),) if best.cause.fix else ()
    return (*first, *(Remedy(fix.title, fix.applicability, to_copy(fix)) for fix in best.cause.fixes))
