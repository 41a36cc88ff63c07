"""`fix` from end to end: plan, ask, lock, journal, packages, judge again, files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from qlora_doctor.errors import RepairError, UsageError
from qlora_doctor.examine import Examination, Question, examine, home_of
from qlora_doctor.repair import constraints, environment, journal, lock, packages, solve
from qlora_doctor.repair.apply import apply_files, open_journal, stopped
from qlora_doctor.repair.folders import own_folder, project_of, state_folder
from qlora_doctor.repair.plan import FileChange, Left, Plan, Solver
from qlora_doctor.repair.rounds import make_plan
from qlora_doctor.repair.undo import undo_command
from qlora_doctor.repair.world import start
from qlora_doctor.stage import stage

NEEDED = ("interpreter", "host", "packages")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan with all that is needed to carry it out. `fuller` is the plan with --unsafe, where it does more."""

    examination: Examination
    plan: Plan
    project: str
    target: packages.Target
    fuller: Plan | None = None
    refused: str = ""

    def changes(self) -> list[FileChange]:
        """Every file that the plan writes."""
        return [*self.plan.files, *environment.changes(self.project, self.plan.environ)]


@dataclass(frozen=True, slots=True)
class Result:
    """What an apply did, and what the checks say afterwards. `id` is "" where nothing was changed."""

    examination: Examination
    plan: Plan
    project: str
    id: str = ""
    paths: tuple[str, ...] = ()
    installed: bool = False
    notes: tuple[str, ...] = field(default=())


def prepare(question: Question, unsafe: bool, compare: bool = True) -> Prepared:
    """Examines and plans. Nothing is changed. `compare`: also make the plan with --unsafe, to show what it would add.

    Raises:
        UsageError, ProbeError, RegistryError: as `examine` does.
    """
    wanted = tuple(dict.fromkeys((*question.parts, *NEEDED)))
    examination = _each_file_once(examine(replace(question, parts=wanted)))
    project = project_of(home_of(question.paths))
    target = packages.target_of(examination.facts, question.python, project, elsewhere(question))
    solver = solve.solver_for(examination.facts, target.python) if target.here and not question.offline else None
    with stage("planning the repairs"):
        plan = make_plan(examination, unsafe=unsafe, solver=solver)
        fuller = _fuller(examination, plan, solver) if compare and not unsafe else None
    refused = packages.refusal(plan, target) if plan.pip else ""
    return Prepared(examination, plan, project, target, fuller, refused)


def _each_file_once(examination: Examination) -> Examination:
    """The examination without second readings of one file, which `.` and `./train.py` together give."""
    seen: set[str] = set()
    cases = []
    for case in examination.cases:
        real = os.path.realpath(case.script.path) if case.script is not None else ""
        if not real or real not in seen:
            cases.append(case)
            seen.add(real)
    if len(cases) == len(examination.cases):
        return examination
    once = replace(examination, cases=tuple(cases))
    return replace(once, verdict=start(once).verdict)


def elsewhere(question: Question) -> bool:
    """Whether the facts are those of another machine, or of none."""
    return bool(question.facts_file or question.ssh)


def refuse_elsewhere(question: Question) -> None:
    """Raises UsageError where --apply would change this machine by the facts of another."""
    if elsewhere(question):
        option = "--facts" if question.facts_file else "--ssh"
        raise UsageError(
            f"--apply changes this machine, but {option} describes another; leave one of them out, or run fix over there"
        )


def _fuller(examination: Examination, plan: Plan, solver: Solver | None) -> Plan | None:
    """The plan that --unsafe would make, where it has steps that this one has not."""
    from qlora_doctor.repair.rounds import NEEDS_UNSAFE

    if not any(NEEDS_UNSAFE in left.why for left in plan.remains):
        return None
    fuller = make_plan(examination, unsafe=True, solver=solver)
    return fuller if fuller.steps != plan.steps else None


