"""Versions and specifiers, read fast: `packaging` is asked only for what the plain forms (`>=1.2,<2`) do not cover."""

from __future__ import annotations

import re
from functools import lru_cache

from qlora_doctor.errors import UnknownFact

_PLAIN = re.compile(r"(\d+(?:\.\d+)*)(?:\+[\w.]+)?\Z")
_CLAUSE = re.compile(r"\s*(>=|<=|==|!=|~=|<|>)\s*(\d+(?:\.\d+)*)(\.\*)?\s*\Z")


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
