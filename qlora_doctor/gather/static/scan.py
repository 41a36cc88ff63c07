"""What stands in a script whether or not it runs: imports, masks of labels, fallbacks, signs of a distributed launch."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from qlora_doctor.gather.static import names
from qlora_doctor.gather.static.guards import tests_versions, uses
from qlora_doctor.gather.static.machine import dotted, text

_RANKS = ("LOCAL_RANK", "WORLD_SIZE", "RANK")
_LAUNCH = re.compile(
    r"\btorchrun\b(?![^\n]*nproc[-_]per[-_]node[= ]+1\b)|\btorch\.distributed\.(?:launch|run)\b"
    r"(?![^\n]*nproc[-_]per[-_]node[= ]+1\b)"
    r"|\bdeepspeed\s+(?:--|\S+\.py)|\baccelerate\s+launch\b(?![^\n]*--num[-_]processes[= ]+1\b)"
)
_SCOPED = (ast.Global, ast.Nonlocal, ast.Yield, ast.YieldFrom)
LAUNCHED = ("torch.distributed.init_process_group", "deepspeed.initialize", "deepspeed.init_distributed")


@dataclass(slots=True)
class Imported:
    """One imported name, where it stands."""

    node: ast.alias
    module: str
    name: str
    alias: str
    nested: bool
    guarded: bool


@dataclass(slots=True)
class Mask:
    """A place that sets labels to -100, and the test that says where."""

    node: ast.AST
    target: str
    origin: str


@dataclass(slots=True)
class Outline:
    """What one pass over the tree finds. `plain`: no function declares names global or yields."""

    imports: list[Imported] = field(default_factory=list)
    used: Counter[str] = field(default_factory=Counter)
    masks: list[Mask] = field(default_factory=list)
    fallbacks: list[tuple[ast.Call, ast.Call, ast.AST]] = field(default_factory=list)
    ranks: str = ""
    local_rank_argument: bool = False
    plain: bool = True


def outline(body: Sequence[ast.stmt], told: frozenset[str] = frozenset()) -> Outline:
    """Reads a module's statements once. `told`: the variables that hold what a test of a version gave."""
    found = Outline()
    ignored = {"IGNORE_INDEX", "IGNORE_TOKEN_ID", "LABEL_PAD_TOKEN_ID"}
    todo: list[tuple[ast.AST, bool, bool, str]] = [(s, False, False, "") for s in reversed(body)]
    _blocks(found, body)
    while todo:
        node, nested, guarded, target = todo.pop()
        kind = type(node)
        if kind in _SCOPED:
            found.plain = False
        if kind is ast.Name:
            if isinstance(node.ctx, ast.Load):  # type: ignore[attr-defined]
                found.used[node.id] += 1  # type: ignore[attr-defined]
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            _imports(found, node, nested, guarded)
            continue
        if kind is ast.Constant:
            if node.value in _RANKS and not found.ranks:  # type: ignore[attr-defined]
                found.ranks = node.value  # type: ignore[attr-defined]
            continue
        inner_nested, inner_guarded = nested, guarded
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner_nested = True
        elif isinstance(node, ast.If):
            inner_guarded = guarded or tests_versions(node.test) or uses(node.test, told)
        elif isinstance(node, ast.Assign):
            target = text(node.targets[0])
            _assigned_mask(found, node, ignored)
        elif isinstance(node, ast.Call):
            _called_mask(found, node, target, ignored)
            if node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value in (
                "--local_rank", "--local-rank",
            ):  # fmt: skip
                found.local_rank_argument = True
        elif isinstance(node, ast.IfExp) and (_is_mask(node.body, ignored) or _is_mask(node.orelse, ignored)):
            found.masks.append(Mask(node, target or "labels", text(node.test)))
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                for child in reversed(value):
                    if isinstance(child, ast.AST):
                        # What stands in a handler is itself the way out.
                        caught = isinstance(node, ast.Try) and name in ("body", "handlers") and bool(node.handlers)
                        todo.append((child, inner_nested, inner_guarded or caught, target))
                if name in ("body", "orelse", "finalbody"):
                    _blocks(found, value)
            elif isinstance(value, ast.AST):
                todo.append((value, inner_nested, inner_guarded, target))
    return found


def _imports(found: Outline, node: ast.Import | ast.ImportFrom, nested: bool, guarded: bool) -> None:
    for alias in node.names:
        if isinstance(node, ast.Import):
            name = alias.asname or alias.name.partition(".")[0]
            found.imports.append(Imported(alias, alias.name, "", name, nested, guarded))
        else:
            module = "." * node.level + (node.module or "")
            found.imports.append(Imported(alias, module, alias.name, alias.asname or alias.name, nested, guarded))