def carry_out(prepared: Prepared, unsafe: bool, may_install: Callable[[Plan], bool | None]) -> Result:
    """Carries a plan out: packages first, then, judged again, the files.

    `may_install` is asked before packages are changed: True, False, or None where there is nobody to ask.

    Raises:
        RepairError: a step failed; the message says what was done before, and how to take it back.
    """
    question = prepared.examination.question
    refuse_elsewhere(question)
    notes: list[str] = []
    plan = prepared.plan
    install = bool(plan.pip)
    if install and prepared.refused:
        notes.append(f"packages: nothing was changed: {prepared.refused}")
        install = False
    elif install:
        answer = may_install(plan)
        install = bool(answer)
        if answer is None:
            notes.append("packages: nothing was changed: there is nobody to ask; add --yes to allow it")
        elif not answer:
            notes.append("packages: nothing was changed, as you said")
    if plan.pip and not install:
        plan = make_plan(prepared.examination, unsafe=unsafe, pip=False)
    prepared = replace(prepared, plan=plan)
    if not install and not prepared.changes():
        return Result(prepared.examination, plan, prepared.project, notes=tuple(notes))
    folder = own_folder(prepared.project)
    with ExitStack() as stack:
        stack.enter_context(lock.held(folder))
        if install:
            stack.enter_context(lock.held(state_folder(prepared.target.prefix)))
            return _with_packages(prepared, unsafe, notes)
        return _files_only(prepared, notes)


def _files_only(prepared: Prepared, notes: list[str]) -> Result:
    changes = prepared.changes()
    folder, entry = open_journal(prepared.project, changes, _codes(prepared.plan))
    return _finish(prepared, folder, entry, changes, False, notes)


def _with_packages(prepared: Prepared, unsafe: bool, notes: list[str]) -> Result:
    target, plan = prepared.target, prepared.plan
    record = packages.record(plan, target)
    folder, entry = open_journal(prepared.project, (), _codes(plan), record)
    # A second copy by the environment's name: the packages can be restored though the project be deleted.
    state = state_folder(target.prefix)
    journal.write(own_folder(state), replace(entry, project=state))
    journal.note(folder, entry.id, "packages-start")
    undo_words = f"Take back what was done with: {undo_command(prepared.project, entry.id)}"
    try:
        packages.change(plan, target)
        packages.note_manifests(folder, entry.id, record)
    except KeyboardInterrupt:
        raise RepairError(f"stopped by Ctrl-C while packages were changed. {undo_words}") from None
    except RepairError as error:
        journal.note(folder, entry.id, "packages", touched=packages.really_changed(plan, target))
        raise RepairError(f"{error}. Nothing else was changed. {undo_words}") from None
    journal.note(folder, entry.id, "packages", touched=packages.really_changed(plan, target))
    # What was really installed may differ from what was simulated: the files follow what is there now.
    again = examine(prepared.examination.question)
    after = make_plan(again, unsafe=unsafe, pip=False)
    prepared = replace(prepared, examination=again, plan=after)
    changes = [*constraints.changes(prepared.project, plan, again.facts), *prepared.changes()]
    if changes:
        full = replace(entry, files=tuple(journal.record(c.path, c.before, c.after) for c in changes))
        _check(changes, undo_words)
        journal.write(folder, full)
        entry = full
    return _finish(prepared, folder, entry, changes, True, notes)


def _check(changes: Sequence[FileChange], undo_words: str) -> None:
    from qlora_doctor.repair.files import refuse_unwritable

    for change in changes:
        try:
            refuse_unwritable(change.path)
        except RepairError as error:
            raise RepairError(f"the packages were changed, but {error}. {undo_words}") from None


def _finish(
    prepared: Prepared,
    folder: str,
    entry: journal.Journal,
    changes: Sequence[FileChange],
    installed: bool,
    notes: list[str],
) -> Result:
    done = ["the packages"] if installed else []
    try:
        applied = apply_files(folder, entry, changes, done)
        journal.note(folder, entry.id, "applied")
    except KeyboardInterrupt:
        raise RepairError(stopped("stopped by Ctrl-C", ["part of the plan"], entry.id)) from None
    if prepared.plan.environ:
        notes += [f"before the run, in {shell}: {line}" for shell, line in environment.source_lines(prepared.project)]
    after = examine(prepared.examination.question)
    return Result(after, prepared.plan, prepared.project, entry.id, applied.paths, installed, tuple(notes))


def _codes(plan: Plan) -> list[str]:
    return list(dict.fromkeys(code for step in plan.steps for code in step.codes))


def left_after(result: Result, unsafe: bool) -> tuple[Left, ...]:
    """What the checks still say after an apply, with the reasons."""
    plan = make_plan(result.examination, unsafe=unsafe, pip=False)
    reasons = {(left.finding.code, left.finding.text): left.why for left in (*plan.remains, *result.plan.remains)}
    unsaid = "it was not found before; run fix again"
    return tuple(Left(f, reasons.get((f.code, f.text), unsaid)) for f in result.examination.verdict.findings)
