"""A plan, an apply and an undo in words, and as JSON data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qlora_doctor.facts import canonical
from qlora_doctor.finding import Finding, Severity, at_least
from qlora_doctor.fix import EnvVar, PipRequirement
from qlora_doctor.i18n import finding_text, said, tr
from qlora_doctor.repair import packages, pips
from qlora_doctor.repair.edits import diff
from qlora_doctor.repair.environment import quote_cmd, quote_ps1, quote_sh, source_lines
from qlora_doctor.repair.plan import Left, Plan, Step
from qlora_doctor.repair.session import Prepared, Result
from qlora_doctor.repair.sizes import about, shown
from qlora_doctor.repair.tools import conda_note
from qlora_doctor.repair.undo import Taken, undo_command
from qlora_doctor.report import counts, target
from qlora_doctor.report.columns import table
from qlora_doctor.report.text import place


def render(prepared: Prepared, dry: bool = True) -> str:
    """What `fix` would do, what each step removes, and what stays."""
    examination, plan = prepared.examination, prepared.plan
    lines = []
    if plan.empty:
        safe = "" if plan.unsafe else " safely"
        lines.append(f"nothing to repair{safe} in {target(examination)}")
    else:
        hint = " (a dry run: nothing is changed; --apply carries it out)" if dry else ""
        lines.append(f"the plan for {target(examination)}{hint}")
    lines += _steps(prepared, plan)
    if not dry:
        return _plain(lines)
    lines += _summary(plan)
    if prepared.fuller is not None:
        lines += ["", "with --unsafe, which may change what you meant, the plan would be:"]
        lines += _steps(prepared, prepared.fuller)
        lines += _summary(prepared.fuller)
    return _plain(lines)


# What a file or a package's name may hold, and a terminal would obey; of a CRLF file's lines the end alone is shown.
_CONTROL = re.compile(r"\r(?=\n|$)|([\x00-\x08\x0b-\x1f\x7f-\x9f])", re.MULTILINE)


def _plain(lines: Sequence[str]) -> str:
    return _CONTROL.sub(lambda m: "\ufffd" if m[1] else "", "\n".join(map(said, lines)))


def _steps(prepared: Prepared, plan: Plan) -> list[str]:
    lines: list[str] = []
    lines += _packages(prepared, plan)
    lines += _files(prepared, plan)
    lines += _environment(prepared, plan)
    for conflict in plan.conflicts:
        between = " and ".join(conflict.codes)
        lines += ["", f"not done: {between} disagree about {conflict.what}: {' or '.join(conflict.proposals)}"]
    return lines


def _packages(prepared: Prepared, plan: Plan) -> list[str]:
    if not plan.pip:
        return []
    lines = ["", f"packages of {prepared.target.python}, in one install:"]
    for step in plan.steps:
        if isinstance(step.fix, PipRequirement):
            lines.append("  " + _move(plan, step))
            lines += _removed(step)
    lines += [f"  comes along: {text}" for text in also_moved(plan)]
    refused = packages.refusal(plan, prepared.target)
    if refused:
        lines.append(f"  cannot be applied: {refused}")
        lines.append("  (--apply would then edit the files for the packages that are there, not for these)")
    elif plan.solution is not None and plan.solution.sizes:
        sizes = list(plan.solution.sizes.values())
        total = sum(s for s in sizes if s is not None)
        rough = [about(n) for n, s in plan.solution.sizes.items() if s is None]
        unknown = sum(s is None for s in rough)
        known = [shown(total)] if total or not rough else []
        table = sum(s for s in rough if s is not None)
        known += [f"about {shown(table)} (by the table of this doctor)"] if table else []
        more = [f"{unknown} of unknown size"] if unknown else []
        lines.append(f"  to download: {' and '.join(known + more)}")
    if not refused:
        lines.append(
            "  proved by the installer's dry run; --apply also writes the versions to .qlora-doctor/constraints.txt"
        )
    tool = prepared.target.tool
    if tool is not None:
        lines.append(f"  {tool.note}")
    note = conda_note(prepared.target.prefix)
    lines += [f"  {note}"] if note else []
    for command in packages.commands_of(prepared.target, plan.pip, plan.before):
        lines += [f"  {shell}: {text}" for shell, text in quoted(command)]
    return lines


def quoted(command: Sequence[str]) -> list[tuple[str, str]]:
    """A command for bash, PowerShell and cmd; one line where they agree."""
    bash = " ".join(quote_sh(word) for word in command)
    plain = all(word == quote_sh(word) for word in command)
    if plain:
        return [("run", bash)]
    powershell = " ".join(word if word == quote_sh(word) else quote_ps1(word) for word in command)
    if powershell.startswith("'"):
        powershell = "& " + powershell
    return [("bash", bash), ("PowerShell", powershell), ("cmd", " ".join(quote_cmd(word) for word in command))]


def _move(plan: Plan, step: Step) -> str:
    name = pips.name_of(step.fix) if isinstance(step.fix, PipRequirement) else ""
    assert isinstance(step.fix, PipRequirement)
    if step.fix.remove:
        text = f"{step.fix.requirement}: removed"
    else:
        text = f"{step.fix.requirement}: {_versions(plan, name)}"
    codes = ", ".join(step.codes)
    return f"{text}  [{codes}]" + (f"  (not safe: {step.note})" if step.note else "")


def _versions(plan: Plan, name: str) -> str:
    old = plan.before.find(name) if plan.before else None
    after = plan.solution.packages if plan.solution else None
    new = after.find(name) if after else None
    sizes = plan.solution.sizes if plan.solution else {}
    size = f" ({shown(sizes[canonical(name)])})" if canonical(name) in sizes else ""
    return f"{old.version if old else 'not installed'} -> {new.version if new else 'what the installer chooses'}{size}"


def also_moved(plan: Plan) -> list[str]:
    if plan.before is None or plan.solution is None or plan.solution.packages is None:
        return []
    asked = {pips.name_of(f) for f in plan.pip}
    names = [n for n in pips.changed(plan.before, plan.solution.packages) if n not in asked]
    older = {name for name, _, _ in pips.downgraded(plan.before, plan.solution.packages, asked)}
    return [f"{name}: {_versions(plan, name)}{' (an OLDER version)' if name in older else ''}" for name in names]


def _files(prepared: Prepared, plan: Plan) -> list[str]:
    lines: list[str] = []
    edits = [s for s in plan.steps if not isinstance(s.fix, (PipRequirement, EnvVar))]
    if not edits:
        return []
    for step in edits:
        safe = "" if step.fix.applicability == "safe" else " (unsafe)"
        lines += [
            f"  {getattr(step.fix, 'path', '')}: {step.fix.title}  [{', '.join(step.codes)}]{safe}",
            *_removed(step),
        ]
    shown_files = [diff(c.path, c.before, c.after, c.encoding) for c in plan.files]
    return ["", "files:", *lines, "", *[text.rstrip("\n") for text in shown_files if text]]


def _environment(prepared: Prepared, plan: Plan) -> list[str]:
    steps = [s for s in plan.steps if isinstance(s.fix, EnvVar)]
    if not steps:
        return []
    lines = ["", "environment variables, in files that you source before the run:"]
    for step in steps:
        lines += [f"  {step.fix.title}  [{', '.join(step.codes)}]", *_removed(step)]
    return lines + [f"  {shell}: {line}" for shell, line in source_lines(prepared.project)]


def _removed(step: Step) -> list[str]:
    return [f"    removes {_named(f)}" for f in step.removes]


def _named(finding: Finding) -> str:
    return f"{tr(finding.severity)} {finding.code} {finding.name} ({place(finding.site)})"


def _summary(plan: Plan) -> list[str]:
    lines = [""]
    if plan.steps:
        lines.append(f"removes: {counts(plan.removes) or 'nothing'}")
    if plan.adds:
        lines += ["adds:", *(f"  {_named(f)}: {finding_text(f)}" for f in plan.adds)]
    return [*lines, *_remaining(plan.remains)]


def _remaining(remains: Sequence[Left]) -> list[str]:
    if not remains:
        return ["remains: nothing"]
    lines = [f"remains: {counts([left.finding for left in remains])}"]
    for left in remains:
        lines += [f"  {_named(left.finding)}", f"    {finding_text(left.finding)}", f"    why: {left.why}"]
    return lines


def render_result(result: Result, remains: Sequence[Left]) -> str:
    """What an apply did, and what is left."""
    lines = list(result.notes)
    if result.installed:
        lines.append("packages changed, and the facts read again")
    lines += [f"written: {path}" for path in result.paths]
    if result.id:
        lines.append(f"take it back with: {undo_command(result.project, result.id)}")
    elif not lines:
        lines.append("nothing was changed")
    return _plain([*lines, "", *_remaining(remains)])


def render_undo(taken: Taken) -> str:
    """What an undo did."""
    if taken.files is None:
        return "nothing is left to undo here"
    done = taken.files
    lines = [f"undid {done.id}"]
    lines += [f"restored: {path}" for path in done.restored]
    lines += [f"already as before the fix: {path}" for path in done.untouched]
    lines += [f"not restored: {path}: {why}" for path, why in done.kept]
    return _plain([*lines, *taken.packages])


def render_list(entries: Sequence[Mapping[str, Any]]) -> str:
    """The changes of a project, oldest first."""
    if not entries:
        return "nothing was changed here"
    rows = [[str(e["id"]), str(e["state"]), ", ".join(e["codes"]), "; ".join(e["what"])] for e in entries]
    return _plain(table(rows))


def grave(findings: Sequence[Finding], floor: Severity) -> bool:
    """Whether one of them is at least as grave as `floor`."""
    return any(at_least(f.severity, floor) for f in findings)
