"""How a plan is made: rounds on a simulated world until no check proposes anything more, pip first.

What a fix removes, what it leaves and what it adds is found by judging that world; nothing is promised by a check.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from qlora_doctor.errors import RepairError
from qlora_doctor.examine import Examination
from qlora_doctor.facts import Facts, Unknown, canonical
from qlora_doctor.finding import Finding, at_least
from qlora_doctor.fix import Advice, EnvVar, Fix, LoadKwarg, PipRequirement, SourceEdit, TrainSetting
from qlora_doctor.judge import Verdict
from qlora_doctor.repair import pips
from qlora_doctor.repair.plan import (
    Conflict,
    FileChange,
    Left,
    Plan,
    Solution,
    Solver,
    Step,
    blind,
    compare,
    exactly,
    identity,
    judged_gone,
)
from qlora_doctor.repair.simulate import facts_after, facts_with
from qlora_doctor.repair.targets import Target, claim, find_target, target_key
from qlora_doctor.repair.text import clash
from qlora_doctor.repair.world import World, carry_out, start

# A round makes one change, so the limit is one on a plan that does not come to rest.
ROUNDS = 200
NEEDS_UNSAFE = "needs --unsafe: "
_Key: TypeAlias = tuple[str, str, int | None, int, str]


def make_plan(
    examination: Examination, *, unsafe: bool = False, pip: bool = True, solver: Solver | None = None
) -> Plan:
    """The plan for what an examination found.

    Args:
        unsafe: take the unsafe fixes too.
        pip: False leaves the packages as they are and plans for those.
        solver: asked once the pip requirements are settled; without it their own bounds are simulated.
    """
    planner = _Planner(examination, unsafe, pip, solver)
    while True:
        try:
            return planner.plan()
        except _Disagreement as error:
            planner = _Planner(examination, unsafe, pip, solver, planner.banned | {error.key: error.conflict})


class _Disagreement(Exception):
    """A later round sets again what an earlier one set: the plan starts over without either."""

    def __init__(self, key: tuple[object, ...], conflict: Conflict) -> None:
        super().__init__(conflict.what)
        self.key = key
        self.conflict = conflict


@dataclass(slots=True)
class _Planner:
    examination: Examination
    unsafe: bool
    with_pip: bool
    solver: Solver | None
    banned: dict[tuple[object, ...], Conflict] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    refused: dict[_Key, str] = field(default_factory=dict)
    done: dict[tuple[object, ...], tuple[str, str]] = field(default_factory=dict)
    merged: pips.Merged = field(default_factory=pips.Merged)
    solution: Solution | None = None
    unsafe_pip: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, Finding] = field(default_factory=dict)

    def plan(self) -> Plan:
        first = start(self.examination)
        before = first.verdict
        world, rounds = first, 0
        while rounds < ROUNDS:
            rounds += 1
            settled = self._pip_round(world) if self.with_pip else None
            if settled is not None:
                world = settled
                continue
            changed = self._round(world)
            if changed is None:
                break
            world = changed
        after = world.verdict
        gone, added = compare(before, after)
        gone = self._without_waiting(gone, after)
        facts = self.examination.facts
        packages = facts.state("packages")
        return Plan(
            steps=(*self._pip_steps(first), *self.steps),
            conflicts=(*self._pip_conflicts(), *dict.fromkeys(self.banned.values())),
            removes=gone,
            remains=tuple(
                [Left(f, self._why(f, world)) for f in after.findings]
                + [Left(f, "can be judged only after the installation") for f in self.waiting.values()]
            ),
            adds=added,
            files=tuple(_file_change(world, path) for path in world.files),
            pip=self._requirements(),
            environ=tuple(s.fix for s in self.steps if isinstance(s.fix, EnvVar)),
            solution=self.solution,
            rounds=rounds,
            unsafe=self.unsafe,
            before=None if isinstance(packages, Unknown) else packages,
        )

    # pip

    def _requirements(self) -> tuple[PipRequirement, ...]:
        return self.merged.requirements(self.examination.facts)

    def _pip_round(self, world: World) -> World | None:
        """The world with every pip fix that is proposed now; None where there is no new one."""
        new = False
        for finding in world.verdict.findings:
            for fix in finding.fixes:
                if not isinstance(fix, PipRequirement) or fix.applicability == "display-only":
                    continue
                if self._may(fix, finding) and self.merged.add(fix, finding.code):
                    new = True
        if not new:
            return None
        return self._installed(world)

    def _may(self, fix: PipRequirement, finding: Finding) -> bool:
        key = _key(finding, fix)
        if key in self.refused:
            return False
        if finding.severity == "info":
            self.refused[key] = f"packages are not changed for what this run does not meet: {fix.title}"
            return False
        before = self.examination.facts
        reasons = pips.risk((fix,), before, facts_after(before, (fix,)))
        if reasons and not self.unsafe:
            self.refused[key] = f"{NEEDS_UNSAFE}{fix.title} ({'; '.join(reasons.values())})"
            return False
        return True

    def _prune(self, world: World) -> None:
        """Takes out what nobody asks for any more once the rest is installed."""
        base = self.examination.facts
        whole = blind(dataclasses.replace(world, facts=facts_after(base, self._requirements())).verdict)
        for name in reversed(list(self.merged.asked)):
            others = [f for f in self._requirements() if pips.name_of(f) != name]
            if not others:
                return
            without = dataclasses.replace(world, facts=facts_after(base, others)).verdict
            asked = {
                pips.name_of(fix)
                for finding in without.findings
                for fix in finding.fixes
                if isinstance(fix, PipRequirement) and finding.severity != "info"
            }
            if name not in asked and not blind(without) - whole:
                del self.merged.asked[name]

    def _installed(self, world: World) -> World | None:
        base = self.examination.facts
        self._prune(world)
        requirements = self._requirements()
        facts = facts_after(base, requirements)
        if self.solver is not None and requirements:
            self.solution = self.solver(requirements)
            if self.solution.packages is not None:
                facts = facts_with(base, self.solution.packages)
        reasons = pips.risk(requirements, base, facts)
        if reasons and not self.unsafe:
            # Together, or by what the solver adds, they do more than each of them alone.
            for name, reason in reasons.items():
                for fix, code in self.merged.asked.pop(name, []):
                    self.refused[_pip_key(code, fix)] = f"{NEEDS_UNSAFE}{fix.title} ({reason})"
            return self._installed(world)
        self.unsafe_pip = reasons
        environ = [s.fix for s in self.steps if isinstance(s.fix, EnvVar)]
        return dataclasses.replace(world, facts=facts_after(facts, environ))

    def _pip_steps(self, first: World) -> list[Step]:
        steps = []
        so_far: list[PipRequirement] = []
        requirements = self._requirements()
        verdict = first.verdict
        for number, fix in enumerate(requirements):
            so_far.append(fix)
            facts = self._facts_with(so_far, whole=number == len(requirements) - 1)
            after = dataclasses.replace(first, facts=facts).verdict
            name = pips.name_of(fix)
            gone = judged_gone(compare(verdict, after)[0], after)
            # What another step of the same install brought in between is not worth a word.
            gone = tuple(f for f in gone if any(exactly(f) == exactly(g) for g in first.verdict.findings))
            steps.append(Step(fix, fix, self.merged.codes(name), gone, self.unsafe_pip.get(name, "")))
            verdict = after
        return steps

    def _facts_with(self, fixes: Sequence[PipRequirement], whole: bool) -> Facts:
        """The facts after some of the package fixes, at the versions that the solver chose where it was asked."""
        base = self.examination.facts
        solved = self.solution.packages if self.solution is not None else None
        if solved is None:
            return facts_after(base, fixes)
        if whole:
            return facts_with(base, solved)
        names = {pips.name_of(f) for f in fixes}
        kept = tuple(d for d in base.packages.distributions if canonical(d.name) not in names)
        new = tuple(d for d in solved.distributions if canonical(d.name) in names)
        return facts_with(base, dataclasses.replace(base.packages, distributions=(*kept, *new)))

    def _pip_conflicts(self) -> list[Conflict]:
        conflicts = []
        for name, entries in self.merged.clashes(self.examination.facts).items():
            codes = tuple(sorted({code for _, code in entries}))
            conflicts.append(Conflict(name, codes, tuple(dict.fromkeys(fix.title for fix, _ in entries))))
        return conflicts

    # everything else

    def _round(self, world: World) -> World | None:
        """The world after the first finding that can be fixed now; None where there is none."""
        verdict = world.verdict
        later = self._clashes(world, verdict)
        for finding in verdict.findings:
            fixes = [f for f in finding.fixes if self._wanted(f, finding)]
            if not fixes or any(_key(finding, f) in later for f in fixes):
                continue
            changed = self._try(world, verdict, finding, fixes)
            if changed is not None:
                return changed
        return None

    def _wanted(self, fix: Fix, finding: Finding) -> bool:
        if isinstance(fix, (PipRequirement, Advice)) or fix.applicability == "display-only":
            return False
        if _key(finding, fix) in self.refused:
            return False
        if fix.applicability == "unsafe" and not self.unsafe:
            self.refused[_key(finding, fix)] = NEEDS_UNSAFE + fix.title
            return False
        return True

    def _clashes(self, world: World, verdict: Verdict) -> set[_Key]:
        """Refuses the fixes that disagree; gives the keys of those that must wait for a rename of their argument."""
        asked: dict[tuple[object, ...], list[tuple[Finding, Fix, str]]] = {}
        for finding in verdict.findings:
            for fix in finding.fixes:
                key = target_key(world, fix, finding) if self._wanted(fix, finding) else None
                if key is not None:
                    asked.setdefault(key, []).append((finding, fix, claim(world, fix, finding)))
        later = set()
        for key, entries in asked.items():
            if len({value for _, _, value in entries if value}) > 1:
                self.banned.setdefault(key, _conflict([(finding, fix) for finding, fix, _ in entries]))
            conflict = self.banned.get(key)
            renamed = any(not value for _, _, value in entries)
            for finding, fix, value in entries:
                if conflict is not None:
                    self.refused[_key(finding, fix)] = _disagree(conflict)
                elif renamed and value:
                    later.add(_key(finding, fix))
        self._overlaps(verdict)
        return later

    def _overlaps(self, verdict: Verdict) -> None:
        edits = [
            (finding, fix)
            for finding in verdict.findings
            for fix in finding.fixes
            if fix.kind == "source-edit" and self._wanted(fix, finding)
        ]
        for index, (finding, one) in enumerate(edits):
            for other_finding, other in edits[index + 1 :]:
                if (one.path, one.cell) == (other.path, other.cell) and clash(one.edits, other.edits):
                    conflict = _conflict([(finding, one), (other_finding, other)])
                    self.banned[(one.path, one.cell, one.edits)] = conflict
                    for f, fix in ((finding, one), (other_finding, other)):
                        self.refused[_key(f, fix)] = _disagree(conflict)

    def _try(self, world: World, verdict: Verdict, finding: Finding, fixes: list[Fix]) -> World | None:
        keys = [_key(finding, f) for f in fixes]
        after_world = world
        steps: list[Step] = []
        marks: dict[tuple[object, ...], tuple[str, str]] = {}
        try:
            targets: list[tuple[Fix, Target | None]] = []
            for fix in fixes:
                mark = target_key(world, fix, finding)
                if mark is not None:
                    value = claim(world, fix, finding)
                    self._check_again(mark, value, finding)
                    marks[mark] = (value, finding.code)
                argument = fix if isinstance(fix, (LoadKwarg, TrainSetting)) else None
                targets.append((fix, find_target(world, argument, finding) if argument else None))
            # Edits first, since they name bytes; the calls are found again by their number.
            for fix, target in sorted(_together(targets), key=lambda pair: pair[1] is not None):
                after_world, applied = carry_out(after_world, fix, target)
                if applied.applicability == "unsafe" and not self.unsafe:
                    raise RepairError(NEEDS_UNSAFE + applied.title)
                steps.append(Step(applied, fix, (finding.code,)))
        except RepairError as error:
            for key in keys:
                self.refused[key] = str(error)
            return None
        after = after_world.verdict
        gone, added = compare(verdict, after)
        gone = judged_gone(gone, after)
        reason = ""
        if not any(identity(f) == identity(finding) for f in gone):
            reason = "its fix was tried on a copy and does not end it"
        elif any(f.severity != "info" and at_least(f.severity, finding.severity) for f in added):
            reason = f"its fix would bring {', '.join(sorted({f.code for f in added}))}"
        if reason:
            for key in keys:
                self.refused[key] = reason
            return None
        steps[-1] = dataclasses.replace(steps[-1], removes=gone)
        self.steps += steps
        self.done |= marks
        # Places have moved, and what could not be done before may be possible now; what is left is tried again.
        self.refused = {key: why for key, why in self.refused.items() if key[3] < 0}
        return after_world

    def _check_again(self, mark: tuple[object, ...], value: str, finding: Finding) -> None:
        """Raises _Disagreement where an earlier round gave the same argument another value."""
        earlier = self.done.get(mark)
        if earlier is None or not earlier[0] or not value or earlier[0] == value:
            return
        name = str(mark[-1])
        codes = tuple(sorted({earlier[1], finding.code}))
        raise _Disagreement(mark, Conflict(name, codes, (f"{name}: {earlier[0]}", f"{name}: {value}")))

    # what is left

    def _without_waiting(self, gone: tuple[Finding, ...], after: Verdict) -> tuple[Finding, ...]:
        judged = judged_gone(gone, after)
        for finding in gone:
            if finding not in judged:
                self.waiting[finding.code + finding.text] = finding
        return judged

    def _why(self, finding: Finding, world: World) -> str:
        reasons = []
        clashing = {n: c for n, c in zip(self.merged.clashes(world.facts), self._pip_conflicts(), strict=False)}
        for fix in finding.fixes:
            refused = self.refused.get(_key(finding, fix))
            if isinstance(fix, PipRequirement) and pips.name_of(fix) in clashing:
                reasons.append(_disagree(clashing[pips.name_of(fix)]))
            elif refused:
                reasons.append(refused)
            elif isinstance(fix, Advice):
                reasons.append(f"only you can do this: {fix.text}" + (f" ({fix.command})" if fix.command else ""))
            elif fix.applicability == "display-only":
                reasons.append(f"shown only: {fix.title}")
            elif isinstance(fix, PipRequirement) and not self.with_pip:
                reasons.append(f"needs a change of packages: {fix.title}")
            else:
                reasons.append(f"its fix was made and does not end it: {fix.title}")
        return "; ".join(dict.fromkeys(reasons)) or "there is no automatic fix; the message says what to do"


def _key(finding: Finding, fix: Fix) -> _Key:
    site = finding.site
    if isinstance(fix, PipRequirement) or site is None:
        return _pip_key(finding.code, fix)
    return finding.code, site.path, site.cell, site.start, _shape(fix)


def _pip_key(code: str, fix: Fix) -> _Key:
    return code, "", None, -1, _shape(fix)


def _shape(fix: Fix) -> str:
    """A fix without its place, which moves with every edit above it."""
    return f"{fix.kind}:{getattr(fix, 'target', '')}:{fix.title}"


def _together(fixes: Sequence[tuple[Fix, Target | None]]) -> list[tuple[Fix, Target | None]]:
    """The fixes of one finding, its edits of one file as one."""
    merged: list[tuple[Fix, Target | None]] = []
    for fix, target in fixes:
        first = next(
            (
                i
                for i, (other, _) in enumerate(merged)
                if isinstance(other, SourceEdit)
                and isinstance(fix, SourceEdit)
                and (other.path, other.cell) == (fix.path, fix.cell)
            ),
            None,
        )
        if first is None:
            merged.append((fix, target))
            continue
        other = merged[first][0]
        assert isinstance(other, SourceEdit) and isinstance(fix, SourceEdit)
        both = dataclasses.replace(
            other,
            edits=(*other.edits, *fix.edits),
            imports=tuple(dict.fromkeys((*other.imports, *fix.imports))),
            what=f"{other.what}; {fix.what}",
            applicability="unsafe" if "unsafe" in (other.applicability, fix.applicability) else "safe",
        )
        merged[first] = (both, None)
    return merged


def _conflict(entries: Sequence[tuple[Finding, Fix]]) -> Conflict:
    codes = tuple(sorted({f.code for f, _ in entries}))
    what = getattr(entries[0][1], "name", "") or getattr(entries[0][1], "path", "")
    return Conflict(what, codes, tuple(dict.fromkeys(f"{fix.title} ({f.code})" for f, fix in entries)))


def _disagree(conflict: Conflict) -> str:
    return f"{' and '.join(conflict.codes)} disagree about {conflict.what}: {' or '.join(conflict.proposals)}"


def _file_change(world: World, path: str) -> FileChange:
    encoding = next((c.script.encoding for c in world.cases if c.script and c.script.path == path), "")
    try:
        with open(path, "rb") as file:
            before: bytes | None = file.read()
    except FileNotFoundError:
        before = None
    return FileChange(path, before, world.files[path], encoding)
