"""What a variable can hold while a script is read.

Plain constants and `Dotted` names stand for themselves. A value that depends on a condition nobody can decide is a
`Choice` between two others: a small decision tree, whose conditions are shared, so that two tests of one flag agree.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from qlora_doctor.source import Dotted

V: TypeAlias = Any
Span: TypeAlias = tuple[int, int, int, int]

MAX_LEAVES = 24
RUNS = "is known only when the script runs"


class Missing:
    """No value: a name that is not bound, a key that is not there, an argument that is not passed."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()


_BORN = itertools.count(1)


class Cells(dict[Any, Any]):
    """A dict whose entries are cells of the store. `born` orders it among all others."""

    __slots__ = ("born",)

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.born = next(_BORN)


def now() -> int:
    """A moment that lies after the birth of all cells so far, and before all later ones."""
    return next(_BORN)


class Words:
    """What the script writes at a node. Written out only when somebody asks: most of it is never shown."""

    __slots__ = ("node", "written")

    def __init__(self, node: ast.AST) -> None:
        self.node, self.written = node, ""

    def __str__(self) -> str:
        if not self.written:
            try:
                written = ast.unparse(self.node)
            except RecursionError:
                written = "..."
            self.written = written if len(written) <= 80 else written[:77] + "..."
        return self.written


class Atom:
    """A condition that only running the script would decide. `yes` and `no` say it in words.

    `subject`, `relation` and `operand` let one condition decide another (`bits == 4` decides `bits == 8`).
    """

    __slots__ = ("_no", "_yes", "operand", "relation", "subject")

    def __init__(
        self, yes: str | Words, no: str = "", subject: V = None, relation: str = "", operand: V = None
    ) -> None:
        self._yes, self._no = yes, no
        self.subject, self.relation, self.operand = subject, relation, operand

    @property
    def yes(self) -> str:
        return str(self._yes)

    @property
    def no(self) -> str:
        if self._no:
            return self._no
        written = self.yes
        return f"not ({written})" if " " in written and not written.endswith(")") else f"not {written}"

    def __repr__(self) -> str:
        return f"<{self.yes}>"


class Choice:
    """`yes` where the condition holds, else `no`."""

    __slots__ = ("about", "atom", "leaves", "no", "yes")

    def __init__(self, atom: Atom, yes: V, no: V) -> None:
        self.atom, self.yes, self.no = atom, yes, no
        self.leaves = leaves(yes) + leaves(no)
        # What it depends on, for a quick no: its conditions and what they are about.
        about: set[int] = {id(atom)} if atom.subject is None else {id(atom), id(atom.subject)}
        for side in (yes, no):
            if isinstance(side, Choice):
                about |= side.about
        self.about: set[int] = about

    def __repr__(self) -> str:
        return f"({self.atom.yes} ? {self.yes!r} : {self.no!r})"


class Unknown:
    """A value that cannot be known. `text` is how the script writes it, `reason` why nobody knows.

    `parent` and `step` say what it was taken from: an attribute (`.config`), an item (`[]`) or a call (`()`).
    """

    __slots__ = ("_text", "attrs", "memo", "parent", "reason", "step")

    def __init__(self, reason: str, text: str | Words = "", parent: V = None, step: str = "") -> None:
        self.reason, self._text, self.parent, self.step = reason, text, parent, step
        self.attrs: Cells = Cells()
        self.memo: dict[Any, V] = {}

    @property
    def text(self) -> str:
        return str(self._text)

    def __repr__(self) -> str:
        return f"?{self.text or self.reason}"


class Entry:
    """A value with the place where the script sets it: the whole `key: value`, and the value alone."""

    __slots__ = ("part", "value", "whole")

    def __init__(self, value: V, whole: Span | None, part: Span | None) -> None:
        self.value, self.whole, self.part = value, whole, part

    def __repr__(self) -> str:
        return repr(self.value)


class DictValue:
    """A dict: keys to entries. `state["open"]` says why there may be keys that are not seen."""

    __slots__ = ("entries", "made", "state")

    def __init__(self, entries: dict[V, V] | None = None, why_open: V = "", made: Span | None = None) -> None:
        self.entries: Cells = Cells() if entries is None else Cells(entries)
        self.state: Cells = Cells({"open": why_open})
        self.made = made


class ListValue:
    """A list, tuple or set. `state["items"]` is None where its length is not known."""

    __slots__ = ("kind", "state")

    def __init__(self, items: tuple[V, ...] | None, kind: str = "list") -> None:
        self.state: Cells = Cells({"items": items})
        self.kind = kind

    @property
    def items(self) -> tuple[V, ...] | None:
        items = self.state["items"]
        return items if isinstance(items, tuple) else None


