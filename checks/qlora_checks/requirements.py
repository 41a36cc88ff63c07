"""Versions and requirement lines, read fast.

An environment of 600 distributions states some 5,000 requirements. `packaging` is asked only for what the plain forms
(`>=1.2,<2`) do not cover, and once for each distinct question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from qlora_doctor.facts import Facts, Unknown, canonical
from qlora_doctor.tables.versions import leading, lower_bound, minor, older, release, satisfies

__all__ = ["Need", "environment", "leading", "lower_bound", "minor", "needs", "older", "release", "satisfies"]

_TERM = re.compile(r"\s*(\w+)\s*(==|!=|<=|>=|<|>)\s*(['\"])([^'\"]*)\3\s*\Z")
_LINE = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*\(?([^;)@]*)\)?[^;]*(?:;(.*))?\Z", re.DOTALL)


class Need(NamedTuple):
    """One requirement line that holds here: the canonical name and the specifier ("" for any version)."""

    name: str
    specifier: str


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
