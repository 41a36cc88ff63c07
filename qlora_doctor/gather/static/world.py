"""The store while a script is read: writes that can be taken back, what holds on this path, and the merging of branches.

Both sides of an undecided `if` are walked one after the other from the same store. What they wrote is then merged into
choices. Every variable, attribute and dict entry is a cell: a Python dict and a key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qlora_doctor.gather.static.values import (
    MISSING,
    Atom,
    Choice,
    Unknown,
    V,
    Words,
    choose,
    each,
    implied,
    ite,
    now,
    restrict,
    same,
)

MAX_EXITS = 24
Cell: TypeAlias = tuple[int, Any]
Changes: TypeAlias = dict[Cell, tuple[dict[Any, V], Any, V]]
Path: TypeAlias = list[tuple[V, bool]]


@dataclass(slots=True, eq=False)
class Exit:
    """One way out of a function or a loop body: under which conditions, with what result and which writes."""

    path: Path
    value: V
    changes: Changes
    since: int = 0


@dataclass(slots=True, eq=False)
class Exits:
    """The ways out that a `return`, `break` or `continue` took, of one body."""

    kind: str
    mark: int
    path_from: int
    found: list[Exit] = field(default_factory=list)
    more: bool = False


@dataclass(slots=True)
class World:
    """Cells are written through `write` only, so that a branch can be taken back."""

    trail: list[tuple[dict[Any, V], Any, V]] = field(default_factory=list)
    facts: dict[Atom, bool] = field(default_factory=dict)
    path: Path = field(default_factory=list)
    moments: list[int] = field(default_factory=list)
    exits: list[Exits] = field(default_factory=list)
    atoms: dict[Any, Atom] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)

    def write(self, cells: dict[Any, V], key: Any, value: V) -> None:
        """Sets a cell; MISSING deletes it."""
        self.trail.append((cells, key, cells.get(key, MISSING)))
        if value is MISSING:
            cells.pop(key, None)
        else:
            cells[key] = value

    def changes(self, mark: int) -> Changes:
        """What was written since `mark`, with the values of now."""
        found: Changes = {}
        for cells, key, _ in self.trail[mark:]:
            found[(id(cells), key)] = (cells, key, cells.get(key, MISSING))
        return found

    def rollback(self, mark: int) -> Changes:
        """Takes back what was written since `mark`, and says what it was."""
        found = self.changes(mark)
        while len(self.trail) > mark:
            cells, key, old = self.trail.pop()
            if old is MISSING:
                cells.pop(key, None)
            else:
                cells[key] = old
        return found

    def apply(self, changes: Changes) -> None:
        for cells, key, value in changes.values():
            self.write(cells, key, value)

    def merge(self, test: V, yes: Changes, no: Changes, since: int = 0) -> None:
        """Writes what two branches wrote, as choices on `test`; `since` is when they began.

        What was born in a branch exists on that side only, so its cells need no choice.
        """
        for cell in {**yes, **no}:
            cells, key, _ = yes.get(cell) or no[cell]
            if since and getattr(cells, "born", 0) > since:
                self.write(cells, key, (yes.get(cell) or no[cell])[2])
                continue
            base = cells.get(key, MISSING)
            value_yes = yes[cell][2] if cell in yes else base
            value_no = no[cell][2] if cell in no else base
            merged = ite(test, value_yes, value_no)
            if not same(merged, base):
                self.write(cells, key, merged)

    def atom(
        self, key: Any, yes: str | Words, no: str, subject: V = None, relation: str = "", operand: V = None
    ) -> Atom:
        """The condition of this key: the same object whenever it is tested again."""
        found = self.atoms.get(key)
        if found is None:
            found = self.atoms[key] = Atom(yes, no, subject, relation, operand)
            if subject is not None:
                self.kept.append(subject)
        return found

    def decide(self, atom: Atom) -> bool | None:
        """Whether a condition holds on this path, where that is known."""
        known = self.facts.get(atom)
        if known is not None or atom.subject is None:
            return known
        for other, side in self.facts.items():
            if other.subject is atom.subject:
                known = implied(atom, other, side)
                if known is not None:
                    return known
        return None

    def here(self, value: V) -> V:
        """A value as it is on this path."""
        while isinstance(value, Choice):
            decided = self.decide(value.atom)
            if decided is None:
                break
            value = value.yes if decided else value.no
        if not isinstance(value, Choice) or not self.facts:
            return value
        yes, no = self.here(value.yes), self.here(value.no)
        if yes is value.yes and no is value.no:
            return value
        return choose(value.atom, yes, no)

    def assume(self, test: V, side: bool) -> None:
        """From here to the end of the scope `test` is `side`."""
        self.path.append((test, side))
        self.moments.append(now())
        self.facts.update(literals(test, side))

    def hold(self, test: V) -> None:
        """`assume` a test that holds from here on, unless it says nothing."""
        if isinstance(test, Choice) and all(isinstance(leaf, bool) for leaf in each(test)):
            self.assume(test, True)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """What is assumed inside is forgotten at the end."""
        facts, length = self.facts, len(self.path)
        self.facts = dict(facts)
        try:
            yield
        finally:
            self.facts = facts
            del self.path[length:]
            del self.moments[length:]

    def branch(self, test: V, then: Callable[[], bool], other: Callable[[], bool]) -> bool:
        """Runs both sides and merges what they wrote. A side says whether its end is reached; so does the result."""
        test = self.here(test)
        if test is True:
            return then()
        if test is False:
            return other()
        mark, since = len(self.trail), now()
        depth = len(self.path) + 1
        with self.scope():
            self.assume(test, True)
            live_yes = then()
            held_yes = conjunction(self.path[depth:])
        yes = self.rollback(mark)
        with self.scope():
            self.assume(test, False)
            live_no = other()
            held_no = conjunction(self.path[depth:])
        no = self.rollback(mark)
        if live_yes and live_no:
            self.merge(test, yes, no, since)
            self.hold(ite(test, held_yes, held_no))
        elif live_yes or live_no:
            self.apply(yes if live_yes else no)
            self.assume(test, live_yes)
            self.hold(held_yes if live_yes else held_no)
        return live_yes or live_no

    def body(self, kind: str, run: Callable[[], bool]) -> tuple[bool, V]:
        """Runs the body of a function or a loop, and joins its ways out. Returns (whether it ends, its result)."""
        exits = Exits(kind, len(self.trail), len(self.path))
        self.exits.append(exits)
        try:
            with self.scope():
                live = run()
                held = list(self.path[exits.path_from :])
        finally:
            self.exits.pop()
        found = exits.found
        if live:
            found.append(Exit(held, None, self.changes(exits.mark)))
        if not found:
            return False, None
        if exits.more:
            found.append(Exit([], Unknown("depends on too many conditions"), {}))
        else:
            self.hold(disjunction([way.path for way in found]))
        if len(found) == 1:
            return True, found[0].value
        self.rollback(exits.mark)
        last = found.pop()
        changes, value = last.changes, last.value
        for way in reversed(found):
            changes = self._join(way, changes)
            value = _under(way.path, way.value, value)
        self.apply(changes)
        return True, value

    def leave(self, kind: str, value: V = None) -> bool:
        """Takes the way out of the nearest body of this kind. Always False: what follows is not reached."""
        for exits in reversed(self.exits):
            if exits.kind == kind and len(exits.found) >= MAX_EXITS:
                exits.more = True
                break
            if exits.kind == kind:
                changes = self.changes(exits.mark)
                path = list(self.path[exits.path_from :])
                since = self.moments[exits.path_from] if path else 0
                exits.found.append(Exit(path, value, changes, since))
                break
        return False

    def _join(self, way: Exit, rest: Changes) -> Changes:
        joined: Changes = {}
        for cell in {**way.changes, **rest}:
            cells, key, _ = way.changes.get(cell) or rest[cell]
            if way.since and getattr(cells, "born", 0) > way.since:
                joined[cell] = way.changes.get(cell) or rest[cell]
                continue
            base = cells.get(key, MISSING)
            here = way.changes[cell][2] if cell in way.changes else base
            there = rest[cell][2] if cell in rest else base
            joined[cell] = (cells, key, _under(way.path, here, there))
        return joined


def _under(path: Path, value: V, otherwise: V) -> V:
    for test, side in reversed(path):
        value = ite(test, value, otherwise) if side else ite(test, otherwise, value)
    return value


def conjunction(path: Path) -> V:
    """All of a path as one truth tree."""
    tree: V = True
    for test, side in reversed(path):
        tree = ite(test, tree, False) if side else ite(test, False, tree)
    return tree


def disjunction(paths: list[Path]) -> V:
    """That one of these paths was taken, as a truth tree."""
    tree: V = False
    for path in paths:
        tree = ite(conjunction(path), True, tree)
    return tree


def literals(test: V, side: bool) -> dict[Atom, bool]:
    """The single conditions that follow from a truth tree being `side`."""
    if not isinstance(test, Choice):
        return {}
    ways = list(_ways(test, side, {}))
    if not ways:
        return {}
    common = ways[0]
    for way in ways[1:]:
        common = {a: s for a, s in common.items() if way.get(a) is s}
    return common


def _ways(test: V, side: bool, taken: dict[Atom, bool]) -> Iterator[dict[Atom, bool]]:
    if isinstance(test, Choice):
        yield from _ways(test.yes, side, {**taken, test.atom: True})
        yield from _ways(test.no, side, {**taken, test.atom: False})
    elif test is side:
        yield taken


def holds(test: V, assignment: dict[Atom, bool]) -> bool | None:
    """What a truth tree is under an assignment; None where it is left open."""
    for atom, side in assignment.items():
        test = restrict(test, atom, side)
    return test if isinstance(test, bool) else None
