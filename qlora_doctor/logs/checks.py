"""The diagnoses of a log as checks, so that their fixes are planned, proved and undone like any other.

What a log says stays found until the world is as its fixes ask: the packages installed, the variables set, the
arguments passed. So the planner can tell on its simulated world which of them ends what.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from qlora_doctor.errors import NotKnown, UsageError
from qlora_doctor.examine import Question, examine
from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, EnvVar, Fix, LoadKwarg, PipRequirement, TrainSetting
from qlora_doctor.logs.diagnose import Report, diagnose, findings
from qlora_doctor.registry import Check
from qlora_doctor.request import Requests
from qlora_doctor.source import Call, Site, show

PAGE = "What a log says of a run that failed. Its fixes are those of the signature; see `qlora-doctor explain NAME`."


PARTS = ("interpreter", "packages", "torch", "bitsandbytes", "gpus", "driver", "host", "environ")
"""What decides between the causes of a message, as far as the probe can tell."""


@dataclass(frozen=True, slots=True)
class FromLog:
    """The checks of one log. `notes` are for the person: what of it needs no repair, and what cannot be known."""

    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()


def ask_log(question: Question, path: str) -> FromLog:
    """The checks of the log at `path` (`-`: stdin), diagnosed with the facts and the script that the question means.

    Raises:
        UsageError: it cannot be read, or the question cannot be answered.
    """
    examination = examine(replace(question, parts=(*question.parts, *PARTS), live=False))
    facts = examination.facts
    codes = frozenset(f.code for f in examination.verdict.findings)
    requests = Requests(
        loads=tuple(r for c in examination.cases for r in c.requests.loads),
        trains=tuple(r for c in examination.cases for r in c.requests.trains),
    )
    # An interpreter without the stack (pipx) did not write the log: its packages decide nothing and are left alone.
    named = bool(question.python or question.facts_file or question.ssh)
    stranger = not named and not _version(facts, "torch") and not _version(facts, "transformers")
    told = None if stranger else facts
    script = next(iter(examination.scripts), None)
    try:
        if path == "-":
            report = diagnose(sys.stdin.buffer, told, script=script, codes=codes)
        else:
            with Path(path).open("rb") as stream:
                report = diagnose(stream, told, script=script, codes=codes)
    except OSError as error:
        raise UsageError(f"--from-log {path}: {error.strerror or error}") from None
    found = checks_of(report, facts, requests, packages_too=not stranger)
    notes = list(found.notes)
    if not report.diagnoses:
        notes.append(
            f"{path}: no failure that is known was found in {report.lines} lines; `qlora-doctor diagnose` shows its end"
        )
    if stranger and any(isinstance(f, PipRequirement) for d in report.diagnoses for f in d.best.cause.fixes):
        notes.append(
            "this interpreter holds neither torch nor transformers, so its packages are left alone; name the one that wrote "
            "the log with --python"
        )
    return FromLog(found.checks, tuple(notes))


def checks_of(report: Report, facts: Facts, requests: Requests, packages_too: bool = True) -> FromLog:
    """A check for each diagnosis of `report`.

    `facts` and `requests` are those before anything is changed. Without `packages_too` nothing is installed, only shown.
    """
    checks, settled = [], []
    for number, found in enumerate(findings(report), 1):
        finding = replace(found, fixes=tuple(_bounded(f, facts, packages_too) for f in found.fixes))
        name = found.name
        code = f"LOG{number:03}"
        if _automatic(finding) and not list(_judged(finding, facts, requests)):
            settled.append(f"{finding.text} Nothing to do: all that it asks for is so already")
            continue
        checks.append(Check(code, name, _function(finding), (), "requests", "0.1", (), PAGE, "this log"))
    return FromLog(tuple(checks), tuple(settled))


def _function(finding: Finding):  # type: ignore[no-untyped-def]
    def says(facts: Facts, requests: Requests) -> Iterator[Finding]:
        yield from _judged(finding, facts, requests)

    return says


def _bounded(fix: Fix, facts: Facts, packages_too: bool) -> Fix:
    """`pip install -U NAME` as a requirement that the installed version does not satisfy."""
    if not isinstance(fix, PipRequirement):
        return fix
    if not packages_too:
        return replace(fix, applicability="display-only")
    version = _version(facts, fix.requirement)
    bare = not fix.remove and fix.requirement.replace("-", "").replace("_", "").isalnum()
    return replace(fix, requirement=f"{fix.requirement}>{version.partition('+')[0]}") if bare and version else fix


def _automatic(finding: Finding) -> list[Fix]:
    return [f for f in finding.fixes if not isinstance(f, Advice) and f.applicability != "display-only"]


def _judged(finding: Finding, facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The finding at each place where one of its fixes would still change something; once where it has none."""
    fixes = _automatic(finding)
    if not fixes:
        yield finding
        return
    rest = [f for f in fixes if isinstance(f, (PipRequirement, EnvVar)) and not _settled(f, facts)]
    arguments = [f for f in fixes if isinstance(f, (LoadKwarg, TrainSetting))]
    places = list(_places(arguments, requests))
    for site, there in places:
        yield replace(finding, site=site, fixes=(*_shown(finding), *rest, *there))
    if not places and (rest or (arguments and not _calls(arguments, requests))):
        yield replace(finding, fixes=(*_shown(finding), *rest, *arguments))


