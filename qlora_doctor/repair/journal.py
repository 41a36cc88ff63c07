"""The journal of one apply: all that undo needs, on disk before the first change.

`<project>/.qlora-doctor/journal/<id>.json` is written whole, once. What happens after is added to `<id>.log`, a line
a step; undo does not need it, for each file's hash tells whether its change was made. A change of packages has a second
journal in the user's state folder (`undo --project` takes that folder), for the day on which the project is gone.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qlora_doctor import __version__
from qlora_doctor.errors import NewerSchema, RepairError, WireError
from qlora_doctor.repair import files, hooks
from qlora_doctor.repair.world import digest
from qlora_doctor.wire import from_data, to_data

SCHEMA = 1
_NAME = re.compile(r"\d{8}-\d{6}-\d+\.json")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One changed file. `before` is base64; None where there was no file. The hashes are "" for no file."""

    path: str
    before: str | None
    before_sha256: str
    after_sha256: str

    @property
    def old(self) -> bytes | None:
        """The bytes before."""
        return None if self.before is None else base64.b64decode(self.before)


@dataclass(frozen=True, slots=True)
class PackageRecord:
    """The package step. `before` maps a canonical name to `name==version`, `origins` to why no index has it.

    `touched` are the canonical names that the solver said would change. `python` and `prefix` say whose they are.
    """

    python: str
    prefix: str
    requirements: tuple[str, ...]
    before: Mapping[str, str]
    touched: tuple[str, ...]
    origins: Mapping[str, str] = field(default_factory=dict)
    tool: str = "pip"
    manifests: tuple[FileRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Journal:
    """One apply. `path` is where it lies, `log` the lines that were added since."""

    id: str
    project: str
    started: str
    codes: tuple[str, ...] = ()
    files: tuple[FileRecord, ...] = ()
    packages: PackageRecord | None = None
    version: str = __version__

    def to_wire(self) -> Any:
        data = {f: to_data(getattr(self, f)) for f in ("id", "project", "started", "codes", "files", "version")}
        if self.packages is not None:
            data["packages"] = to_data(self.packages)
        return {"schema": SCHEMA, **data}


def new_id(folder: str) -> str:
    """An id that no journal in `folder` has: the time, and a number where that is taken."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    taken = set(os.listdir(os.path.join(folder, "journal")))
    number = 1
    while f"{stamp}-{number}.json" in taken:
        number += 1
    return f"{stamp}-{number}"


def path_of(folder: str, id: str, suffix: str = "json") -> str:
    return os.path.join(folder, "journal", f"{id}.{suffix}")


def write(folder: str, journal: Journal) -> None:
    """Puts a journal on disk. Raises RepairError where it cannot be; then nothing may be changed."""
    data = json.dumps(journal.to_wire(), indent=1, ensure_ascii=False).encode("utf-8")
    try:
        files.write(path_of(folder, journal.id), data, journal.id, "journal")
    except RepairError as error:
        raise RepairError(f"the journal cannot be written, so nothing was changed: {error}") from None


def note(folder: str, id: str, what: str, **more: Any) -> None:
    """Adds a line to a journal's log."""
    # After a line that a crash cut off, a new line is begun; the broken one is skipped when the log is read.
    fresh = "" if (files.read(path_of(folder, id, "log")) or b"\n").endswith(b"\n") else "\n"
    line = fresh + json.dumps({"what": what, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **more}, ensure_ascii=False)
    try:
        with open(path_of(folder, id, "log"), "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RepairError(f"the journal cannot be continued: {error.strerror or error}") from None
    hooks.at(f"noted-{what}")


def read(folder: str, id: str) -> Journal:
    """One journal.

    Raises:
        NewerSchema: a newer doctor wrote it.
        RepairError: there is none with this id, or it is damaged; says where the old bytes may still be.
    """
    path = path_of(folder, id)
    raw = files.read(path)
    if raw is None:
        known = ", ".join(ids(folder)) or "none"
        raise RepairError(f"there is no change {id!r} here; known: {known} (`qlora-doctor undo --list`)")
    try:
        data = json.loads(raw)
        if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
            raise WireError("$.schema", "expected the number of the journal format")
        if data["schema"] > SCHEMA:
            raise NewerSchema(path, "this journal was written by a newer qlora-doctor; update it and undo again")
        del data["schema"]
        return from_data(Journal, data)
    except NewerSchema:
        raise
    except (ValueError, WireError) as error:
        raise RepairError(
            f"the journal {path} is damaged ({error}); nothing was changed. It is plain JSON: the old bytes of each file "
            "stand in it as base64 under `before`"
        ) from None


def log(folder: str, id: str) -> list[dict[str, Any]]:
    """The lines of a journal's log; a line that was cut off is left out."""
    found = []
    for line in (files.read(path_of(folder, id, "log")) or b"").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            found.append(entry)
    return found


def ids(folder: str) -> list[str]:
    """The ids of all journals, oldest first."""
    try:
        names = os.listdir(os.path.join(folder, "journal"))
    except FileNotFoundError:
        return []
    return sorted((n[:-5] for n in names if _NAME.fullmatch(n)), key=_order)


def _order(id: str) -> tuple[str, int]:
    stamp, _, number = id.rpartition("-")
    return stamp, int(number) if number.isdigit() else 0


def state(folder: str, id: str) -> str:
    """`undone`, `applied`, or `interrupted` where the apply did not come to its end."""
    words = {entry.get("what") for entry in log(folder, id)}
    return "undone" if "undone" in words else "applied" if "applied" in words else "interrupted"


def record(path: str, before: bytes | None, after: bytes | None) -> FileRecord:
    """The record of one file's change."""
    old = None if before is None else base64.b64encode(before).decode("ascii")
    return FileRecord(os.path.abspath(path), old, digest(before), digest(after))
