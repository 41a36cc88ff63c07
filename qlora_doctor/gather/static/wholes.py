"""Statements that are nothing but one method call, so that the call can be taken out with its line."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from qlora_doctor.gather.static.values import Span


def wholes(body: Sequence[ast.stmt], source: str) -> dict[tuple[int, int], Span]:
    """The lines to delete for `x.f()` and `x = x.f()`, by the place of the call.

    Only statements that stand alone on their lines (a comment after them goes too), and that are not the only one of their block.
    """
    lines = source.split("\n")
    found = {}
    for block in _blocks(body):
        if len(block) < 2:
            continue
        for statement in block:
            call = _sole_call(statement)
            last = statement.end_lineno
            if call is None or last is None or last >= len(lines):
                continue
            before = lines[statement.lineno - 1].encode()[: statement.col_offset]
            after = lines[last - 1].encode()[statement.end_col_offset :]
            if not before.strip() and (not after.strip() or after.lstrip().startswith(b"#")):
                found[call.lineno, call.col_offset] = (statement.lineno, 0, last + 1, 0)
    return found


def _sole_call(statement: ast.stmt) -> ast.Call | None:
    """The call of `x.f()` or `x = x.f()`."""
    if not isinstance(statement, (ast.Expr, ast.Assign)) or not isinstance(statement.value, ast.Call):
        return None
    call = statement.value
    if not isinstance(call.func, ast.Attribute) or not isinstance(call.func.value, (ast.Name, ast.Attribute)):
        return None
    if isinstance(statement, ast.Assign):
        target = statement.targets[0]
        if len(statement.targets) > 1 or ast.unparse(target) != ast.unparse(call.func.value):
            return None
    return call


def _blocks(body: Sequence[ast.stmt]) -> Iterator[Sequence[ast.stmt]]:
    yield body
    for statement in body:
        for name in ("body", "orelse", "finalbody"):
            inner = getattr(statement, name, None)
            if isinstance(inner, list) and inner:
                yield from _blocks(inner)
        for handler in getattr(statement, "handlers", ()):
            yield from _blocks(handler.body)
        for case in getattr(statement, "cases", ()):
            yield from _blocks(case.body)