def _shown(finding: Finding) -> tuple[Fix, ...]:
    return tuple(f for f in finding.fixes if isinstance(f, Advice) or f.applicability == "display-only")


def _calls(
    fixes: Iterable[LoadKwarg | TrainSetting], requests: Requests
) -> list[tuple[LoadKwarg | TrainSetting, Call]]:
    """Each fix with every call that it may be for."""
    found: list[tuple[LoadKwarg | TrainSetting, Call]] = []
    for fix in fixes:
        if isinstance(fix, TrainSetting):
            calls = [getattr(train, fix.target) for train in requests.trains]
        elif fix.target == "load":
            calls = [load.call for load in requests.loads]
        else:
            calls = [load.call.arguments.get("quantization_config") for load in requests.loads]
        found += [(fix, call) for call in calls if isinstance(call, Call)]
    return found


def _places(fixes: Iterable[LoadKwarg | TrainSetting], requests: Requests) -> Iterator[tuple[Site, tuple[Fix, ...]]]:
    """The sites of the calls that are not yet as the fixes ask, with the fixes for each."""
    found: dict[tuple[str, int | None, int], tuple[Site, list[Fix]]] = {}
    for fix, call in _calls(fixes, requests):
        if call.site is not None and not _passed(fix, call):
            key = (call.site.path, call.site.cell, call.site.start)
            found.setdefault(key, (call.site, []))[1].append(replace(fix, site=call.site))
    for site, wanted in found.values():
        yield site, tuple(wanted)


def _passed(fix: LoadKwarg | TrainSetting, call: Call) -> bool:
    """Whether a call has the argument as the fix asks, or none to rename."""
    if fix.replaces:
        return fix.replaces not in call.arguments
    if fix.drop:
        return fix.name not in call.arguments
    return fix.name in call.arguments and show(call.arguments[fix.name]) == show(fix.value)


def _settled(fix: PipRequirement | EnvVar, facts: Facts) -> bool:
    """Whether the packages, or the variables, are as the fix asks."""
    if isinstance(fix, EnvVar):
        try:
            return facts.environ.get(fix.name) == fix.value
        except NotKnown:
            return False
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(fix.requirement)
    except InvalidRequirement:
        return False
    version = _version(facts, requirement.name)
    if fix.remove or not version:
        return bool(fix.remove and version == "")
    return requirement.specifier.contains(version, prereleases=True)


def _version(facts: Facts, name: str) -> str | None:
    """The installed version; "" where it is not installed, None where that is not known."""
    try:
        found = facts.packages.find(name)
    except NotKnown:
        return None
    return found.version if found is not None else ""
