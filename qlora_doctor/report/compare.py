"""The differences between saved facts, as text and as JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from qlora_doctor.compare import Difference
from qlora_doctor.i18n import said, tr
from qlora_doctor.report.columns import cut, table

SCHEMA = 1
_HEADS = ("breaks runs first", "then these", "may matter", "may matter", "seldom matters", "seldom matters")


def names_of(paths: Sequence[str]) -> list[str]:
    """Short names of the files, as short as they can be told apart."""
    stems = [os.path.splitext(os.path.basename(p))[0] for p in paths]
    return stems if len(set(stems)) == len(stems) else list(paths)


def data(paths: Sequence[str], differences: Sequence[Difference], code: int) -> dict[str, Any]:
    """The comparison as JSON data."""
    return {
        "schema": SCHEMA,
        "exit_code": code,
        "files": list(paths),
        "differences": [
            {"what": d.what, "values": list(d.values), "rank": d.rank, "odd": None if d.odd is None else paths[d.odd]}
            for d in differences
        ],
    }


def render(paths: Sequence[str], differences: Sequence[Difference], columns: int | None = None) -> str:
    """The comparison as text: a table for each rank, the machine that stands alone marked."""
    names = names_of(paths)
    if not differences:
        return said(f"no difference between {', '.join(names)}")
    words = "{count} differences between {names}" if len(differences) > 1 else "{count} difference between {names}"
    lines = [tr(words, count=len(differences), names=", ".join(names))]
    head = ""
    groups: list[tuple[str, list[list[str]]]] = []
    for difference in differences:
        if _HEADS[difference.rank] != head:
            head = _HEADS[difference.rank]
            groups.append((head, [["", *names]]))
        groups[-1][1].append(
            [
                difference.what,
                *(
                    ("* " if number == difference.odd else "") + _shown(value)
                    for number, value in enumerate(difference.values)
                ),
            ]
        )
    for head, rows in groups:
        lines += ["", tr(head) + ":", *(cut("  " + line, columns) for line in table(rows))]
    if any(d.odd is not None for d in differences):
        lines += ["", tr("* differs from all the others")]
    return "\n".join(lines)


def _shown(value: str, limit: int = 60) -> str:
    text = "".join(c if c.isprintable() else "\ufffd" for c in value)
    return cut(text, limit)
