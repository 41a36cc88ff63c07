"""A plan, an apply and an undo as JSON data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qlora_doctor import __version__
from qlora_doctor.finding import Finding
from qlora_doctor.fix import fix_to_data
from qlora_doctor.repair import packages
from qlora_doctor.repair.edits import diff
from qlora_doctor.repair.plan import FileChange, Left, Plan, Step
from qlora_doctor.repair.session import Prepared, Result
from qlora_doctor.repair.undo import Taken
from qlora_doctor.report.plan import also_moved
from qlora_doctor.report.text import place

SCHEMA = 1


def undo_data(taken: Taken) -> dict[str, Any]:
    """An undo as JSON data."""
    if taken.files is None:
        return {"schema": SCHEMA, "id": "", "restored": [], "untouched": [], "kept": [], "packages": []}
    kept = [{"path": path, "why": why} for path, why in taken.files.kept]
    return {
        "schema": SCHEMA,
        "id": taken.files.id,
        "restored": list(taken.files.restored),
        "untouched": list(taken.files.untouched),
        "kept": kept,
        "packages": list(taken.packages),
    }


def plan_data(prepared: Prepared, code: int) -> dict[str, Any]:
    """A plan as JSON data."""
    data = {
        "schema": SCHEMA,
        "version": __version__,
        "exit_code": code,
        "applied": False,
        **_plan(prepared, prepared.plan),
    }
    if prepared.fuller is not None:
        data["with_unsafe"] = _plan(prepared, prepared.fuller)
    return data


def result_data(result: Result, remains: Sequence[Left], code: int) -> dict[str, Any]:
    """An apply as JSON data."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "exit_code": code,
        "applied": bool(result.id),
        "id": result.id,
        "written": list(result.paths),
        "packages_changed": result.installed,
        "notes": list(result.notes),
        "remains": [_left(left) for left in remains],
    }


def _plan(prepared: Prepared, plan: Plan) -> dict[str, Any]:
    commands: list[list[str]] = []
    refused = ""
    if plan.pip:
        commands = packages.commands_of(prepared.target, plan.pip, plan.before)
        refused = packages.refusal(plan, prepared.target)
    sizes = plan.solution.sizes if plan.solution else {}
    return {
        "unsafe": plan.unsafe,
        "steps": [_step(plan, step) for step in plan.steps],
        "commands": commands,
        "packages_refused": refused,
        "downloads": {name: sizes[name] for name in sorted(sizes)},
        "also_moved": also_moved(plan),
        "diff": "".join(_diff(c) for c in plan.files),
        "conflicts": [
            {"about": c.what, "codes": list(c.codes), "proposals": list(c.proposals)} for c in plan.conflicts
        ],
        "removes": [_finding(f) for f in plan.removes],
        "adds": [_finding(f) for f in plan.adds],
        "remains": [_left(left) for left in plan.remains],
    }


def _step(plan: Plan, step: Step) -> dict[str, Any]:
    return {
        "fix": fix_to_data(step.fix),
        "proposed": fix_to_data(step.proposed),
        "codes": list(step.codes),
        "removes": [_finding(f) for f in step.removes],
        "note": step.note,
    }


def _diff(change: FileChange) -> str:
    return diff(change.path, change.before, change.after, change.encoding)


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity,
        "message": finding.text,
        "place": place(finding.site),
    }


def _left(left: Left) -> dict[str, Any]:
    return {**_finding(left.finding), "why": left.why}
