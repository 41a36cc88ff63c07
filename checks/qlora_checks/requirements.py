"""Versions and requirement lines, read fast.

An environment of 600 distributions states some 5,000 requirements. `packaging` is asked only for what the plain forms
(`>=1.2,<2`) do not cover, and once for each distinct question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from qlora_doctor.errors import UnknownFact
from qlora_doctor.facts import Facts, Unknown, canonical

_PLAIN = re.compile(r"(\d+(?:\.\d+)*)(?:\+[\w.]+)?\Z")
_CLAUSE = re.compile(r"\s*(>=|<=|==|!=|~=|<|>)\s*(\d+(?:\.\d+)*)(\.\*)?\s*\Z")
_TERM = re.compile(r"\s*(\w+)\s*(==|!=|<=|>=|<|>)\s*(['\"])([^'\"]*)\3\s*\Z")
_LINE = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*\(?([^;)@]*)\)?[^;]*(?:;(.*))?\Z", re.DOTALL)


class Need(NamedTuple):
    """One requirement line that holds here: the canonical name and the specifier ("" for any version)."""

    name: str
    specifier: str


def release(version: str) -> tuple[int, ...] | None:
    """`2.13.0+cpu` as (2, 13); None for pre-releases and what is no plain version. Trailing zeros do not count."""
    match = _PLAIN.match(version)
    if match is None:
        return None
    parts = [int(p) for p in match[1].split(".")]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def leading(version: str) -> tuple[int, ...]:
    """The numbers a version begins with: `0.50.0.dev0` as (0, 50, 0), so that a development version counts as its own."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def minor(version: str) -> str:
    """`2.13.0+cpu` as 2.13."""
    return ".".join(version.partition("+")[0].split(".")[:2])


@lru_cache(maxsize=8192)
def satisfies(version: str, specifier: str) -> bool | None:
    """Whether a version lies in a PEP 440 specifier, pre-releases included; None where one of them is malformed."""
    if not specifier.strip():
        return True
    mine = release(version)
    clauses = [_CLAUSE.match(c) for c in specifier.split(",") if c.strip()]
    if mine is None or not all(clauses):
        return _slowly(version, specifier)
    return all(_meets(mine, c[1], c[2], bool(c[3])) for c in clauses if c is not None)


def _meets(mine: tuple[int, ...], operator: str, bound: str, wildcard: bool) -> bool:
    given = tuple(map(int, bound.split(".")))
    if operator == "~=":
        return _holds(mine, ">=", release(bound) or ()) and _begins(mine, given[:-1])
    if wildcard:
        return _begins(mine, given) is (operator == "==")
    return _holds(mine, operator, release(bound) or ())


def _begins(mine: tuple[int, ...], start: tuple[int, ...]) -> bool:
    return (*mine, *(0 for _ in start))[: len(start)] == start


def _holds(mine: tuple[int, ...], operator: str, bound: tuple[int, ...]) -> bool:
    if operator == ">=":
        return mine >= bound
    if operator == "<":
        return mine < bound
    if operator == "==":
        return mine == bound
    if operator == "!=":
        return mine != bound
    return mine <= bound if operator == "<=" else mine > bound


def _slowly(version: str, specifier: str) -> bool | None:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        return SpecifierSet(specifier).contains(Version(version), prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return None


def older(version: str, floor: str) -> bool:
    """Whether `version` is older than `floor`.

    Raises:
        UnknownFact: one of them is not a version.
    """
    answer = satisfies(version, f"<{floor}")
    if answer is None:
        raise UnknownFact("version", f"{version!r} cannot be compared with {floor!r}")
    return answer


def lower_bound(specifier: str) -> str:
    """The version after `>=` or `==` in a specifier, or ""."""
    for clause in specifier.split(","):
        match = _CLAUSE.match(clause)
        if match is not None and match[1] in (">=", "=="):
            return match[2]
    return ""


def needs(lines: tuple[str, ...], environment: tuple[tuple[str, str], ...]) -> Iterator[Need]:
    """The requirement lines of one distribution that hold in an environment; lines of extras are left out."""
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        marker = (match[3] or "").strip()
        if marker and not _applies(marker, environment):
            continue
        yield Need(canonical(match[1]), match[2].strip())


@lru_cache(maxsize=2048)
def _applies(marker: str, environment: tuple[tuple[str, str], ...]) -> bool:
    if "extra" in marker and " or " not in marker:
        return False
    values = dict(environment)
    if "(" not in marker:
        answers = [[_term(term, values) for term in part.split(" and ")] for part in marker.split(" or ")]
        if not any(answer is None for part in answers for answer in part):
            return any(all(part) for part in answers)
    from packaging.markers import InvalidMarker, Marker, UndefinedComparison

    try:
        return Marker(marker).evaluate({**values, "extra": ""})
    except (InvalidMarker, UndefinedComparison):
        return False


def _term(text: str, values: dict[str, str]) -> bool | None:
    """One comparison of a marker; None where it is of a kind that is left to `packaging`."""
    match = _TERM.match(text)
    if match is None or match[1] not in values:
        return None
    name, operator, wanted = match[1], match[2], match[4]
    if name in ("python_version", "python_full_version"):
        return satisfies(values[name], operator + wanted)
    if operator in ("==", "!="):
        return (values[name] == wanted) is (operator == "==")
    return None


def environment(facts: Facts) -> tuple[tuple[str, str], ...]:
    """The marker environment of the interpreter that is judged; a machine that is not known counts as Linux x86-64."""
    python = facts.interpreter.version
    host = facts.state("host")
    system, machine, kernel = ("Linux", "x86_64", "") if isinstance(host, Unknown) else _platform(host)
    implementation = facts.interpreter.implementation
    return (
        ("python_version", ".".join(python.split(".")[:2])),
        ("python_full_version", python),
        ("implementation_name", implementation.lower()),
        ("implementation_version", python),
        ("platform_python_implementation", implementation),
        ("platform_system", system),
        ("platform_machine", machine),
        ("platform_release", kernel),
        ("platform_version", ""),
        ("sys_platform", {"Windows": "win32", "Darwin": "darwin"}.get(system, system.lower())),
        ("os_name", "nt" if system == "Windows" else "posix"),
    )


def _platform(host: object) -> tuple[str, str, str]:
    return (getattr(host, "system", ""), getattr(host, "machine", ""), getattr(host, "release", ""))
