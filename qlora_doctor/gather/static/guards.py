"""Calls whose failure the script provides for: a try that falls back, or a test of a version or a signature."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

_CAUGHT = ("TypeError", "ValueError", "AttributeError", "ImportError", "NotImplementedError")
_TESTED = re.compile(
    r"__version__|version\.parse|\bVersion\(|metadata\.version|\bversion\(|signature\(|\bhasattr\(|__init__\.__code__"
    r"|is_\w*version\w*\(|_greater_or_equal|\b\w*_VERSION\b|__dataclass_fields__|getfullargspec|\bfields\("
    r"|, which comes of a version or a signature"
)


def guards(body: Sequence[ast.stmt], told: frozenset[str] | None = None) -> dict[tuple[int, int], str]:
    """`try` or `version` for each guarded call, by its line and column.

    A try counts where a handler names the error that a wrong argument raises, or where it makes the same call again in
    another way; a try around a whole program, which only logs, does not.
    """
    found: dict[tuple[int, int], str] = {}
    told = names_of_versions(body) if told is None else told
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Try) and node.handlers:
                _note_try(found, node)
            elif isinstance(node, (ast.If, ast.IfExp)) and (tests_versions(node.test) or uses(node.test, told)):
                branches = [node.body, node.orelse] if isinstance(node, ast.IfExp) else [*node.body, *node.orelse]
                for branch in branches:
                    for call in _calls(branch):
                        found.setdefault(call, "version")
    return found


def tests_versions(test: ast.expr) -> bool:
    """Whether an expression looks at a version, a signature or an attribute of a class."""
    return _TESTED.search(ast.unparse(test)) is not None


def says_version(text: str) -> bool:
    """Whether a condition, as it is written, looks at a version, a signature or an attribute of a class."""
    return _TESTED.search(text) is not None


def names_of_versions(body: Sequence[ast.stmt]) -> frozenset[str]:
    """The variables and functions that hold what such a test gave: `NEW = version(...) >= ...`, `known = signature(...)`.

    `told` of the other functions here. It reads every assignment as text, so ask `says_version` of the source first.
    """
    found: set[str] = set()
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if _tells(node.value, found):
                    found |= {t.id for t in targets if isinstance(t, ast.Name)}
            elif isinstance(node, ast.FunctionDef) and len(node.body) <= 3:
                returned = [r.value for r in ast.walk(node) if isinstance(r, ast.Return) and r.value is not None]
                if returned and all(_tells(value, found) for value in returned):
                    found.add(node.name)
    return frozenset(found)


def _tells(value: ast.expr, told: AbstractSet[str]) -> bool:
    """Whether a value is the outcome of a test of a version, or names that something has, and not an object of its own."""
    made = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id[:1].isupper()
    return not made and (tests_versions(value) or (uses(value, told) and isinstance(value, (ast.Compare, ast.BoolOp))))


def uses(test: ast.expr, told: AbstractSet[str]) -> bool:
    """Whether an expression names one of these variables."""
    return any(isinstance(node, ast.Name) and node.id in told for node in ast.walk(test))


def _note_try(found: dict[tuple[int, int], str], node: ast.Try) -> None:
    named = any(_names(handler) & set(_CAUGHT) and not _only_raises(handler) for handler in node.handlers)
    again = {ast.unparse(c.func) for h in node.handlers for c in ast.walk(h) if isinstance(c, ast.Call)}
    tried = set()
    for statement in node.body:
        for call in ast.walk(statement):
            if isinstance(call, ast.Call) and (named or ast.unparse(call.func) in again):
                found[call.lineno, call.col_offset] = "try"
                tried.add(ast.unparse(call.func))
    for handler in node.handlers:
        # The same call in the handler runs only where the first was refused: by another version.
        for call in ast.walk(handler):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in tried:
                found[call.lineno, call.col_offset] = "try"


def _names(handler: ast.ExceptHandler) -> set[str]:
    if handler.type is None:
        return set()
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return {kind.id for kind in kinds if isinstance(kind, ast.Name)}


def _only_raises(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.body[-1], ast.Raise)


def _calls(node: ast.AST) -> list[tuple[int, int]]:
    return [(c.lineno, c.col_offset) for c in ast.walk(node) if isinstance(c, ast.Call)]
