"""Expressions: what each would give, as far as can be known."""

from __future__ import annotations

import ast
import builtins
import operator
from collections.abc import Callable, Sequence
from typing import Any

from qlora_doctor.gather.static import invoke
from qlora_doctor.gather.static.machine import Machine, span, text, words
from qlora_doctor.gather.static.values import (
    MISSING,
    ORDER,
    RUNS,
    Choice,
    ClassValue,
    DictValue,
    Entry,
    Frozen,
    FunctionValue,
    Instance,
    ListValue,
    Made,
    Method,
    Partial,
    Snapshot,
    Super,
    Unknown,
    V,
    Words,
    bare,
    choose,
    each,
    is_constant,
    is_solid,
    ite,
    lift,
    present,
    same,
)
from qlora_doctor.source import Dotted

# The second is what the notebook reader makes of `%env NAME=value`.
_BUILTINS = frozenset(dir(builtins)) | {"__qlora_doctor_env__"}
_UNROLLED = 64


def evaluate(m: Machine, node: ast.expr) -> V:
    """The value of an expression on the present path."""
    handler = _HANDLERS.get(type(node))
    if handler is None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                evaluate(m, child)
        return Unknown(RUNS, words(node))
    return handler(m, node)


def _constant(m: Machine, node: ast.Constant) -> V:
    value = node.value
    return value if is_constant(value) else Unknown(RUNS, repr(value))


def _name(m: Machine, node: ast.Name) -> V:
    found = m.lookup(node.id)
    if found is not MISSING:
        return found
    if node.id in _BUILTINS:
        return Dotted(f"builtins.{node.id}")
    if node.id == "__file__":
        return m.pure.setdefault("__file__", Unknown(RUNS, "__file__"))
    if m.stars:
        return Dotted(f"{m.stars[-1]}.{node.id}")
    return m.pure.setdefault(("name", node.id), Unknown("is not defined where it can be seen", node.id))


def _attribute(m: Machine, node: ast.Attribute) -> V:
    base = evaluate(m, node.value)
    return present(m.world.here(attribute(m, base, node.attr, words(node), node)))


def attribute(m: Machine, base: V, name: str, written: str | Words, node: ast.AST) -> V:
    """`base.name`."""
    if isinstance(base, Choice):
        return _split(m, base, lambda leaf: attribute(m, leaf, name, written, node))
    if isinstance(base, Dotted):
        return Dotted(f"{base.name}.{name}")
    if isinstance(base, (Unknown, Made)):
        if name in base.attrs:
            return m.world.here(base.attrs[name])
        if isinstance(base, Made):
            if name in base.arguments:
                return thaw(m.world.here(bare(base.arguments[name])))
            found = base.cls.lookup(name) if base.cls is not None else MISSING
            if isinstance(found, FunctionValue) or (found is not MISSING and "**" not in base.arguments):
                return _bound(m, invoke.field_default(m, found), base, base.cls, node)
        return m.derive(base, ".", name, written)
    if isinstance(base, Instance):
        return _of_instance(m, base, name, written, node)
    if isinstance(base, ClassValue):
        found = base.lookup(name)
        if found is not MISSING:
            return _bound(m, found, MISSING, base, node)
        library = base.library_base()
        if library and not name.startswith("__"):
            return Dotted(f"{library}.{name}")
        return Unknown(RUNS, written)
    if isinstance(base, (DictValue, ListValue, Super, str)):
        return Method(base, name)
    return Unknown(RUNS, written)


def thaw(value: V) -> V:
    """A frozen value as one that can be used again."""
    if isinstance(value, Snapshot):
        return value.made
    if isinstance(value, Frozen):
        return DictValue(value.entries, value.open, value.made)
    if isinstance(value, Choice):
        return choose(value.atom, thaw(value.yes), thaw(value.no))
    return value


