"""How often each check found something, the most frequent first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from qlora_doctor.finding import SEVERITIES, Finding
from qlora_doctor.report.columns import table

SCHEMA = 1


def data(findings: Sequence[Finding], code: int) -> dict[str, Any]:
    """The counts as JSON data. `fixable` counts the findings with a repair that `fix` can make."""
    return {"schema": SCHEMA, "exit_code": code, "statistics": rows(findings)}


def rows(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """One row a code and severity: the most frequent first, then the gravest."""
    numbers = Counter((f.code, f.name, f.severity) for f in findings)
    mendable = Counter(
        (f.code, f.severity) for f in findings if any(x.applicability != "display-only" for x in f.fixes)
    )
    ordered = sorted(numbers.items(), key=lambda pair: (-pair[1], SEVERITIES.index(pair[0][2]), pair[0][0]))
    return [
        {"code": code, "name": name, "severity": severity, "count": count, "fixable": mendable[code, severity]}
        for (code, name, severity), count in ordered
    ]


def render(findings: Sequence[Finding]) -> str:
    """The counts as a table; `[*]` marks what `fix` can repair."""
    if not findings:
        return "nothing found"
    lines = [
        [str(r["count"]), r["code"], r["severity"], "[*]" if r["fixable"] else "[ ]", r["name"]] for r in rows(findings)
    ]
    total = sum(r["fixable"] for r in rows(findings))
    return "\n".join([*table(lines), f"[*] {total} of {len(findings)} can be repaired with `qlora-doctor fix`"])
