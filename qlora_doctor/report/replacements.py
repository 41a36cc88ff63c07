"""What a fix of a finding replaces in its file, by line and column, for editors and code scanning."""

from __future__ import annotations

import bisect
import difflib
import os
import re

from qlora_doctor.errors import NotKnown, RepairError
from qlora_doctor.examine import Examination
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Fix, LoadKwarg, SourceEdit, TrainSetting
from qlora_doctor.repair.targets import find_target
from qlora_doctor.repair.text import decode
from qlora_doctor.repair.world import carry_out, start
from qlora_doctor.report.paper import Replacement


def replacements(examination: Examination, finding: Finding, fix: Fix) -> tuple[Replacement, ...]:
    """The stretches that `fix` replaces; none where it changes no source file, or cannot be made without guessing.

    None for a notebook either: its cells are JSON strings on disk, where a line and a column mean something else.
    """
    if fix.applicability == "display-only" or not isinstance(fix, (LoadKwarg, TrainSetting, SourceEdit)):
        return ()
    world = start(examination)
    try:
        goal = None if isinstance(fix, SourceEdit) else find_target(world, fix, finding)
        after, edit = carry_out(world, fix, goal)
        if not isinstance(edit, SourceEdit) or edit.cell is not None:
            return ()
        new = next((data for path, data in after.files.items() if _same(path, edit.path)), None)
        if new is None:
            return ()
        encoding = next((c.script.encoding for c in world.cases if c.script and _same(c.script.path, edit.path)), "")
        return between(edit.path, decode(world.bytes_of(edit.path), encoding)[0], decode(new, encoding)[0])
    except (RepairError, NotKnown):
        # Shown without an edit: what `fix` cannot do by itself, no editor should do either.
        return ()


# A reader of SARIF counts line feeds; splitlines also ends a line at a form feed.
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


def _common(one: str, other: str) -> int:
    """How many characters two texts share at their start."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _same(one: str, other: str) -> bool:
    return os.path.abspath(one) == os.path.abspath(other)


def between(path: str, old: str, new: str) -> tuple[Replacement, ...]:
    """The smallest replacements that turn `old` into `new`, each a stretch of whole changed lines without what they share."""
    before, after = _LINE.findall(old), _LINE.findall(new)
    starts = [0]
    for line in before:
        starts.append(starts[-1] + len(line))
    found = []
    for tag, i, j, k, m in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        gone, come = "".join(before[i:j]), "".join(after[k:m])
        head = _common(gone, come)
        tail = _common(gone[head:][::-1], come[head:][::-1])
        first, last = starts[i] + head, starts[j] - tail
        found.append(Replacement(path, _spot(starts, first), _spot(starts, last), come[head : len(come) - tail]))
    return tuple(found)


def _spot(starts: list[int], offset: int) -> tuple[int, int]:
    line = max(bisect.bisect_right(starts, offset) - 1, 0)
    return line + 1, offset - starts[line] + 1