def _of_instance(m: Machine, base: Instance, name: str, written: str | Words, node: ast.AST) -> V:
    if name in base.attrs:
        value = m.world.here(base.attrs[name])
        if present(value) is not MISSING:
            return value
    if name == "__dict__":
        return DictValue(dict(base.attrs), "it is the state of an object")
    found = base.cls.lookup(name) if base.cls is not None else MISSING
    if found is not MISSING:
        return _bound(m, found, base, base.cls, node)
    key = ("instance", id(base), name)
    if key not in m.pure:
        m.world.kept.append(base)
        m.pure[key] = Unknown(base.open or RUNS, written)
    return m.pure[key]


def _bound(m: Machine, found: V, base: V, cls: ClassValue | None, node: ast.AST) -> V:
    if isinstance(found, FunctionValue):
        if found.kind == "static":
            return found
        if found.kind == "class":
            return found.bind(cls if base is MISSING or not isinstance(base, Instance) else base.cls)
        if found.kind == "property" and base is not MISSING:
            return invoke.function(m, found.bind(base), invoke.Arguments(), node)
        return found if base is MISSING else found.bind(base)
    return m.world.here(found)


def _split(m: Machine, value: Choice, work: Callable[[V], V]) -> V:
    """`work` of each leaf, on the path on which it is the value."""
    found: dict[bool, V] = {}

    def side(which: bool) -> bool:
        leaf = m.world.here(value.yes if which else value.no)
        if leaf is MISSING:
            found[which] = MISSING
        else:
            found[which] = _split(m, leaf, work) if isinstance(leaf, Choice) else work(leaf)
        return True

    m.world.branch(Choice(value.atom, True, False), lambda: side(True), lambda: side(False))
    if len(found) == 1:
        return next(iter(found.values()))
    return choose(value.atom, found[True], found[False])


split = _split


def _subscript(m: Machine, node: ast.Subscript) -> V:
    base = evaluate(m, node.value)
    if isinstance(node.slice, ast.Slice):
        return lift(lambda b: _sliced(m, b, node), base)
    key = evaluate(m, node.slice)
    return present(m.world.here(lift(lambda b, k: item(m, b, k, words(node)), base, key)))


def item(m: Machine, base: V, key: V, written: str | Words) -> V:
    """`base[key]`."""
    if isinstance(base, DictValue):
        if is_constant(key) and key in base.entries:
            return bare(base.entries[key])
        return Unknown(RUNS, written)
    if isinstance(base, ListValue):
        items = base.items
        if items is not None and type(key) is int and -len(items) <= key < len(items):
            return items[key]
        return Unknown(RUNS, written)
    if isinstance(base, str) and type(key) is int and -len(base) <= key < len(base):
        return base[key]
    if isinstance(base, Dotted):
        if base.name == "os.environ" and isinstance(key, str):
            return invoke.environment(m, key, written)
        return m.pure.setdefault(("item", base.name, _key(key)), Unknown(RUNS, written))
    if isinstance(base, Made):
        if key == 0 and invoke.gives_pair(base):
            return base
        if key == 1 and invoke.gives_pair(base):
            return invoke.second(base)
        return m.derive(base, "[]", _key(key), written)
    if isinstance(base, Unknown):
        if ("[]", _key(key)) in base.attrs:
            return base.attrs[("[]", _key(key))]
        return m.derive(base, "[]", _key(key), written)
    return Unknown(RUNS, written)


def _key(value: V) -> Any:
    if isinstance(value, Dotted):
        return "name", value.name
    return (type(value).__name__, value) if is_constant(value) else id(value)


key_of = _key


def _sliced(m: Machine, base: V, node: ast.Subscript) -> V:
    bounds: list[int | None] = []
    assert isinstance(node.slice, ast.Slice)
    for bound in (node.slice.lower, node.slice.upper, node.slice.step):
        value = None if bound is None else evaluate(m, bound)
        if not (value is None or type(value) is int):
            return Unknown(RUNS, words(node))
        bounds.append(value)
    if bounds[2] == 0:
        return Unknown(RUNS, words(node))
    if isinstance(base, ListValue) and base.items is not None:
        return ListValue(base.items[slice(*bounds)], base.kind)
    if isinstance(base, str):
        return base[slice(*bounds)]
    if isinstance(base, (Unknown, Made)):
        return m.derive(base, "[]", tuple(bounds), words(node))
    return Unknown(RUNS, words(node))