class Made:
    """What a library call returned. `arguments` holds entries by name (`#0` for positional ones without a name).

    The key `**` of `arguments` says why there may be more. `attrs` are attributes that the script set afterwards; names
    with a `#` are marks of ours (`#prepared`). `cls` is the script's own class, where it derives from the library's.
    """

    __slots__ = ("arguments", "attrs", "cls", "function", "memo", "node", "record")

    def __init__(self, function: str, arguments: dict[str, V], node: ast.AST | None, cls: ClassValue | None = None):
        self.function, self.arguments, self.node, self.cls = function, arguments, node, cls
        self.attrs: Cells = Cells()
        self.memo: dict[Any, V] = {}
        self.record: Any = None

    def __repr__(self) -> str:
        return f"{self.function}(..)"


class Snapshot:
    """A `Made` with the attributes it had at one moment."""

    __slots__ = ("attrs", "made")

    def __init__(self, made: Made, attrs: dict[str, V]) -> None:
        self.made, self.attrs = made, attrs


class Frozen:
    """A dict as it was at one moment."""

    __slots__ = ("entries", "made", "open")

    def __init__(self, entries: dict[V, V], why_open: V, made: Span | None) -> None:
        self.entries, self.open, self.made = entries, why_open, made


class FunctionValue:
    """A function or lambda of the script, with the scopes it closes over and the object it is bound to."""

    __slots__ = ("bound", "defaults", "kind", "name", "node", "owner", "scopes")

    def __init__(
        self,
        node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda,
        name: str,
        scopes: list[dict[str, V]],
        defaults: dict[str, V],
        kind: str = "",
        owner: ClassValue | None = None,
        bound: V = MISSING,
    ) -> None:
        self.node, self.name, self.scopes, self.defaults = node, name, scopes, defaults
        self.kind, self.owner, self.bound = kind, owner, bound

    def bind(self, to: V) -> FunctionValue:
        return FunctionValue(self.node, self.name, self.scopes, self.defaults, self.kind, self.owner, to)


class ClassValue:
    """A class of the script. `fields` are the annotated ones of a dataclass, in order."""

    __slots__ = ("attrs", "bases", "fields", "name", "node", "record")

    def __init__(self, node: ast.ClassDef, bases: list[V]) -> None:
        self.node, self.name, self.bases = node, node.name, bases
        self.attrs: Cells = Cells()
        self.fields: list[str] = []
        self.record = False

    def lookup(self, name: str) -> V:
        """An attribute of the class or of its bases in this script."""
        if name in self.attrs:
            return self.attrs[name]
        for base in self.bases:
            if isinstance(base, ClassValue):
                found = base.lookup(name)
                if found is not MISSING:
                    return found
        return MISSING

    def library_base(self) -> str:
        """The import path of the nearest base that the script does not define; "" for none but object."""
        for base in self.bases:
            if isinstance(base, Dotted):
                return base.name
            if isinstance(base, ClassValue) and base.library_base():
                return base.library_base()
        return ""

    def all_fields(self) -> list[str]:
        """The fields of a dataclass, those of its bases first."""
        names: list[str] = []
        for base in self.bases:
            if isinstance(base, ClassValue):
                names += [n for n in base.all_fields() if n not in names]
        return names + [n for n in self.fields if n not in names]


class Instance:
    """An object of a class of the script."""

    __slots__ = ("attrs", "cls", "open")

    def __init__(self, cls: ClassValue | None) -> None:
        self.cls = cls
        self.attrs: Cells = Cells()
        self.open = ""


class Partial:
    """`functools.partial`."""

    __slots__ = ("args", "function", "kwargs")

    def __init__(self, function: V, args: list[V], kwargs: dict[str, V]) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs


class Method:
    """A method of something that is not the script's own."""

    __slots__ = ("name", "receiver")

    def __init__(self, receiver: V, name: str) -> None:
        self.receiver, self.name = receiver, name


class Super:
    """`super()` in a method of `owner`."""

    __slots__ = ("instance", "owner")

    def __init__(self, instance: V, owner: ClassValue | None) -> None:
        self.instance, self.owner = instance, owner


CONSTANTS = (str, int, float, bool, bytes, type(None))


_DTYPE = re.compile(r"torch\.(b?float\d*\w*|half|double|u?int\d*|long|short|bool|complex\d*)$")


def is_solid(value: V) -> bool:
    """Whether a name stands for a thing (a class, a dtype), not for a setting such as `torch.version.cuda`."""
    if not isinstance(value, Dotted):
        return False
    name = value.name.rpartition(".")[2]
    if value.name.startswith("builtins.") or _DTYPE.match(value.name):
        return True
    return name[:1].isupper() and not name.isupper()


def is_constant(value: V) -> bool:
    """Whether a value is a plain constant."""
    return isinstance(value, CONSTANTS)


def leaves(value: V) -> int:
    """How many different values it can be."""
    return value.leaves if isinstance(value, Choice) else 1


