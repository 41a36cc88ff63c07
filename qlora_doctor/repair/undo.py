"""Taking changes back: the last one, or one by its id, and the list of all."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from qlora_doctor.errors import RepairError, UsageError
from qlora_doctor.repair import journal, lock, packages
from qlora_doctor.repair.apply import Undone, undo_files
from qlora_doctor.repair.environment import quote_sh
from qlora_doctor.repair.folders import OWN, project_of, state_folder


def undo_command(project: str, id: str) -> str:
    """The command that takes a change back, from where the user is."""
    here = project_of(os.getcwd())
    words = ["qlora-doctor undo", id]
    return " ".join(
        words if os.path.realpath(here) == os.path.realpath(project) else [*words, "--project", quote_sh(project)]
    )


@dataclass(frozen=True, slots=True)
class Taken:
    """What an undo did; None: there was nothing to undo."""

    files: Undone | None
    packages: tuple[str, ...] = ()


def take_back(project: str, id: str = "") -> Taken:
    """Undoes one change, by default the last that is not undone.

    Raises:
        RepairError: there is no such change, its journal is damaged, or a file or package could not be restored.
    """
    folder = os.path.join(project, OWN)
    if not id:
        id = next((i for i in reversed(journal.ids(folder)) if journal.state(folder, i) != "undone"), "")
        if not id:
            return Taken(None)
    entry = journal.read(folder, id)
    _refuse_out_of_order(folder, entry)
    with ExitStack() as stack:
        stack.enter_context(lock.held(folder))
        said: list[str] = []
        if entry.packages is not None:
            stack.enter_context(lock.held(state_folder(entry.packages.prefix)))
        done = undo_files(folder, entry)
        if entry.packages is not None and journal.state(folder, id) != "undone":
            words = {e.get("what") for e in journal.log(folder, id)}
            cut_off = "packages-start" in words and "packages" not in words
            said = packages.undo(folder, id, entry.packages, interrupted=cut_off)
        journal.note(folder, id, "undone", kept=[path for path, _ in done.kept])
    return Taken(done, tuple(said))


def _refuse_out_of_order(folder: str, entry: journal.Journal) -> None:
    """Raises RepairError where a later change, not undone yet, is built on this one."""
    ids = journal.ids(folder)
    for id in ids[ids.index(entry.id) + 1 :]:
        if journal.state(folder, id) == "undone":
            continue
        later = journal.read(folder, id)
        files = {f.path for f in later.files} & {f.path for f in entry.files}
        both = later.packages is not None and entry.packages is not None
        if files or (both and later.packages.prefix == entry.packages.prefix):  # type: ignore[union-attr]
            what = ", ".join(sorted(files)) or "the same packages"
            raise RepairError(f"{id} changed {what} after {entry.id}; undo it first: qlora-doctor undo {id}")


def changes_of(project: str) -> list[dict[str, Any]]:
    """Every change of a project, oldest first, with its state: `applied`, `undone`, `interrupted` or `unreadable`."""
    folder = os.path.join(project, OWN)
    found = []
    for id in journal.ids(folder):
        try:
            entry = journal.read(folder, id)
        except (RepairError, UsageError) as error:
            found.append({"id": id, "state": "unreadable", "codes": [], "what": [str(error)]})
            continue
        what = [item.path for item in entry.files]
        if entry.packages is not None:
            what += [f"packages of {entry.packages.python}: {', '.join(entry.packages.requirements)}"]
        state = journal.state(folder, id)
        found.append({"id": id, "state": state, "started": entry.started, "codes": list(entry.codes), "what": what})
    return found
