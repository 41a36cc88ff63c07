"""The cells that a kernel has run, as a notebook that can be judged."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qlora_doctor.judge import Case

NAME = "this notebook"
ALIKE = 0.6
"""How much of its text (0 to 1) a mended cell has in common with the one that it was, where no cell id tells."""


class Cells:
    """The cells in the order in which they ran. One that ran again counts once, as it was the last time.

    Cell ids tell which one ran again. Before the extension was loaded, and under an IPython that gives no ids (Colab's), a
    cell is taken for an earlier one mended where it assigns the same names and its text is much the same.
    """

    def __init__(self, earlier: Sequence[str] = ()) -> None:
        self._cells: dict[str, tuple[int, str]] = {}
        self._named: set[str] = set()
        for number, text in enumerate(earlier):
            self.add(text, number)

    def add(self, text: str, number: int, id: str | None = None) -> None:
        """A cell that runs as `In [number]`."""
        key = id or text
        for old in [k for k in self._cells if k == key or (k not in self._named and _mended(k, text))]:
            del self._cells[old]
        self._cells[key] = (number, text)
        if id:
            self._named.add(id)

    def case(self, extra: str | None = None, number: int = 0) -> Case | None:
        """What the cells say and ask for, `extra` after them as In [number]; None where no cell has run.

        The places that findings name are the numbers that the notebook shows.
        """
        from qlora_doctor.gather.notebook import read_notebook
        from qlora_doctor.judge import Case

        cells = [c for c in self._cells.values() if c[1].strip()]
        if extra is not None:
            cells.append((number, extra))
        if not cells:
            return None
        data = json.dumps({"cells": _numbered(cells)}).encode()
        script, requests = read_notebook(Path(NAME), data)
        return Case(requests, script)


def _mended(old: str, new: str) -> bool:
    if old == new:
        return True
    names = _assigned(old)
    if not names or names != _assigned(new):
        return False
    import difflib

    return difflib.SequenceMatcher(None, old, new, autojunk=False).ratio() >= ALIKE


def _assigned(text: str) -> set[str]:
    """The names that a cell assigns at its top level; none where it is no plain Python."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError):
        return set()
    targets = [t for s in body if isinstance(s, ast.Assign) for t in s.targets]
    return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}


def _numbered(cells: Sequence[tuple[int, str]]) -> list[dict[str, str]]:
    """Cells such that the one that ran as In [n] is the n-th; those in between are empty text."""
    by_number = dict(cells)
    return [
        {"cell_type": "code", "source": by_number[n]} if n in by_number else {"cell_type": "markdown", "source": ""}
        for n in range(1, max(by_number) + 1)
    ]
