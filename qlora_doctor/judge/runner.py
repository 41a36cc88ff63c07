"""The runner: calls each check with what it judges and turns what happens into outcomes."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlora_doctor.errors import NotKnown
from qlora_doctor.facts import Facts, Unknown
from qlora_doctor.finding import OUTCOMES, SEVERITIES, Finding, Outcome, OutcomeWord, Severity
from qlora_doctor.registry import Check
from qlora_doctor.request import LoadRequest, Requests, TrainRequest
from qlora_doctor.source import Script


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is judged: a script (or None, for the command line or a facts file alone) and its requests."""

    requests: Requests = field(default_factory=Requests)
    script: Script | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcomes, one a check and in the order of their codes, and the findings, gravest first."""

    outcomes: tuple[Outcome, ...]
    findings: tuple[Finding, ...]


def judge(
    checks: Sequence[Check],
    facts: Facts,
    cases: Sequence[Case] = (),
    *,
    severities: Mapping[str, Severity] | None = None,
    inline_ignores: bool = True,
) -> Verdict:
    """Runs every check. Same arguments, same verdict.

    A check that raises is `crashed`; one that needs what is not known is `unknown`; one that has nothing to judge, or
    whose `requires` found something, is `skipped`. `severities` overrides by code.
    """
    cases = cases or (Case(),)
    results: dict[str, _Result] = {}
    for check in _in_order(checks):
        results[check.code] = _run(check, facts, cases, results)
    findings = []
    for check in checks:
        for finding in results[check.code].findings:
            severity = (severities or {}).get(check.code, finding.severity)
            finding = dataclasses.replace(finding, code=check.code, name=check.name, severity=severity)
            if not (inline_ignores and _ignored(finding, cases)):
                findings.append(finding)
    kept = {f.code for f in findings}
    outcomes = tuple(results[c.code].outcome(c, c.code in kept) for c in sorted(checks, key=lambda c: c.code))
    return Verdict(outcomes, _sorted(findings))


@dataclass(slots=True)
class _Result:
    findings: list[Finding] = field(default_factory=list)
    where: set[int] = field(default_factory=set)
    reasons: dict[OutcomeWord, list[str]] = field(default_factory=dict)

    def note(self, word: OutcomeWord, reason: str = "") -> None:
        reasons = self.reasons.setdefault(word, [])
        if reason and reason not in reasons:
            reasons.append(reason)

    def outcome(self, check: Check, kept: bool) -> Outcome:
        silent: set[OutcomeWord] = set() if kept else {"found"}
        words = [w for w in OUTCOMES if w in self.reasons and w not in silent]
        word: OutcomeWord = words[0] if words else "ok"
        return Outcome(check.code, check.name, word, "; ".join(self.reasons.get(word, [])), check.distribution)


def _in_order(checks: Sequence[Check]) -> list[Check]:
    """Every check after those that it requires."""
    by_code = {c.code: c for c in checks}
    done: dict[str, Check] = {}

    def visit(check: Check, path: tuple[str, ...]) -> None:
        for code in check.requires:
            if code in by_code and code not in path:
                visit(by_code[code], (*path, code))
        done.setdefault(check.code, check)

    for check in sorted(checks, key=lambda c: c.code):
        visit(check, (check.code,))
    return list(done.values())


def _run(check: Check, facts: Facts, cases: Sequence[Case], results: Mapping[str, _Result]) -> _Result:
    result = _Result()
    calls = list(_calls(check, facts, cases))
    if check.per_script or check.judges in ("load", "train"):  # the environment is judged whatever could be read
        for case in cases:
            if case.script is not None and case.script.problem:
                line = f":{case.script.problem_line}" if case.script.problem_line else ""
                result.note("unknown", f"{case.script.path}{line}: {case.script.problem}")
    if not calls and not result.reasons:
        result.note(
            "skipped", {"load": "no model is loaded", "train": "nothing is trained"}.get(check.judges, "no script")
        )
    for index, arguments in calls:
        blocker = _blocked_by(check, index, results)
        if blocker:
            result.note("skipped", f"{blocker} found something")
            continue
        unknown = _unknown_need(check, arguments[0])
        if unknown:
            result.note("skipped" if unknown[1].skipped else "unknown", f"{unknown[0]}: {unknown[1].reason}")
            continue
        _call(check, index, arguments, result)
    return result


def _call(check: Check, index: int, arguments: tuple[Any, ...], result: _Result) -> None:
    try:
        for finding in check.function(*arguments):
            if finding not in result.findings:
                result.findings.append(finding)
            result.where.add(index)
            result.note("found")
        result.note("ok")
    except NotKnown as error:
        result.note("unknown", f"{error.name}: {error.reason}")
    except Exception as error:  # noqa: BLE001 - whatever a check does wrong must not end the others
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename.replace(chr(92), '/').rpartition('/')[2]}:{frame.lineno}"
        result.note("crashed", f"{type(error).__name__}: {error} ({place})")


def _calls(check: Check, facts: Facts, cases: Sequence[Case]) -> Iterable[tuple[int, tuple[Any, ...]]]:
    """What a check is called with, and the index of the case (-1: no one case)."""
    if check.judges == "facts" and not check.per_script:
        yield -1, (facts,)
        return
    if check.judges == "requests" and not check.per_script:
        yield -1, (facts, _all(cases))
        return
    for index, case in enumerate(cases):
        if check.per_script and case.script is None:
            continue
        here = facts if case.script is None else facts.but(script=case.script)
        if check.judges == "facts":
            yield index, (here,)
        elif check.judges == "requests":
            yield index, (here, case.requests)
        else:
            requests: Sequence[LoadRequest | TrainRequest]
            requests = case.requests.loads if check.judges == "load" else case.requests.trains
            for request in requests:
                yield index, (_with_model(check, here, request), request)


def _with_model(check: Check, facts: Facts, request: LoadRequest | TrainRequest) -> Facts:
    """The facts with the model of this request, for a check that asks for it."""
    if "model" not in (*check.needs, *check.wants):
        return facts
    load = request if isinstance(request, LoadRequest) else request.load
    name = load.call.seen("pretrained_model_name_or_path") if load is not None else None
    models = facts.state("models")
    if isinstance(models, Unknown):
        return facts.but(model=models)
    elsewhere = Unknown("neither a folder here nor read from the Hub", skipped=True)
    return facts.but(model=next((m for m in models if m.name == name), elsewhere))


def _all(cases: Sequence[Case]) -> Requests:
    return Requests(
        loads=tuple(r for c in cases for r in c.requests.loads),
        trains=tuple(r for c in cases for r in c.requests.trains),
        imports=tuple(sorted({i for c in cases for i in c.requests.imports})),
    )


def _blocked_by(check: Check, index: int, results: Mapping[str, _Result]) -> str:
    for code in check.requires:
        required = results.get(code)
        if required and (index in required.where or -1 in required.where or (index == -1 and required.where)):
            return code
    return ""


def _unknown_need(check: Check, facts: Facts) -> tuple[str, Unknown] | None:
    for name in check.needs:
        value = facts.state(name)
        if isinstance(value, Unknown):
            return name, value
    return None


def _ignored(finding: Finding, cases: Sequence[Case]) -> bool:
    site = finding.site
    if site is None:
        return False
    for case in cases:
        if case.script is None or case.script.path != site.path:
            continue
        lines = range(site.line, max(site.line, site.end_line) + 1)
        keys = {str(n) if site.cell is None else f"{site.cell}:{n}" for n in lines}
        for key in keys & set(case.script.ignores):
            words = case.script.ignores[key]
            if any(w == "*" or w.lower() == finding.name or finding.code.startswith(w.upper()) for w in words):
                return True
    return False


def _sorted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    def key(finding: Finding) -> tuple[Any, ...]:
        site = finding.site
        place = ("", -1, 0, 0) if site is None else (site.path, site.cell or 0, site.line, site.column)
        return SEVERITIES.index(finding.severity), finding.code, place, finding.text

    unique: dict[tuple[Any, ...], Finding] = {}
    for finding in findings:
        site = finding.site
        unique.setdefault(
            (finding.code, finding.text, site and (site.path, site.cell, site.line, site.column)), finding
        )
    return tuple(sorted(unique.values(), key=key))