def _sequence(m: Machine, node: ast.List | ast.Tuple | ast.Set) -> V:
    items: list[V] = []
    known = True
    for element in node.elts:
        if isinstance(element, ast.Starred):
            value = evaluate(m, element.value)
            if isinstance(value, ListValue) and value.items is not None:
                items += value.items
            else:
                known = False
        else:
            items.append(evaluate(m, element))
    kind = "tuple" if isinstance(node, ast.Tuple) else "list"
    return ListValue(tuple(items) if known else None, kind)


def _dict(m: Machine, node: ast.Dict) -> V:
    made = DictValue(made=span(node))
    for key_node, value_node in zip(node.keys, node.values, strict=True):
        value = evaluate(m, value_node)
        if key_node is None:
            invoke.spread_into(m, made, value, text(value_node))
            continue
        key = evaluate(m, key_node)
        if is_constant(key):
            part = span(value_node)
            made.entries.pop(key, None)
            made.entries[key] = Entry(value, (key_node.lineno, key_node.col_offset, part[2], part[3]), part)
        else:
            made.state["open"] = f"the key {text(key_node)} is known only when the script runs"
    return made


def _joined(m: Machine, node: ast.JoinedStr) -> V:
    parts = [evaluate(m, v) for v in node.values]
    if any(isinstance(p, Choice) for p in parts):
        return lift(lambda *leaves: _concatenated(leaves, node), *parts)
    return _concatenated(tuple(parts), node)


def _concatenated(parts: tuple[V, ...], node: ast.JoinedStr) -> V:
    if all(isinstance(p, str) for p in parts):
        return "".join(parts)
    return Unknown(RUNS, words(node))


def _formatted(m: Machine, node: ast.FormattedValue) -> V:
    value = evaluate(m, node.value)

    def shown(leaf: V) -> V:
        if node.conversion == -1 and node.format_spec is None and isinstance(leaf, (str, int, float)):
            return str(leaf)
        return Unknown(RUNS, words(node.value))

    return lift(shown, value)


_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def _binary(m: Machine, node: ast.BinOp) -> V:
    left, right = evaluate(m, node.left), evaluate(m, node.right)
    return lift(lambda a, b: binary(m, node.op, a, b, words(node)), left, right)


def binary(m: Machine, op: ast.operator, a: V, b: V, written: str | Words) -> V:
    """`a op b`."""
    if is_constant(a) and is_constant(b):
        return _arithmetic(op, a, b, written)
    if isinstance(op, ast.BitOr) and isinstance(a, DictValue) and isinstance(b, DictValue):
        made = DictValue(dict(a.entries), a.state["open"], a.made)
        invoke.spread_into(m, made, b, str(written))
        return made
    if isinstance(op, ast.Add) and isinstance(a, ListValue) and isinstance(b, ListValue):
        known = a.items is not None and b.items is not None
        return ListValue((*(a.items or ()), *(b.items or ())) if known else None, a.kind)
    if isinstance(op, ast.Mult) and isinstance(a, str) and b == 0:
        return ""
    source = next((x for x in (a, b) if isinstance(x, (Unknown, Made))), None)
    if source is None:
        return Unknown(RUNS, written)
    return m.derive(source, "op", (type(op).__name__, _key(a), _key(b)), written)


def _arithmetic(op: ast.operator, a: V, b: V, written: str | Words) -> V:
    function = _ARITHMETIC.get(type(op))
    if function is None:
        if isinstance(op, ast.Pow) and all(type(x) in (int, float) and abs(x) <= 64 for x in (a, b)):
            function = operator.pow
        else:
            return Unknown(RUNS, written)
    if isinstance(op, ast.Mult) and isinstance(a, str) | isinstance(b, str):
        count = b if isinstance(a, str) else a
        if not isinstance(count, int) or count > 200:
            return Unknown(RUNS, written)
    try:
        return function(a, b)
    except (ArithmeticError, TypeError, ValueError):
        return Unknown(RUNS, written)