def same(a: V, b: V) -> bool:
    """Whether two values are surely the same."""
    if a is b:
        return True
    if is_constant(a) and is_constant(b):
        return type(a) is type(b) and bool(a == b)
    if isinstance(a, Dotted):
        return isinstance(b, Dotted) and a.name == b.name
    if isinstance(a, Choice) and isinstance(b, Choice):
        return a.atom is b.atom and same(a.yes, b.yes) and same(a.no, b.no)
    return False


def implied(query: Atom, known: Atom, side: bool) -> bool | None:
    """What `known` being `side` says about `query`; None for nothing."""
    if query is known:
        return side
    if known.subject is None or query.subject is not known.subject:
        return None
    if known.relation == "==" and side:
        return _holds(query, known.operand)
    if known.relation == "truth":
        if side and (query.relation == "none" or (query.relation == "==" and not query.operand)):
            return False
        if not side and query.relation == "==" and query.operand:
            return False
    if known.relation == "none" and side:
        return _holds(query, None)
    return None


def _holds(atom: Atom, value: V) -> bool | None:
    if atom.relation == "==":
        return bool(atom.operand == value)
    if atom.relation == "truth":
        return bool(value)
    if atom.relation == "none":
        return value is None
    if atom.relation in ORDER and isinstance(value, (int, float)) and isinstance(atom.operand, (int, float)):
        return ORDER[atom.relation](value, atom.operand)
    return None


ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
}


def restrict(value: V, atom: Atom, side: bool) -> V:
    """A value once `atom` is known to be `side`."""
    if not isinstance(value, Choice):
        return value
    if id(atom) not in value.about and (atom.subject is None or id(atom.subject) not in value.about):
        return value
    decided = implied(value.atom, atom, side)
    if decided is not None:
        return restrict(value.yes if decided else value.no, atom, side)
    yes, no = restrict(value.yes, atom, side), restrict(value.no, atom, side)
    if yes is value.yes and no is value.no:
        return value
    return yes if same(yes, no) else Choice(value.atom, yes, no)


def choose(atom: Atom, yes: V, no: V) -> V:
    """`Choice`, simplified."""
    yes, no = restrict(yes, atom, True), restrict(no, atom, False)
    if same(yes, no):
        return yes
    if leaves(yes) + leaves(no) > MAX_LEAVES:
        return Unknown("it depends on too many conditions")
    return Choice(atom, yes, no)


def ite(test: V, yes: V, no: V) -> V:
    """`yes` if the truth tree `test` else `no`."""
    if test is True:
        return yes
    if test is False:
        return no
    if same(yes, no):
        return yes
    if not isinstance(test, Choice):
        return Unknown("it depends on a condition")
    return choose(test.atom, ite(test.yes, yes, no), ite(test.no, yes, no))


def lift(function: Callable[..., V], *values: V) -> V:
    """`function` of values, for each way in which choices among them can go."""
    for value in values:
        if isinstance(value, Choice):
            atom = value.atom
            return choose(
                atom,
                lift(function, *(restrict(v, atom, True) for v in values)),
                lift(function, *(restrict(v, atom, False) for v in values)),
            )
    return function(*values)


def present(value: V) -> V:
    """A value without the ways in which it is missing; MISSING where it is missing in all."""
    if isinstance(value, Choice):
        yes, no = present(value.yes), present(value.no)
        if yes is MISSING:
            return no
        if no is MISSING:
            return yes
        return value if yes is value.yes and no is value.no else choose(value.atom, yes, no)
    return value


def each(value: V) -> list[V]:
    """All leaves of a choice."""
    if isinstance(value, Choice):
        return each(value.yes) + each(value.no)
    return [value]


def bare(value: V) -> V:
    """A value without its place: entries are opened."""
    if isinstance(value, Entry):
        return bare(value.value)
    if isinstance(value, Choice):
        yes, no = bare(value.yes), bare(value.no)
        return value if yes is value.yes and no is value.no else choose(value.atom, yes, no)
    return value


def freeze(value: V, depth: int = 0) -> V:
    """A value as it is now; later changes of dicts, lists and attributes do not reach it."""
    if depth > 8:
        return value
    if isinstance(value, Choice):
        return Choice(value.atom, freeze(value.yes, depth), freeze(value.no, depth))
    if isinstance(value, Entry):
        return Entry(freeze(value.value, depth), value.whole, value.part)
    if isinstance(value, DictValue):
        entries = {k: freeze(v, depth + 1) for k, v in value.entries.items()}
        return Frozen(entries, value.state["open"], value.made)
    if isinstance(value, ListValue):
        items = value.items
        held = value.state["items"]
        if isinstance(held, Choice):
            return lift(lambda leaf: freeze(ListValue(leaf, value.kind), depth + 1), held)
        return ListValue(None if items is None else tuple(freeze(v, depth + 1) for v in items), value.kind)
    if isinstance(value, Made):
        return Snapshot(value, {k: freeze(v, depth + 1) for k, v in value.attrs.items()})
    return value
