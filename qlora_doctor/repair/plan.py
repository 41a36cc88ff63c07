"""A plan as data, and the comparison of two verdicts that says what it removes, leaves and adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from qlora_doctor.facts import Packages
from qlora_doctor.finding import Finding
from qlora_doctor.fix import EnvVar, Fix, PipRequirement
from qlora_doctor.judge import Verdict
from qlora_doctor.repair.simulate import UNTIL_INSTALLED
from qlora_doctor.repair.world import digest


@dataclass(frozen=True, slots=True)
class Solution:
    """What the solver makes of a set of requirements. `failure` is its own words where it found none.

    `packages` is the whole set as it would be; `sizes` maps a canonical name to bytes to download, None unknown.
    """

    packages: Packages | None = None
    sizes: dict[str, int | None] = field(default_factory=dict)
    failure: str = ""


Solver: TypeAlias = Callable[[Sequence[PipRequirement]], Solution]


@dataclass(frozen=True, slots=True)
class Step:
    """One change. `fix` is the form that is applied, `proposed` what the checks asked for.

    `removes` are the findings that end with this step. `note` says more: why it is not safe, what it also moves.
    """

    fix: Fix
    proposed: Fix
    codes: tuple[str, ...]
    removes: tuple[Finding, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Fixes that cannot both be made; none of them is."""

    what: str
    codes: tuple[str, ...]
    proposals: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Left:
    """A finding that stays, and why."""

    finding: Finding
    why: str


@dataclass(frozen=True, slots=True)
class FileChange:
    """One file as it is and as it will be; None where it is not there."""

    path: str
    before: bytes | None
    after: bytes | None
    encoding: str = ""

    @property
    def digests(self) -> tuple[str, str]:
        """SHA-256 before and after."""
        return digest(self.before), digest(self.after)


@dataclass(frozen=True, slots=True)
class Plan:
    """All changes in their order, and what comes of them. `world` is what the last round left."""

    steps: tuple[Step, ...]
    conflicts: tuple[Conflict, ...]
    removes: tuple[Finding, ...]
    remains: tuple[Left, ...]
    adds: tuple[Finding, ...]
    files: tuple[FileChange, ...]
    pip: tuple[PipRequirement, ...]
    environ: tuple[EnvVar, ...]
    solution: Solution | None = None
    rounds: int = 0
    unsafe: bool = False
    before: Packages | None = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.steps


def compare(before: Verdict, after: Verdict) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """The findings that are gone, and those that are new. A finding whose words alone changed is the same one."""
    old, new = list(before.findings), list(after.findings)
    for same in (exactly, identity):
        for finding in list(old):
            match = next((f for f in new if same(f) == same(finding)), None)
            if match is not None:
                old.remove(finding)
                new.remove(match)
    return tuple(old), tuple(new)


def exactly(finding: Finding) -> tuple[object, ...]:
    return (*identity(finding), finding.text)


def identity(finding: Finding) -> tuple[object, ...]:
    site = finding.site
    return finding.code, site.path if site else "", site.cell if site else None


def judged_gone(gone: tuple[Finding, ...], after: Verdict) -> tuple[Finding, ...]:
    """Those of `gone` whose check could still be run: what cannot be judged any more is not mended."""
    unjudged = blind(after)
    return tuple(f for f in gone if f.code not in unjudged)


def blind(verdict: Verdict) -> set[str]:
    """The checks that could not say, or that wait for the installation."""
    return {
        o.code
        for o in verdict.outcomes
        if o.outcome in ("unknown", "crashed") or (o.outcome == "skipped" and UNTIL_INSTALLED.reason in o.reason)
    }