def _unary(m: Machine, node: ast.UnaryOp) -> V:
    if isinstance(node.op, ast.Not):
        tree = truth(m, node.operand)
        return ite(tree, False, True)
    value = evaluate(m, node.operand)

    def signed(leaf: V) -> V:
        if isinstance(leaf, (int, float)):
            if isinstance(node.op, ast.USub):
                return -leaf
            if isinstance(node.op, ast.UAdd):
                return leaf
        return Unknown(RUNS, words(node))

    return lift(signed, value)


def truth(m: Machine, node: ast.expr) -> V:
    """The truth tree of a test: True, False, or a choice between the two on conditions."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ite(truth(m, node.operand), False, True)
    if isinstance(node, ast.BoolOp):
        return _bool_tree(m, node)
    tree = m.truth(evaluate(m, node), words(node))
    return _sound(m, tree, node)


def _sound(m: Machine, tree: V, node: ast.expr) -> V:
    for leaf in each(tree):
        if not isinstance(leaf, bool):
            return m.fresh(words(node))
    return tree


def _bool_tree(m: Machine, node: ast.BoolOp) -> V:
    stop = isinstance(node.op, ast.Or)
    tree: V = not stop
    for value in node.values:
        if tree is stop:
            break
        found: list[V] = []

        def more(value: ast.expr = value, found: list[V] = found) -> bool:
            found.append(truth(m, value))
            return True

        if isinstance(tree, bool):
            tree = truth(m, value)
            continue
        mark = len(m.world.trail)
        with m.world.scope():
            m.world.assume(tree, not stop)
            more()
        m.world.merge(tree if not stop else ite(tree, False, True), m.world.rollback(mark), {})
        tree = ite(tree, True, found[0]) if stop else ite(tree, found[0], False)
    return _sound(m, tree, node)


def _bool(m: Machine, node: ast.BoolOp) -> V:
    value = evaluate(m, node.values[0])
    for index, more in enumerate(node.values[1:]):
        tree = _sound(m, m.truth(value, words(node.values[index])), node.values[index])
        is_or = isinstance(node.op, ast.Or)
        if tree is is_or:
            return value
        if isinstance(tree, bool):
            value = evaluate(m, more)
            continue
        mark = len(m.world.trail)
        with m.world.scope():
            m.world.assume(tree, not is_or)
            other = evaluate(m, more)
        written = m.world.rollback(mark)
        m.world.merge(ite(tree, False, True) if is_or else tree, written, {})
        value = ite(tree, value, other) if is_or else ite(tree, other, value)
    return value


def _compare(m: Machine, node: ast.Compare) -> V:
    left = evaluate(m, node.left)
    tree: V = True
    for op, right_node in zip(node.ops, node.comparators, strict=True):
        right = evaluate(m, right_node)
        one = lift(lambda a, b, op=op: _compared(m, op, a, b, node), left, right)
        tree = one if tree is True else ite(tree, one, False)
        left = right
    return m.world.here(tree)


def _compared(m: Machine, op: ast.cmpop, a: V, b: V, node: ast.Compare) -> V:
    if isinstance(op, (ast.NotEq, ast.IsNot, ast.NotIn)):
        positive: ast.cmpop = {ast.NotEq: ast.Eq(), ast.IsNot: ast.Is(), ast.NotIn: ast.In()}[type(op)]
        return ite(_compared(m, positive, a, b, node), False, True)
    if isinstance(op, (ast.Eq, ast.Is)):
        return _equal(m, a, b, node)
    if isinstance(op, ast.In):
        return _contains(m, a, b, node)
    sign = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}[type(op)]
    if is_constant(a) and is_constant(b):
        try:
            return ORDER[sign](a, b)
        except TypeError:
            return True
    written = words(node)
    if is_constant(a):
        a, b, sign = b, a, {"<": ">", "<=": ">=", ">": "<", ">=": "<="}[sign]
    return m.test((sign, _key(a), _key(b)), written, "", a, sign, b)


def _equal(m: Machine, a: V, b: V, node: ast.Compare) -> V:
    if is_constant(a) and is_constant(b):
        return bool(a == b)
    if isinstance(a, Dotted) and isinstance(b, Dotted):
        if a.name == b.name or (is_solid(a) and is_solid(b)):
            return a.name == b.name
        return m.test(("eq", a.name, b.name), words(node))
    if is_constant(a):
        a, b = b, a
    written = words(node)
    if isinstance(a, Unknown):
        if b is None:
            name = a.text or "it"
            return m.test(("none", id(a)), f"{name} is None", f"{name} is not None", a, "none")
        if b is True or b is False:
            tree = m.truth(a, a.text or written)
            return tree if b else ite(tree, False, True)
        if is_constant(b):
            name = a.text or "it"
            return m.test(("==", id(a), _key(b)), f"{name} == {b!r}", f"{name} != {b!r}", a, "==", b)
        m.world.kept.append(b)
        return m.test(("eq", id(a), id(b)), written)
    if a is b:
        return True
    if isinstance(a, Dotted) and not is_solid(a):
        return m.test(("eq", a.name, _key(b)), written)
    if b is None or isinstance(b, (bool, int, float)):
        return False
    if isinstance(a, (Dotted, DictValue, ListValue, FunctionValue, ClassValue)) and is_constant(b):
        return False
    m.world.kept += [a, b]
    return m.test(("eq", id(a), _key(b)), written)


def _contains(m: Machine, a: V, b: V, node: ast.Compare) -> V:
    written = words(node)
    if isinstance(b, ListValue) and b.items is not None and len(b.items) <= 8:
        tree: V = False
        for one in b.items:
            tree = ite(tree, True, lift(lambda x, y: _equal(m, x, y, node), a, one))
        return tree
    if isinstance(b, DictValue) and is_constant(a):
        if a in b.entries:
            return lift(lambda e: e is not MISSING, b.entries[a])
        if not b.state["open"]:
            return False
    if isinstance(a, str) and isinstance(b, str):
        return a in b
    m.world.kept += [a, b]
    right = node.comparators[-1]
    if isinstance(right, ast.Name) and right.id in m.told:
        written = f"{text(node.left)} in {right.id}, which comes of a version or a signature"
    return m.test(("in", _key(a), id(b)), written)


def _conditional(m: Machine, node: ast.IfExp) -> V:
    tree = truth(m, node.test)
    found: dict[bool, V] = {}

    def side(which: bool) -> bool:
        found[which] = evaluate(m, node.body if which else node.orelse)
        return True

    m.world.branch(tree, lambda: side(True), lambda: side(False))
    if len(found) == 1:
        return next(iter(found.values()))
    return ite(tree, found[True], found[False])


def _named(m: Machine, node: ast.NamedExpr) -> V:
    m.results[id(node.value)] = node.target.id
    value = evaluate(m, node.value)
    m.bind(node.target.id, value)
    return value


def _lambda(m: Machine, node: ast.Lambda) -> V:
    made = FunctionValue(node, "lambda", list(m.frame.scopes), defaults(m, node.args))
    m.functions.append(made)
    return made


def defaults(m: Machine, args: ast.arguments) -> dict[str, V]:
    """The values of parameter defaults, by name."""
    positional = [*args.posonlyargs, *args.args]
    found: dict[str, V] = {}
    for arg, default in zip(reversed(positional), reversed(args.defaults), strict=False):
        found[arg.arg] = evaluate(m, default)
    for arg, keyword_default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        if keyword_default is not None:
            found[arg.arg] = evaluate(m, keyword_default)
    return found


def elements(m: Machine, value: V) -> tuple[V, ...] | None:
    """What a loop over a value gives, where that is known."""
    if isinstance(value, ListValue):
        return value.items
    if isinstance(value, DictValue) and not value.state["open"]:
        return tuple(k for k in value.entries)
    if isinstance(value, str) and len(value) < 8:
        return tuple(value)
    return None


def _comprehension(m: Machine, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> V:
    generator = node.generators[0]
    source = evaluate(m, generator.iter)
    items = elements(m, source) if len(node.generators) == 1 else None
    scope: dict[str, V] = {}
    frame = m.frame
    frame.scopes.insert(0, scope)
    try:
        if items is None or len(items) > _UNROLLED or isinstance(source, Choice):
            return _unknown_comprehension(m, node, source)
        return _unrolled(m, node, items)
    finally:
        frame.scopes.remove(scope)


def _unrolled(m: Machine, node: Any, items: tuple[V, ...]) -> V:
    from qlora_doctor.gather.static.execute import store

    generator = node.generators[0]
    made = DictValue(made=span(node))
    found: list[V] = []
    for one in items:
        store(m, generator.target, one, generator.iter)
        keep: V = True
        for condition in generator.ifs:
            keep = ite(keep, truth(m, condition), False)
        if keep is False:
            continue
        if isinstance(node, ast.DictComp) and keep is not True and _by_name(generator.ifs):
            made.state["open"] = f"{text(generator.ifs[0])} decides which keys are there when the script runs"
            continue
        if isinstance(node, ast.DictComp):
            key, value = evaluate(m, node.key), evaluate(m, node.value)
            if is_constant(key):
                place = _place_of(one)
                made.entries[key] = ite(keep, Entry(value, *place), made.entries.get(key, MISSING))
            else:
                made.state["open"] = f"the key {text(node.key)} is known only when the script runs"
        else:
            value = evaluate(m, node.elt)
            if keep is not True:
                return ListValue(None)
            found.append(value)
    return made if isinstance(node, ast.DictComp) else ListValue(tuple(found))


def _by_name(conditions: Sequence[ast.expr]) -> bool:
    """Whether keys are kept that something contains: a signature, or the fields of a class."""
    return any(isinstance(c, ast.Compare) and isinstance(c.ops[0], (ast.In, ast.NotIn)) for c in conditions)


def _place_of(one: V) -> tuple[Any, Any]:
    if isinstance(one, ListValue) and one.items and isinstance(one.state.get("entry"), Entry):
        entry = one.state["entry"]
        return entry.whole, entry.part
    return None, None


def _unknown_comprehension(m: Machine, node: Any, source: V) -> V:
    from qlora_doctor.gather.static.execute import store

    for index, generator in enumerate(node.generators):
        value = source if index == 0 else evaluate(m, generator.iter)
        parent = next((leaf for leaf in each(value) if isinstance(leaf, (Unknown, Made))), None)
        one = (
            Unknown(RUNS, words(generator.target))
            if parent is None
            else m.derive(parent, "each", 0, words(generator.target))
        )
        store(m, generator.target, one, generator.iter)
        for condition in generator.ifs:
            truth(m, condition)
    if isinstance(node, ast.DictComp):
        evaluate(m, node.key)
        evaluate(m, node.value)
        return DictValue(why_open=f"the keys of {text(node)} are known only when the script runs", made=span(node))
    evaluate(m, node.elt)
    made = ListValue(None)
    return made


def _await(m: Machine, node: ast.Await) -> V:
    return evaluate(m, node.value)


def _call(m: Machine, node: ast.Call) -> V:
    return invoke.call(m, node)


_HANDLERS: dict[type, Callable[[Machine, Any], V]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.Attribute: _attribute,
    ast.Subscript: _subscript,
    ast.List: _sequence,
    ast.Tuple: _sequence,
    ast.Set: _sequence,
    ast.Dict: _dict,
    ast.JoinedStr: _joined,
    ast.FormattedValue: _formatted,
    ast.BinOp: _binary,
    ast.UnaryOp: _unary,
    ast.BoolOp: _bool,
    ast.Compare: _compare,
    ast.IfExp: _conditional,
    ast.NamedExpr: _named,
    ast.Lambda: _lambda,
    ast.ListComp: _comprehension,
    ast.SetComp: _comprehension,
    ast.GeneratorExp: _comprehension,
    ast.DictComp: _comprehension,
    ast.Await: _await,
    ast.Call: _call,
}

__all__ = ["Partial", "attribute", "evaluate", "item", "same", "split", "truth"]
