"""The state of one reading: the store, the scopes, and what was seen."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from qlora_doctor.gather.static.values import (
    MISSING,
    RUNS,
    Atom,
    Choice,
    ClassValue,
    DictValue,
    FunctionValue,
    Instance,
    ListValue,
    Made,
    Partial,
    Span,
    Unknown,
    V,
    Words,
    choose,
    is_constant,
    is_solid,
    present,
)
from qlora_doctor.gather.static.world import Path, World
from qlora_doctor.source import Dotted

MAX_STEPS = 40_000
MAX_DEPTH = 12
MAX_RUNS = 6


@dataclass(slots=True)
class Record:
    """One call as it was seen once: in one context, with its arguments of that moment."""

    node: ast.AST
    function: str
    arguments: dict[str, V]
    receiver: str = ""
    receiver_value: V = None
    result: str = ""
    facts: dict[Atom, bool] = field(default_factory=dict)
    path: Path = field(default_factory=list)
    made: Made | None = None


@dataclass(slots=True)
class Written:
    """An environment write or an assignment as it was seen."""

    node: ast.AST
    target: str
    value: V
    value_text: str = ""
    base: V = None
    origin: str = ""
    default_only: bool = False
    nested: bool = False
    imported: tuple[str, ...] = ()


@dataclass(slots=True)
class Frame:
    """One running function: its scopes from the inside out, and the names it declares global or nonlocal."""

    scopes: list[dict[str, V]]
    function: FunctionValue | None = None
    outer: frozenset[str] = frozenset()


@dataclass(slots=True)
class Machine:
    """What the evaluator carries along."""

    world: World = field(default_factory=World)
    module: dict[str, V] = field(default_factory=dict)
    frames: list[Frame] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    environ: list[Written] = field(default_factory=list)
    assignments: list[Written] = field(default_factory=list)
    imported: dict[str, None] = field(default_factory=dict)
    local_imports: dict[str, tuple[str, ...]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    results: dict[int, str] = field(default_factory=dict)
    functions: list[FunctionValue] = field(default_factory=list)
    classes: list[ClassValue] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)
    bound: dict[int, Partial] = field(default_factory=dict)
    runs: Counter[int] = field(default_factory=Counter)
    active: list[ast.AST] = field(default_factory=list)
    pure: dict[Any, V] = field(default_factory=dict)
    steps: int = 0
    plain: bool = False
    told: frozenset[str] = frozenset()
    line: int = 0

    @property
    def frame(self) -> Frame:
        return self.frames[-1]

    @property
    def nested(self) -> bool:
        return len(self.frames) > 1

    @contextmanager
    def enter(self, frame: Frame) -> Iterator[None]:
        self.frames.append(frame)
        try:
            yield
        finally:
            self.frames.pop()

    def lookup(self, name: str) -> V:
        """The value of a name on this path; MISSING where it is not bound."""
        for scope in self.frame.scopes:
            if name in scope:
                value = present(self.world.here(scope[name]))
                if value is not MISSING:
                    return value
        return MISSING

    def bind(self, name: str, value: V) -> None:
        """Sets a name in the scope that Python would set it in."""
        scopes = self.frame.scopes
        if name in self.frame.outer:
            scope = next((s for s in scopes[1:] if name in s), self.module)
        else:
            scope = scopes[0]
        self.world.write(scope, name, value)

    def fresh(self, yes: str | Words, no: str = "") -> V:
        """A new condition, as a truth tree."""
        return Choice(Atom(yes, no), True, False)

    def test(
        self, key: Any, yes: str | Words, no: str = "", subject: V = None, relation: str = "", operand: V = None
    ) -> V:
        """A condition as a truth tree; the same key gives the same condition."""
        atom = self.world.atom(key, yes, no, subject, relation, operand)
        decided = self.world.decide(atom)
        return Choice(atom, True, False) if decided is None else decided

    def derive(self, parent: V, step: str, key: Any, text: str | Words) -> V:
        """What is taken from something unknown: the same thing for the same key."""
        memo = parent.memo
        found = memo.get((step, key))
        if found is None:
            reason = parent.reason if isinstance(parent, Unknown) else RUNS
            if isinstance(parent, Made) and str(parent.arguments.get("**", "")).startswith("it comes from"):
                reason = str(parent.arguments["**"]).removeprefix("it ")
            found = memo[(step, key)] = Unknown(reason, text, parent, step)
        return found

    def truth(self, value: V, text: str | Words) -> V:
        """The truth tree of a value; `text` is how the script writes it."""
        if isinstance(value, bool):
            return value
        if is_constant(value):
            return bool(value)
        if isinstance(value, Choice):
            return self.world.here(choose(value.atom, self.truth(value.yes, text), self.truth(value.no, text)))
        if isinstance(value, DictValue):
            if any(not isinstance(e, Choice) for e in value.entries.values()):
                return True
            if not value.entries and not value.state["open"]:
                return False
            return self.test(("dict", id(value), len(self.world.trail)), text, "", value)
        if isinstance(value, ListValue):
            items = value.items
            if items is not None:
                return bool(items)
            return self.test(("truth", id(value)), text, "", value)
        if isinstance(value, Dotted) and not is_solid(value):
            return self.test(("truth", value.name), text, "")
        if isinstance(value, Unknown):
            return self.test(("truth", id(value)), text, "", value, "truth")
        return True


def span(node: ast.AST) -> Span:
    """Where a node stands: line and UTF-8 column of its start and its end."""
    return (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]


def words(node: ast.AST) -> str | Words:
    """A node as the script would write it, shortened; written out when it is shown."""
    return dotted(node) or Words(node)


def text(node: ast.AST) -> str:
    """A node as the script would write it, shortened."""
    return str(words(node))


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a chain of plain names; "" for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    parts.append(node.id)
    return ".".join(reversed(parts))


def root_of(value: V) -> V:
    """The object that an unknown value was taken from, by attributes, items and calls."""
    while isinstance(value, Unknown) and value.parent is not None:
        value = value.parent
    return value


def part_of(value: V) -> V:
    """The object whose attribute (or module) an unknown value is; itself where it is none."""
    while isinstance(value, Unknown) and value.parent is not None and value.step in (".", "[]", "module"):
        value = value.parent
    return value
