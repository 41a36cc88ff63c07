"""The package step of an apply and of an undo, with its record in the journal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qlora_doctor.errors import RepairError
from qlora_doctor.facts import Facts, Packages, canonical
from qlora_doctor.fix import PipRequirement
from qlora_doctor.repair import files, journal, pip, pips
from qlora_doctor.repair.journal import PackageRecord
from qlora_doctor.repair.plan import Plan
from qlora_doctor.repair.tools import Tool, by_conda, conda_commands, tool_of
from qlora_doctor.repair.world import digest


@dataclass(frozen=True, slots=True)
class Target:
    """The interpreter whose packages are changed, and the tool that manages them."""

    python: str
    prefix: str
    tool: Tool | None = None
    here: bool = True


def target_of(facts: Facts, python: str, project: str, saved: bool = False) -> Target:
    """The interpreter that was judged: that of `--python`, else our own; for `saved` facts one that is not here."""
    from qlora_doctor.facts import Unknown
    from qlora_doctor.gather.interpreters import find_executable

    interpreter = facts.state("interpreter")
    known = None if isinstance(interpreter, Unknown) else interpreter
    if saved:
        return Target(known.executable if known is not None and known.executable else "python", "", here=False)
    executable = find_executable(python) if python else sys.executable
    prefix = known.prefix if known is not None and known.prefix else sys.prefix
    return Target(executable, prefix, tool_of(project, prefix))


def commands_of(target: Target, fixes: Sequence[PipRequirement], before: Packages | None = None) -> list[list[str]]:
    """The commands that a plan's package step runs; for what conda installed (in `before`), those for a person to run."""
    if target.tool:
        return target.tool.commands(fixes)
    condas = by_conda(before, fixes)
    others = [f for f in fixes if f not in condas]
    return [*conda_commands(target.prefix, condas), *(pip.shown_commands(target.python, others) if others else [])]


def refusal(plan: Plan, target: Target) -> str:
    """Why the package step of a plan cannot be carried out by us, or ""."""
    if not target.here:
        return "these facts are of another machine; run fix there"
    condas = [pips.name_of(f) for f in by_conda(plan.before, plan.pip)]
    if condas:
        return f"conda installed {', '.join(condas)}, and pip over conda breaks both; run conda's command yourself, then fix again"
    if plan.solution is None or plan.solution.packages is None:
        failure = plan.solution.failure if plan.solution is not None else "it was not asked (--offline)"
        return f"the installer finds no way: {failure}"
    if target.tool is not None and not target.tool.at_hand:
        return f"this project is managed by {target.tool.name}, which is not on PATH; run its command yourself"
    return ""


def record(plan: Plan, target: Target) -> PackageRecord:
    """What undo needs to know, before anything is changed."""
    assert plan.before is not None and plan.solution is not None and plan.solution.packages is not None
    before = {canonical(d.name): f"{d.name}=={d.version}" for d in reversed(plan.before.distributions)}
    origins = {canonical(d.name): why for d in plan.before.distributions if (why := pips.irreplaceable(d))}
    manifests = target.tool.manifests if target.tool else ()
    return PackageRecord(
        python=target.python,
        prefix=target.prefix,
        requirements=tuple(("-" if f.remove else "") + f.requirement for f in plan.pip),
        before=before,
        touched=tuple(pips.changed(plan.before, plan.solution.packages)),
        origins=origins,
        tool=target.tool.name if target.tool else "pip",
        manifests=tuple(journal.record(path, files.read(path), None) for path in manifests),
    )


def really_changed(plan: Plan, target: Target) -> list[str]:
    """The packages that differ from what was there before, read anew."""
    from qlora_doctor.gather.interpreters import other

    return [] if plan.before is None else pips.changed(plan.before, other(target.python, ["packages"]).packages)


def change(plan: Plan, target: Target) -> None:
    """Carries the package step out. Raises RepairError where the installer fails."""
    assert plan.before is not None and plan.solution is not None and plan.solution.packages is not None
    if target.tool is None:
        pip.install(pip.installer_of(target.python), plan.pip, plan.before, plan.solution.packages)
        return
    for command in target.tool.commands(plan.pip):
        pip.run_tool(command, target.tool.project)


def undo(folder: str, id: str, record: PackageRecord, interrupted: bool) -> list[str]:
    """Restores the packages that the journal says were touched; what was done, in words.

    Raises:
        RepairError: the interpreter is gone, or the installer failed; the same undo can be run again.
    """
    from qlora_doctor.gather.interpreters import other

    if not os.path.exists(record.python):
        raise RepairError(f"{record.python} is gone, so its packages cannot be restored; the environment was removed")
    said = []
    record = replace(record, touched=tuple(sorted({*record.touched, *_logged(folder, id)})))
    if record.manifests:
        said += _undo_manifests(folder, id, record)
    now = other(record.python, ["packages"]).packages
    if not interrupted and not _differs(record, now):
        return [*said, "the packages are as they were"]
    lost = sorted(n for n in record.touched if n in record.origins and not _same(record, now, n))
    touched = [n for n in record.touched if n not in lost]
    installer = pip.installer_of(record.python)
    for command in pip.restore(installer, record.before, touched, now, force=interrupted):
        said.append("ran " + " ".join(command))
    for name in lost:
        said.append(f"{record.before[name]} was {record.origins[name]}: no index gives it back, install it yourself")
    after = other(record.python, ["packages"]).packages
    differing = [n for n in record.touched if n not in lost and not _same(record, after, n)]
    if differing:
        raise RepairError(f"not restored: {', '.join(differing)}; run the same undo again, or install them yourself")
    return said


def _logged(folder: str, id: str) -> list[str]:
    """What the log says was changed beyond what the solver foretold."""
    entries = [e.get("touched") for e in journal.log(folder, id) if e.get("what") == "packages"]
    return [str(name) for entry in entries if isinstance(entry, list) for name in entry]


def _undo_manifests(folder: str, id: str, record: PackageRecord) -> list[str]:
    after = {
        entry.get("path"): entry.get("sha256") for entry in journal.log(folder, id) if entry.get("what") == "manifest"
    }
    said = []
    for item in record.manifests:
        now = digest(files.read(item.path))
        if now == item.before_sha256:
            continue
        if now != after.get(item.path, now):
            said.append(f"{item.path} was edited since, so it stays; take the change back with {record.tool}")
            continue
        files.write(item.path, item.old, id, "manifest")
        said.append(f"restored {item.path}")
    return said


def note_manifests(folder: str, id: str, record: PackageRecord) -> None:
    """Writes down what the tool made of its manifest."""
    for item in record.manifests:
        journal.note(folder, id, "manifest", path=item.path, sha256=digest(files.read(item.path)))


def _same(record: PackageRecord, packages: Packages, name: str) -> bool:
    found = packages.find(name)
    had = record.before.get(name)
    return (found is None) == (had is None) and (found is None or had is None or had.endswith(f"=={found.version}"))


def _differs(record: PackageRecord, packages: Packages) -> bool:
    return any(not _same(record, packages, name) for name in record.touched)