def _is_mask(node: ast.expr, ignored: set[str]) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return bool(node.operand.value == 100)
    return dotted(node).rpartition(".")[2] in ignored


def _assigned_mask(found: Outline, node: ast.Assign, ignored: set[str]) -> None:
    if isinstance(node.value, ast.UnaryOp) and _is_mask(node.value, ignored):
        for target in node.targets:
            if isinstance(target, ast.Name):
                ignored.add(target.id)
    target = node.targets[0]
    if isinstance(target, ast.Subscript) and _is_mask(node.value, ignored):
        found.masks.append(Mask(node, f"{text(target.value)}[...]", text(target.slice)))
    elif _has_run(node.value, ignored):
        found.masks.append(Mask(node, text(target), text(node.value)))


def _has_run(node: ast.expr, ignored: set[str]) -> bool:
    """Whether `[-100] * n` is part of an expression."""
    for one in ast.walk(node):
        if isinstance(one, ast.BinOp) and isinstance(one.op, ast.Mult):
            for side in (one.left, one.right):
                if isinstance(side, ast.List) and len(side.elts) == 1 and _is_mask(side.elts[0], ignored):
                    return True
    return False


def _called_mask(found: Outline, node: ast.Call, target: str, ignored: set[str]) -> None:
    func = node.func
    if not isinstance(func, ast.Attribute):
        return
    given = [*node.args, *(k.value for k in node.keywords)]
    if func.attr in ("masked_fill", "masked_fill_", "where") and any(_is_mask(a, ignored) for a in given):
        receiver = text(func.value) if func.attr != "where" else target or "labels"
        condition = next((a for a in given if not _is_mask(a, ignored)), None)
        found.masks.append(Mask(node, f"{receiver}[...]", text(condition) if condition is not None else ""))


def _blocks(found: Outline, body: Sequence[ast.AST]) -> None:
    for index, statement in enumerate(body):
        if isinstance(statement, ast.Try) and statement.handlers:
            _fallback(found, statement, body[index + 1 : index + 3])


def _fallback(found: Outline, node: ast.Try, after: Sequence[ast.AST]) -> None:
    first = next(_loads(node.body), None)
    if first is None:
        return
    second = next(_loads([s for h in node.handlers for s in h.body]), None)
    if second is None and not any(isinstance(s, (ast.Raise, ast.Return)) for h in node.handlers for s in h.body):
        # The handler only says so; what comes next is the second try.
        following = [s for s in after if isinstance(s, (ast.Return, ast.Try, ast.If, ast.Assign))][:1]
        if _returns(node.body) or (following and isinstance(following[0], ast.If)):
            second = next(_loads(following), None)
    if second is None:
        return
    same_target = first[1] == second[1] or "" in (first[1], second[1])
    if same_target and text(first[0].func) != text(second[0].func):
        found.fallbacks.append((first[0], second[0], node))


def _returns(body: Sequence[ast.stmt]) -> bool:
    return any(isinstance(one, ast.Return) for s in body for one in ast.walk(s))


def _loads(body: Sequence[ast.AST]) -> Iterator[tuple[ast.Call, str]]:
    """The `from_pretrained` calls in statements, each with the name it is assigned to ("" where it is returned)."""
    for statement in body:
        for one in ast.walk(statement):
            value = getattr(one, "value", None)
            if not isinstance(one, (ast.Assign, ast.Return, ast.AnnAssign)) or not isinstance(value, ast.Call):
                continue
            if isinstance(value.func, ast.Attribute) and value.func.attr == "from_pretrained":
                target = ""
                if isinstance(one, ast.Assign):
                    target = text(one.targets[0])
                elif isinstance(one, ast.AnnAssign):
                    target = text(one.target)
                yield value, target


def launch_words(source: str, name: str = "") -> str:
    """The launch command that a comment or docstring of the script `name` names; "" for none.

    A command that launches another file says nothing of this one.
    """
    if "torchrun" not in source and "launch" not in source and "deepspeed" not in source:
        return ""
    for match in _LAUNCH.finditer(source):
        line = source[match.start() : source.find("\n", match.start()) + 1 or len(source)]
        launched = re.search(r"([\w.-]+\.py)\b", line)
        if launched is None or not name or name.endswith(launched[1]):
            return " ".join(match.group().split())[:60]
    return ""


def is_rank(name: str) -> bool:
    """Whether an environment variable tells a process its rank."""
    return name in _RANKS


__all__ = ["LAUNCHED", "Imported", "Mask", "Outline", "is_rank", "launch_words", "names", "outline"]
