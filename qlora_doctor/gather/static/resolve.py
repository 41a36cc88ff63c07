"""From what was seen to what checks judge: values under one choice of the open conditions, and which choices matter."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping, Sequence

from qlora_doctor.gather.config_keys import SETTINGS
from qlora_doctor.gather.static import names
from qlora_doctor.gather.static.guards import says_version
from qlora_doctor.gather.static.machine import Record
from qlora_doctor.gather.static.values import (
    MISSING,
    Atom,
    Choice,
    ClassValue,
    DictValue,
    Entry,
    Frozen,
    FunctionValue,
    Instance,
    ListValue,
    Made,
    Partial,
    Snapshot,
    Unknown,
    V,
    freeze,
    implied,
)
from qlora_doctor.gather.static.world import Path, holds
from qlora_doctor.source import Call, Dotted, Site, Unresolved, Value

Assignment = dict[Atom, bool]
_DEPTH = 4


class Undecided(Exception):
    """Something that matters depends on this condition."""

    def __init__(self, atom: Atom) -> None:
        self.atom = atom


def decide(atom: Atom, assignment: Mapping[Atom, bool]) -> bool | None:
    """Whether a condition holds under an assignment, where that follows."""
    known = assignment.get(atom)
    if known is not None or atom.subject is None:
        return known
    for other, side in assignment.items():
        known = implied(atom, other, side)
        if known is not None:
            return known
    return None


def pick(value: V, assignment: Mapping[Atom, bool]) -> V:
    """The leaf of a choice. Raises Undecided."""
    while isinstance(value, Choice):
        side = decide(value.atom, assignment)
        if side is None:
            raise Undecided(value.atom)
        value = value.yes if side else value.no
    return value


def settle(value: V, assignment: Mapping[Atom, bool]) -> V:
    """A choice as far as the assignment decides it."""
    while isinstance(value, Choice):
        side = decide(value.atom, assignment)
        if side is None:
            return value
        value = value.yes if side else value.no
    return value


def opened(value: V, assignment: Mapping[Atom, bool]) -> tuple[V, dict[str, V]]:
    """The leaf behind entries and snapshots, with the attributes it had. Raises Undecided."""
    while True:
        value = pick(value, assignment)
        if isinstance(value, Entry):
            value = value.value
        elif isinstance(value, Snapshot):
            return value.made, value.attrs
        elif isinstance(value, Made):
            return value, value.attrs
        else:
            return value, {}


def matters(value: V, assignment: Mapping[Atom, bool], depth: int = 0) -> Atom | None:
    """The first condition on which it depends what a check would see; None where none is left."""
    value = settle(value, assignment)
    if isinstance(value, Choice):
        kinds = {_kind(leaf) for leaf in _reachable(value, assignment)}
        if len(kinds) > 1:
            return value.atom
        found = [matters(leaf, assignment, depth) for leaf in _reachable(value, assignment)]
        return next((f for f in found if f is not None), None)
    if depth > _DEPTH:
        return None
    if isinstance(value, Entry):
        return matters(value.value, assignment, depth)
    if isinstance(value, DictValue):
        value = freeze(value)
    if isinstance(value, Frozen):
        return first_that_matters([value.open, *value.entries.values()], assignment, depth + 1)
    if isinstance(value, ListValue) and value.items is not None:
        return first_that_matters(value.items, assignment, depth + 1)
    made = value.made if isinstance(value, Snapshot) else value
    if isinstance(made, Made) and names.is_configuration(made.function):
        given = [v for name, v in arguments_of(value).items() if name not in names.DULL]
        return first_that_matters(given, assignment, depth + 1)
    return None


def first_that_matters(values: Iterable[V], assignment: Mapping[Atom, bool], depth: int = 0) -> Atom | None:
    for value in values:
        found = matters(value, assignment, depth)
        if found is not None:
            return found
    return None


def arguments_of(value: V) -> dict[str, V]:
    """The arguments of a made object; those of a configuration that were set as attributes included."""
    if isinstance(value, Snapshot):
        made, attrs = value.made, value.attrs
    else:
        made, attrs = value, value.attrs
    arguments: dict[str, V] = dict(made.arguments)
    if attrs and names.is_configuration(made.function):
        for name, given in attrs.items():
            if not name.startswith("#") and _is_setting(made.function, name):
                arguments[name] = given
    return arguments


def _is_setting(function: str, name: str) -> bool:
    """Scripts hang things of their own on the training arguments; those are not settings."""
    return not names.is_settings(function) or name in SETTINGS


def _reachable(value: V, assignment: Mapping[Atom, bool]) -> list[V]:
    value = settle(value, assignment)
    if isinstance(value, Choice):
        return [*_reachable(value.yes, assignment), *_reachable(value.no, assignment)]
    return [value]


def _kind(leaf: V) -> object:
    if isinstance(leaf, Entry):
        inner = leaf.value
        return ("choice", id(inner)) if isinstance(inner, Choice) else _kind(inner)
    if leaf is MISSING:
        return "missing"
    if isinstance(leaf, Dotted):
        return ("name", leaf.name)
    if isinstance(leaf, Snapshot):
        leaf = leaf.made
    if isinstance(leaf, Made):
        return ("made", id(leaf)) if names.is_configuration(leaf.function) else "object"
    if isinstance(leaf, (Frozen, DictValue)):
        return ("dict", id(leaf))
    if isinstance(leaf, ListValue):
        return "object" if leaf.items is None else ("list", id(leaf))
    if isinstance(leaf, (Unknown, Instance, FunctionValue, Partial, ClassValue)):
        return "object"
    return (type(leaf).__name__, leaf)


def feasible(path: Path, assignment: Assignment) -> bool:
    """Whether the conditions under which a place is reached allow an assignment."""
    for test, side in path:
        held = holds(test, assignment)
        if held is not None and held is not side:
            return False
    return True


def expand(
    facts: Mapping[Atom, bool], path: Path, open_atom: Callable[[Assignment], Atom | None], limit: int
) -> list[tuple[Assignment, tuple[tuple[Atom, bool], ...]]]:
    """The assignments that make a difference, each with the conditions it adds to what is known at the place."""
    work: list[tuple[Assignment, tuple[tuple[Atom, bool], ...]]] = [(dict(facts), ())]
    done: list[tuple[Assignment, tuple[tuple[Atom, bool], ...]]] = []
    while work:
        assignment, added = work.pop(0)
        atom = open_atom(assignment) if len(done) + len(work) + 2 <= limit else None
        if atom is None:
            done.append((assignment, added))
            continue
        for side in (True, False):
            split = {**assignment, atom: side}
            if feasible(path, split):
                work.append((split, (*added, (atom, side))))
    return done


def words(added: Sequence[tuple[Atom, bool]]) -> str:
    """`if args.use_4bit and not args.fp16`; "" for no condition."""
    said = []
    for index, (atom, side) in enumerate(added):
        others = dict(pair for i, pair in enumerate(added) if i != index)
        if not any(implied(atom, other, s) is side for other, s in others.items()):
            said.append(atom.yes if side else atom.no)
    return f"if {' and '.join(said)}" if said else ""


class Resolver:
    """Turns values into those of `qlora_doctor.source`, under one assignment."""

    def __init__(
        self,
        site: Callable[[ast.AST, Mapping[str, V]], Site],
        order: Mapping[tuple[int, int], int],
        assignment: Mapping[Atom, bool],
        guards: Mapping[tuple[int, int], str] | None = None,
    ) -> None:
        self.site, self.order, self.assignment = site, order, assignment
        self.guards = guards or {}

    def value(self, value: V, depth: int = 0) -> Value:
        """A value; `Unresolved` where it is not known."""
        value = settle(value, self.assignment)
        if isinstance(value, Choice):
            return Unresolved(f"it depends on whether {value.atom.yes}")
        if isinstance(value, Entry):
            return self.value(value.value, depth)
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Dotted):
            return value
        if isinstance(value, Unknown):
            return Unresolved(f"{value.text} {value.reason}" if value.text else value.reason)
        if depth > _DEPTH:
            return Unresolved("it is nested too deeply")
        return self._compound(value, depth)

    def _compound(self, value: V, depth: int) -> Value:
        if isinstance(value, DictValue):
            value = freeze(value)
        if isinstance(value, Frozen):
            return self._mapping(value, depth)
        if isinstance(value, ListValue):
            if value.items is None:
                return Unresolved("its items are known only when the script runs")
            return tuple(self.value(i, depth + 1) for i in value.items)
        if isinstance(value, (Made, Snapshot)):
            return self.made(value, depth)
        if isinstance(value, Instance):
            if value.cls is None:
                return Unresolved("it is a namespace")
            return Call(value.cls.name, open="it is an object of the script's own class")
        if isinstance(value, (FunctionValue, ClassValue)) and value.name != "lambda":
            return Dotted(value.name)
        return Unresolved("it is known only when the script runs")

    def _mapping(self, value: Frozen, depth: int) -> Value:
        why = self.why_open(value.open)
        if why:
            return Unresolved(why)
        found: dict[str, Value] = {}
        for key, entry in value.entries.items():
            entry = settle(entry, self.assignment)
            if isinstance(entry, Choice):
                return Unresolved(f"it depends on whether {entry.atom.yes}")
            if entry is not MISSING:
                found[str(key)] = self.value(entry, depth + 1)
        return found

    def why_open(self, value: V) -> str:
        value = settle(value, self.assignment)
        if isinstance(value, Choice):
            return f"it depends on whether {value.atom.yes}"
        return value if isinstance(value, str) else ""

    def made(self, value: Made | Snapshot, depth: int = 0) -> Call:
        """The call that made an object."""
        made = value.made if isinstance(value, Snapshot) else value
        record: Record | None = made.record
        result = record.result if record is not None else ""
        return self.call(made.function, arguments_of(value), made.node, result=result, depth=depth)

    def call(
        self,
        function: str,
        arguments: Mapping[str, V],
        node: ast.AST | None,
        *,
        receiver: str = "",
        result: str = "",
        origin: str = "",
        depth: int = 0,
    ) -> Call:
        """A call with its arguments under the assignment."""
        given: dict[str, Value] = {}
        kept: dict[str, V] = {}
        why = self.why_open(arguments.get("**", ""))
        for name, entry in arguments.items():
            if name.startswith("**"):
                if isinstance(entry, Entry):
                    kept[name] = entry
                continue
            entry = settle(entry, self.assignment)
            if isinstance(entry, Choice) and any(leaf is MISSING for leaf in _reachable(entry, self.assignment)):
                if says_version(entry.atom.yes):
                    # Passed only where the installed function takes it.
                    why = why or f"it depends on whether {entry.atom.yes}"
                    continue
                # It is passed on some branch: there, but of no known value.
                given[name] = Unresolved(f"it depends on whether {entry.atom.yes}")
                continue
            if entry is MISSING:
                continue
            given[name] = self.value(entry, depth + 1)
            kept[name] = entry
        line = getattr(node, "lineno", 0)
        site = self.site(node, kept) if node is not None and line else None
        at = (line, getattr(node, "col_offset", 0))
        place, guarded = self.order.get(at, 0), self.guards.get(at, "")
        return Call(function, given, why, site, receiver, result, origin, place, guarded)


def signature(value: Value) -> object:
    """What two values have in common where they look the same to a check."""
    if isinstance(value, Call):
        return value.function, bool(value.open), tuple((k, signature(v)) for k, v in sorted(value.arguments.items()))
    if isinstance(value, Unresolved):
        return "?"
    if isinstance(value, tuple):
        return tuple(signature(v) for v in value)
    if isinstance(value, Mapping):
        return tuple((k, signature(v)) for k, v in value.items())
    return type(value).__name__, value
