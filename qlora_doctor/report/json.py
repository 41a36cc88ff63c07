"""The report as JSON. Its shape is published in docs/schema/report.schema.json and changes only with `schema`."""

from __future__ import annotations

import json
from typing import Any

from qlora_doctor import __version__, redaction
from qlora_doctor.examine import Examination
from qlora_doctor.finding import Finding, Outcome
from qlora_doctor.fix import fix_to_data
from qlora_doctor.source import Site

SCHEMA = 1


def report_data(examination: Examination, code: int, verbose: bool = False) -> dict[str, Any]:
    """The report as JSON data; `verbose` adds the facts. `code` is the exit code."""
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "version": __version__,
        "exit_code": code,
        "outcomes": [_outcome(o) for o in examination.verdict.outcomes],
        "findings": [_finding(f) for f in examination.verdict.findings],
    }
    if verbose:
        data["facts"] = examination.facts.to_wire()
    return data


def render(examination: Examination, code: int, verbose: bool = False) -> str:
    """The report as text, with sorted keys and without secrets: the same verdict gives the same bytes."""
    data = redaction.data(report_data(examination, code, verbose), redaction.secrets)
    return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, default=str)


def _outcome(outcome: Outcome) -> dict[str, Any]:
    reason = outcome.reason
    if outcome.outcome == "crashed":
        reason = f"{reason} [{outcome.distribution}]"
    return {"code": outcome.code, "name": outcome.name, "outcome": outcome.outcome, "reason": reason}


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity,
        "message": finding.text,
        "evidence": dict(finding.evidence),
        "location": _location(finding.site),
        "fixes": [fix_to_data(fix) for fix in finding.fixes],
    }


def _location(site: Site | None) -> dict[str, Any] | None:
    if site is None:
        return None
    place: dict[str, Any] = {"path": site.path, "line": site.line, "column": site.column}
    if site.cell is not None:
        place["cell"] = site.cell
    return place
