"""Carrying a plan out, and taking it back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qlora_doctor.errors import RepairError
from qlora_doctor.repair import files, hooks, journal
from qlora_doctor.repair.folders import own_folder
from qlora_doctor.repair.journal import FileRecord, Journal, PackageRecord
from qlora_doctor.repair.plan import FileChange
from qlora_doctor.repair.world import digest

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Applied:
    """What an apply did. `id` is for undo; "" where nothing was changed."""

    id: str
    paths: tuple[str, ...]


def open_journal(
    project: str, changes: Sequence[FileChange], codes: Sequence[str], packages: PackageRecord | None = None
) -> tuple[str, Journal]:
    """Checks that every file can be written and is as it was read, then puts the journal on disk.

    Raises:
        RepairError: a file was changed since, or cannot be written. Nothing was changed.
    """
    folder = own_folder(project)
    for change in changes:
        files.refuse_unwritable(change.path)
        _refuse_changed(change)
    records = tuple(journal.record(c.path, c.before, c.after) for c in changes)
    id = journal.new_id(folder)
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    entry = Journal(id, project, started, tuple(codes), records, packages)
    journal.write(folder, entry)
    return folder, entry


def apply_files(folder: str, entry: Journal, changes: Sequence[FileChange], before: Sequence[str] = ()) -> Applied:
    """Writes the files of a plan whose journal is open, one after the other, each whole or not at all.

    `before` names what the same apply did already.

    Raises:
        RepairError: one cannot be written; says what was done and how to take it back.
    """
    done: list[str] = []
    for number, change in enumerate(changes):
        try:
            hooks.at(f"file-{number}-before")
            _refuse_changed(change)
            files.write(change.path, change.after, entry.id, f"file-{number}")
            done.append(change.path)
            journal.note(folder, entry.id, f"file-{number}")
        except RepairError as error:
            raise RepairError(stopped(str(error), [*before, *done], entry.id)) from None
    return Applied(entry.id, tuple(done))


def stopped(why: str, done: Sequence[str], id: str) -> str:
    """The message of an apply that could not go on."""
    if not done:
        return f"{why}. Nothing was changed"
    return f"{why}. Done before that: {', '.join(done)}. Take it back with: qlora-doctor undo {id}"


def _refuse_changed(change: FileChange) -> None:
    if files.read(change.path) != change.before:
        raise RepairError(f"{change.path} was changed since it was read; nothing of it was written, run fix again")


@dataclass(frozen=True, slots=True)
class Undone:
    """What an undo did with each file: `restored`, `as it was` (nothing to do), or `kept` with the reason."""

    id: str
    restored: tuple[str, ...]
    untouched: tuple[str, ...]
    kept: tuple[tuple[str, str], ...]


def undo_files(folder: str, entry: Journal) -> Undone:
    """Puts back each file that is as the apply left it.

    A file that was edited since stays as it is, and its old bytes are written beside the journal. Raises RepairError
    where a file cannot be written; running undo again goes on from there.
    """
    restored, untouched, kept = [], [], []
    for number, record in enumerate(reversed(entry.files)):
        hooks.at(f"undo-{number}-before")
        files.remove_quietly(files.temporary_of(record.path, entry.id))
        now = digest(files.read(record.path))
        if now == record.after_sha256:
            _put_back(record, entry, number)
            restored.append(record.path)
        elif now == record.before_sha256:
            untouched.append(record.path)
        else:
            kept.append((record.path, _keep(folder, entry, record, number)))
    files.remove_quietly(files.temporary_of(journal.path_of(folder, entry.id), entry.id))
    return Undone(entry.id, tuple(restored), tuple(untouched), tuple(kept))


def _put_back(record: FileRecord, entry: Journal, number: int) -> None:
    try:
        files.refuse_unwritable(record.path)
        files.write(record.path, record.old, entry.id, f"undo-{number}")
    except RepairError as error:
        raise RepairError(f"{error}. Then run again: qlora-doctor undo {entry.id}") from None


def _keep(folder: str, entry: Journal, record: FileRecord, number: int) -> str:
    if record.old is None:
        return "it was edited since; before the fix there was no such file, so remove it yourself if you want"
    place = journal.path_of(folder, entry.id, f"{number}.before{os.path.splitext(record.path)[1]}")
    files.write(place, record.old, entry.id, f"keep-{number}")
    return f"it was edited since, so it stays; as it was before the fix it lies in {place}: compare and merge the two"
