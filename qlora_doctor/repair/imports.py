"""Import lines put where they belong. Imports libcst, so import this module late."""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst


def with_imports(module: cst.Module, lines: Sequence[str]) -> cst.Module:
    """The module with import lines before its first import, else after its docstring and `from __future__`."""
    if not lines:
        return module
    body = list(module.body)
    place = next((i for i, statement in enumerate(body) if _is_import(statement)), None)
    new = [cst.parse_statement(line) for line in lines]
    if place is None:
        place = 0
        while place < len(body) and (_is_future(body[place]) or (place == 0 and _is_head(body[0]))):
            place += 1
    else:
        first = body[place]
        new[0] = new[0].with_changes(leading_lines=getattr(first, "leading_lines", ()))
        body[place] = first.with_changes(leading_lines=())
    return module.with_changes(body=[*body[:place], *new, *body[place:]])


def _is_import(statement: cst.BaseStatement | cst.BaseSmallStatement) -> bool:
    return (
        isinstance(statement, cst.SimpleStatementLine)
        and isinstance(statement.body[0], (cst.Import, cst.ImportFrom))
        and not _is_future(statement)
    )


def _is_future(statement: cst.BaseStatement | cst.BaseSmallStatement) -> bool:
    first = statement.body[0] if isinstance(statement, cst.SimpleStatementLine) else None
    return isinstance(first, cst.ImportFrom) and getattr(first.module, "value", "") == "__future__"


def _is_head(statement: cst.BaseStatement | cst.BaseSmallStatement) -> bool:
    """A docstring, or the number that stands for a cell's `%%magic`, which must stay in front."""
    first = statement.body[0] if isinstance(statement, cst.SimpleStatementLine) else None
    return isinstance(first, cst.Expr) and isinstance(
        first.value, (cst.SimpleString, cst.ConcatenatedString, cst.Integer)
    )
