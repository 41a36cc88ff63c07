"""The paper of `check` and of `fix`: findings with their repairs, the environment, the memory of the run, its losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_doctor.examine import Examination, known_parts
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, EnvVar, Fix, LoadKwarg, PipRequirement, TrainSetting
from qlora_doctor.repair.environment import quote_sh
from qlora_doctor.repair.session import Prepared, Result
from qlora_doctor.report import counts, target
from qlora_doctor.report.paper import Curve, Entry, Paper, Remedy, Replacement, Section, evidence_rows, worst
from qlora_doctor.report.paper_facts import fact_rows, package_rows
from qlora_doctor.report.paper_memory import memory_of
from qlora_doctor.report.text import place
from qlora_doctor.source import show


def of_check(
    examination: Examination, code: int, *, edits: bool = False, curves: Sequence[Curve] = (), notes: Sequence[str] = ()
) -> Paper:
    """The report of `check`. `edits`: also what each fix replaces in its file, which takes libcst and its time."""
    verdict = examination.verdict
    entries = _entries(examination, verdict.findings, edits)
    judged = sum(o.outcome in ("ok", "found") for o in verdict.outcomes)
    found = counts(verdict.findings) or "nothing found"
    lines = (*_unread(examination), *notes)
    sections = [Section("Notes", lines)] if lines else []
    step = _next(examination)
    sections += [Section("Next, to see the repairs (nothing is changed)", (step,), kind="commands")] if step else []
    return Paper(
        "check",
        target(examination),
        f"{found}; {judged} checks judged",
        worst(e.severity for e in entries),
        code,
        entries,
        (*sections, *_environment(examination)),
        memory_of(examination),
        tuple(curves),
        tuple((o.code, o.outcome, o.reason) for o in verdict.outcomes if o.outcome in ("unknown", "crashed")),
    )


def _next(examination: Examination) -> str:
    """The command that shows the repairs; "" where it can make none here."""
    question = examination.question
    mendable = any(fix.applicability != "display-only" for f in examination.verdict.findings for fix in f.fixes)
    if not mendable or question.facts_file or question.ssh:
        return ""
    words = ["qlora-doctor", "fix", *question.paths]
    words += ["--model", question.model] if question.model else []
    words += ["--python", question.python] if question.python else []
    return " ".join(quote_sh(word) for word in words)


def of_fix(prepared: Prepared, data: Mapping[str, Any], edits: bool = False) -> Paper:
    """The report of `fix` without --apply. `data` is the plan as JSON data."""
    examination = prepared.examination
    verdict = "nothing to repair" if prepared.plan.empty else _would(data)
    sections = list(_plan_sections(data, ""))
    if "with_unsafe" in data:
        sections += _plan_sections(data["with_unsafe"], " with --unsafe")
    entries = _entries(examination, examination.verdict.findings, edits)
    tone = worst(e.severity for e in entries)
    return Paper(
        "fix", target(examination), verdict, tone, data["exit_code"], entries, (*sections, *_environment(examination))
    )


def of_result(result: Result, data: Mapping[str, Any]) -> Paper:
    """The report of `fix --apply`: what was done, and what is left."""
    examination = result.examination
    entries = _entries(examination, [f for f in examination.verdict.findings], False)
    left = counts(examination.verdict.findings) or "nothing"
    lines = [*data["notes"], *(f"written: {path}" for path in data["written"])]
    done = "repaired" if data["applied"] else "nothing was changed"
    return Paper(
        "fix",
        target(examination),
        f"{done}; left: {left}",
        worst(e.severity for e in entries),
        data["exit_code"],
        entries,
        (Section("Done", tuple(lines)), *_environment(examination)),
    )


def _would(data: Mapping[str, Any]) -> str:
    number = len(data["steps"])
    return f"{number} repair{'s' if number != 1 else ''} proposed, {len(data['remains'])} findings would remain"


def _plan_sections(data: Mapping[str, Any], suffix: str) -> list[Section]:
    rows = [("repair", "kind", "for", "note")]
    rows += [(s["fix"]["title"], s["fix"]["applicability"], ", ".join(s["codes"]), s["note"]) for s in data["steps"]]
    sections = [Section(f"The plan{suffix}", rows=tuple(rows), kind="table")] if data["steps"] else []
    if data["packages_refused"]:
        sections.append(Section(f"Packages{suffix}", (f"cannot be applied: {data['packages_refused']}",)))
    if data["commands"]:
        lines = tuple(" ".join(quote_sh(word) for word in command) for command in data["commands"])
        sections.append(Section(f"Package commands{suffix}", lines, kind="commands"))
    if data["diff"]:
        sections.append(Section(f"Changes to files{suffix}", tuple(data["diff"].splitlines()), kind="diff"))
    if data["conflicts"]:
        lines = tuple(f"{' and '.join(c['codes'])} disagree about {c['about']}" for c in data["conflicts"])
        sections.append(Section(f"Not done{suffix}", lines))
    if data["remains"]:
        left = tuple((one["code"], one["place"], one["why"]) for one in data["remains"])
        rest = (("code", "place", "why it stays"), *left)
        sections.append(Section(f"What remains{suffix}", rows=rest, kind="table"))
    return sections


def _environment(examination: Examination) -> tuple[Section, ...]:
    facts = examination.facts
    sections = [Section("Environment", rows=(("part", "value"), *fact_rows(facts)), kind="table")]
    packages = package_rows(facts)
    if packages:
        sections.append(
            Section("Packages", rows=(("name", "version"), *packages), kind="table", folded=True, versions=True)
        )
    unknown = [(n, facts.state(n).reason) for n in known_parts(facts) if hasattr(facts.state(n), "skipped")]
    if unknown:
        sections.append(Section("Not known", rows=(("part", "why"), *unknown), kind="table", folded=True))
    return tuple(sections)


def _unread(examination: Examination) -> list[str]:
    notes = [f"{s.path}: {s.note}" for s in examination.scripts if s.note]
    return notes + [f"{s.path} could not be read whole: {s.problem}" for s in examination.scripts if s.problem]


def _entries(examination: Examination, findings: Sequence[Finding], edits: bool) -> tuple[Entry, ...]:
    pages = {check.code: check for check in examination.checks}
    python = examination.question.python or "python"
    found = []
    for finding in findings:
        page = pages.get(finding.code)
        found.append(
            Entry(
                finding.code,
                finding.name,
                finding.severity,
                finding.text,
                place(finding.site),
                finding.site,
                evidence_rows(finding.evidence),
                tuple(_remedy(examination, finding, fix, python, edits) for fix in finding.fixes),
                page.doc if page else "",
                finding.message,
            )
        )
    return tuple(found)


def _remedy(examination: Examination, finding: Finding, fix: Fix, python: str, edits: bool) -> Remedy:
    replaced: tuple[Replacement, ...] = ()
    if edits:
        from qlora_doctor.report.replacements import replacements

        replaced = replacements(examination, finding, fix)
    return Remedy(fix.title, fix.applicability, to_copy(fix, python), replaced)


def to_copy(fix: Fix, python: str = "python") -> str:
    """What a person would paste to make this repair by hand; "" where that is no one line."""
    if isinstance(fix, Advice):
        return fix.command
    if isinstance(fix, PipRequirement):
        verb = "uninstall" if fix.remove else "install"
        return f"{quote_sh(python)} -m pip {verb} {quote_sh(fix.requirement)}"
    if isinstance(fix, EnvVar):
        return f"unset {fix.name}" if fix.value is None else f"export {fix.name}={quote_sh(fix.value)}"
    if isinstance(fix, (LoadKwarg, TrainSetting)) and not fix.drop:
        text = show(fix.value)
        return "" if "..." in text else f"{fix.name}={text}"
    return ""
