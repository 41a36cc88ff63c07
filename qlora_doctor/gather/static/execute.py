"""Statements. Each says whether what follows it is reached."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

from qlora_doctor.gather.static import builtin, evaluate, invoke, names
from qlora_doctor.gather.static.machine import (
    MAX_STEPS,
    Frame,
    Machine,
    Written,
    dotted,
    part_of,
    root_of,
    span,
    text,
    words,
)
from qlora_doctor.gather.static.values import (
    MISSING,
    RUNS,
    Choice,
    ClassValue,
    DictValue,
    Entry,
    FunctionValue,
    Instance,
    ListValue,
    Made,
    Snapshot,
    Unknown,
    V,
    each,
    is_constant,
    ite,
    lift,
)
from qlora_doctor.source import Dotted

_UNROLL = 6
_LEAVING = frozenset({"sys.exit", "builtins.exit", "builtins.quit", "os._exit", "os.abort"})


def block(m: Machine, body: Sequence[ast.stmt]) -> bool:
    """Walks statements; False where their end is not reached."""
    for statement in body:
        m.steps += 1
        if m.steps > 4 * MAX_STEPS:
            return True
        handler = _HANDLERS.get(type(statement))
        if handler is not None:
            try:
                if not handler(m, statement):
                    return False
            except RecursionError:
                continue
    return True


def _expression(m: Machine, node: ast.Expr) -> bool:
    if isinstance(node.value, ast.Constant):
        return True
    evaluate.evaluate(m, node.value)
    if isinstance(node.value, ast.Call):
        name = dotted(node.value.func)
        if name:
            root = m.lookup(name.partition(".")[0])
            path = name
            if isinstance(root, Dotted):
                path = root.name + name[len(name.partition(".")[0]) :]
            elif root is MISSING:
                path = f"builtins.{name}"
            return path not in _LEAVING
    return True


def _assign(m: Machine, node: ast.Assign) -> bool:
    called = node.value.value if isinstance(node.value, ast.Await) else node.value
    if isinstance(called, (ast.Call, ast.IfExp)):
        target = _target_text(node.targets[-1])
        m.results[id(called)] = target
        if isinstance(called, ast.IfExp):
            m.results[id(called.body)] = m.results[id(called.orelse)] = target
    value = evaluate.evaluate(m, node.value)
    for target_node in node.targets:
        store(m, target_node, value, node.value, node)
    return True


def _target_text(node: ast.expr) -> str:
    if isinstance(node, (ast.Tuple, ast.List)):
        return ", ".join(text(e) for e in node.elts)
    return text(node)


def _annotated(m: Machine, node: ast.AnnAssign) -> bool:
    if node.value is not None:
        m.results[id(node.value)] = text(node.target)
        store(m, node.target, evaluate.evaluate(m, node.value), node.value, node)
    return True


def _augmented(m: Machine, node: ast.AugAssign) -> bool:
    if isinstance(node.target, ast.Name):
        old: V = m.lookup(node.target.id)
    else:
        old = evaluate.evaluate(m, node.target)
    more = evaluate.evaluate(m, node.value)
    if isinstance(node.op, ast.BitOr) and isinstance(old, DictValue):
        invoke.spread_into(m, old, more, text(node.value), write=True)
        return True
    if isinstance(old, Dotted) and old.name == "os.environ":
        entries, _ = invoke.spread(m, more, text(node.value))
        for key, entry in entries.items():
            builtin.write_environ(m, str(key), entry.value if isinstance(entry, Entry) else entry, node)
        return True
    value = lift(lambda a, b: evaluate.binary(m, node.op, a, b, words(node.target)), old, more)
    store(m, node.target, value, node.value, node)
    return True


def store(m: Machine, target: ast.expr, value: V, value_node: ast.expr, statement: ast.AST | None = None) -> None:
    """`target = value`."""
    if isinstance(target, ast.Name):
        m.bind(target.id, value)
    elif isinstance(target, (ast.Tuple, ast.List)):
        _store_each(m, target, value, value_node, statement)
    elif isinstance(target, ast.Starred):
        store(m, target.value, Unknown(RUNS, words(target.value)), value_node, statement)
    elif isinstance(target, ast.Attribute):
        base = evaluate.evaluate(m, target.value)
        set_attribute(m, base, target.attr, value, statement or target, text(target), value_node)
    elif isinstance(target, ast.Subscript):
        base = evaluate.evaluate(m, target.value)
        key = Unknown(RUNS, "") if isinstance(target.slice, ast.Slice) else evaluate.evaluate(m, target.slice)
        _set_item(m, base, key, value, target, value_node, statement)


def _store_each(
    m: Machine, target: ast.Tuple | ast.List, value: V, value_node: ast.expr, statement: ast.AST | None
) -> None:
    starred = next((i for i, e in enumerate(target.elts) if isinstance(e, ast.Starred)), None)
    count = len(target.elts)
    if starred is not None:
        items = value.items if isinstance(value, ListValue) else None
        if items is not None and len(items) >= count - 1:
            rest = len(items) - (count - 1)
            parts: list[V] = [*items[:starred], ListValue(items[starred : starred + rest]), *items[starred + rest :]]
        else:
            parts = [Unknown(RUNS, words(e)) for e in target.elts]
    else:
        parts = invoke.unpacked(m, value, count, text(value_node))
        for index, element in enumerate(target.elts):
            # A name reads better in a message than `parse_args()[0]`.
            if isinstance(parts[index], Unknown) and isinstance(element, ast.Name) and parts[index].parent is None:
                parts[index] = Unknown(parts[index].reason, element.id)
    for element, part in zip(target.elts, parts, strict=True):
        element = element.value if isinstance(element, ast.Starred) else element
        store(m, element, part, value_node, statement)


def set_attribute(m: Machine, base: V, name: str, value: V, node: ast.AST, written: str, value_node: ast.expr) -> None:
    """`base.name = value`."""
    if isinstance(base, Choice):
        evaluate.split(m, base, lambda leaf: set_attribute(m, leaf, name, value, node, written, value_node))
        return
    if isinstance(base, (Instance, ClassValue, Made, Unknown)):
        m.world.write(base.attrs, name, value)
    if isinstance(base, (Made, Unknown)):
        part = part_of(base)
        origin = part.function if isinstance(part, Made) else ""
        root = root_of(base)
        if name == "data" and isinstance(root, Made) and "float" in text(value_node):
            # A loop that casts the small parameters to float32 is half of what the preparing function does. It is the
            # loop that counts, not whether it runs, so this mark needs no condition.
            root.attrs["#prepared"] = True
        kept = freeze_value(value)
        m.assignments.append(
            Written(node, written, kept, dotted(value_node), base=base, origin=origin, nested=m.nested)
        )


def freeze_value(value: V) -> V:
    from qlora_doctor.gather.static.values import freeze

    return freeze(value)


def _set_item(
    m: Machine, base: V, key: V, value: V, target: ast.Subscript, value_node: ast.expr, statement: ast.AST | None
) -> None:
    if isinstance(base, Choice):
        evaluate.split(m, base, lambda leaf: _set_item(m, leaf, key, value, target, value_node, statement))
        return
    if isinstance(base, DictValue):
        if is_constant(key):
            whole = span(statement) if statement is not None and hasattr(statement, "lineno") else span(target)
            m.world.write(base.entries, key, Entry(value, whole, span(value_node)))
        else:
            m.world.write(base.state, "open", f"the key {text(target.slice)} is known only when the script runs")
    elif isinstance(base, ListValue):
        items = base.items
        if items is not None and type(key) is int and -len(items) <= key < len(items):
            replaced = list(items)
            replaced[key] = value
            m.world.write(base.state, "items", tuple(replaced))
        else:
            m.world.write(base.state, "items", None)
    elif isinstance(base, Dotted) and base.name == "os.environ":
        if isinstance(key, str):
            builtin.write_environ(m, key, value, statement or target)
    elif isinstance(base, (Made, Unknown)) and is_constant(key):
        m.world.write(base.attrs, ("[]", evaluate.key_of(key)), value)


def _delete(m: Machine, node: ast.Delete) -> bool:
    for target in node.targets:
        if isinstance(target, ast.Name):
            m.bind(target.id, MISSING)
        elif isinstance(target, ast.Subscript):
            base, key = evaluate.evaluate(m, target.value), evaluate.evaluate(m, target.slice)
            if isinstance(base, DictValue) and is_constant(key):
                m.world.write(base.entries, key, MISSING)
        elif isinstance(target, ast.Attribute):
            base = evaluate.evaluate(m, target.value)
            if isinstance(base, Instance):
                m.world.write(base.attrs, target.attr, MISSING)
    return True


def _if(m: Machine, node: ast.If) -> bool:
    if dotted(node.test).rpartition(".")[2] == "TYPE_CHECKING":
        before = dict(m.imported)
        block(m, [s for s in node.body if isinstance(s, (ast.Import, ast.ImportFrom))])
        m.imported = before
        return block(m, node.orelse)
    test = evaluate.truth(m, node.test)
    return m.world.branch(test, lambda: block(m, node.body), lambda: block(m, node.orelse))


def _for(m: Machine, node: ast.For | ast.AsyncFor) -> bool:
    source = evaluate.evaluate(m, node.iter)
    items = None if isinstance(source, Choice) else evaluate.elements(m, source)
    if items is not None and len(items) <= _UNROLL:
        for one in items:
            if not _body(m, node, one):
                return False
        return block(m, node.orelse)
    _forget_counters(m, node.body)
    one = _one_of(m, source, node)
    certain = items is not None or (isinstance(source, Made) and source.function == "builtins.range")
    if certain:
        _body(m, node, one)
        return block(m, node.orelse)
    ran = m.fresh(f"the loop at line {node.lineno} runs", f"the loop at line {node.lineno} never runs")
    m.world.branch(ran, lambda: _body(m, node, one), lambda: True)
    return block(m, node.orelse)


def _one_of(m: Machine, source: V, node: ast.For | ast.AsyncFor) -> V:
    parent = next((leaf for leaf in each(source) if isinstance(leaf, (Unknown, Made))), None)
    if parent is None:
        return Unknown(RUNS, words(node.target))
    return m.derive(parent, "each", 0, words(node.target))


def _body(m: Machine, node: ast.For | ast.AsyncFor | ast.While, one: V = MISSING) -> bool:
    def run() -> bool:
        if not isinstance(node, ast.While):
            store(m, node.target, one, node.iter)
        return block(m, node.body)

    live, _ = m.world.body("loop", run)
    return live


def _forget_counters(m: Machine, body: Sequence[ast.stmt]) -> None:
    """A number that the loop changes is another in each round."""
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                value = m.lookup(node.id)
                if type(value) in (int, float):
                    m.bind(node.id, Unknown(RUNS, node.id))


def _while(m: Machine, node: ast.While) -> bool:
    _forget_counters(m, node.body)
    test = evaluate.truth(m, node.test)
    if test is True:
        _body(m, node)
        return True
    m.world.branch(test, lambda: _body(m, node), lambda: True)
    return block(m, node.orelse)


def _break(m: Machine, node: ast.stmt) -> bool:
    return m.world.leave("loop")


def _return(m: Machine, node: ast.Return) -> bool:
    if node.value is None:
        value: V = None
    else:
        m.results.setdefault(id(node.value), "")
        value = evaluate.evaluate(m, node.value)
    return m.world.leave("function", value)


def _raise(m: Machine, node: ast.Raise) -> bool:
    if node.exc is not None:
        evaluate.evaluate(m, node.exc)
    return False


def _try(m: Machine, node: ast.Try) -> bool:
    if not node.handlers:
        live = block(m, node.body) and block(m, node.orelse)
    else:
        words = "import" if all(isinstance(s, (ast.Import, ast.ImportFrom)) for s in node.body) else "try"
        works = m.fresh(f"the {words} at line {node.lineno} works", f"the {words} at line {node.lineno} fails")
        live = m.world.branch(
            works,
            lambda: block(m, node.body) and block(m, node.orelse),
            lambda: _handlers(m, node.handlers),
        )
    return block(m, node.finalbody) and live


def _handlers(m: Machine, handlers: Sequence[ast.ExceptHandler]) -> bool:
    first = handlers[0]
    if first.name:
        m.bind(first.name, Unknown(RUNS, first.name))
    if len(handlers) == 1:
        return block(m, first.body)
    line = first.lineno
    this = m.fresh(f"the except at line {line} catches", f"the except at line {line} does not catch")
    return m.world.branch(this, lambda: block(m, first.body), lambda: _handlers(m, handlers[1:]))


def _with(m: Machine, node: ast.With | ast.AsyncWith) -> bool:
    for entered in node.items:
        value = evaluate.evaluate(m, entered.context_expr)
        if entered.optional_vars is not None:
            store(m, entered.optional_vars, value, entered.context_expr, node)
    return block(m, node.body)


def _assert(m: Machine, node: ast.Assert) -> bool:
    test = evaluate.truth(m, node.test)
    if isinstance(test, Choice):
        m.world.assume(test, True)
    return True


def _function(m: Machine, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    m.bind(node.name, make_function(m, node, list(m.frame.scopes), None))
    return True


def make_function(
    m: Machine,
    node: ast.FunctionDef | ast.AsyncFunctionDef,
    scopes: list[dict[str, V]],
    owner: ClassValue | None,
) -> FunctionValue:
    """The value of a `def`."""
    kind = ""
    for decorator in node.decorator_list:
        name = dotted(decorator).rpartition(".")[2]
        if name in ("staticmethod", "classmethod"):
            kind = name.removesuffix("method")
        elif name in ("property", "cached_property"):
            kind = "property"
        elif invoke.is_cli(evaluate.evaluate(m, decorator)):
            kind = kind or "decorated"
    made = FunctionValue(node, node.name, scopes, evaluate.defaults(m, node.args), kind, owner)
    m.functions.append(made)
    return made


def _class(m: Machine, node: ast.ClassDef) -> bool:
    bases: list[V] = []
    for base in node.bases:
        value = evaluate.evaluate(m, base)
        bases += [leaf for leaf in each(value)][:1]
    made = ClassValue(node, [b for b in bases if isinstance(b, (ClassValue, Dotted))])
    decorators = {dotted(d.func if isinstance(d, ast.Call) else d).rpartition(".")[2] for d in node.decorator_list}
    library = names.last(made.library_base())
    record = "dataclass" in decorators or library in ("NamedTuple", "BaseModel", "TypedDict")
    made.record = record or any(isinstance(b, ClassValue) and b.record for b in bases)
    outer = list(m.frame.scopes)
    with m.enter(Frame([made.attrs, *outer])):
        for statement in node.body:
            if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
                m.world.write(made.attrs, statement.name, make_function(m, statement, outer, made))
                continue
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                made.fields.append(statement.target.id)
            block(m, [statement])
    m.classes.append(made)
    m.bind(node.name, made)
    return True


def _import(m: Machine, node: ast.Import) -> bool:
    for alias in node.names:
        name = alias.name if alias.asname else alias.name.partition(".")[0]
        m.bind(alias.asname or name, Dotted(name))
        _imported(m, alias.name)
    return True


def _import_from(m: Machine, node: ast.ImportFrom) -> bool:
    module = "." * node.level + (node.module or "")
    for alias in node.names:
        if alias.name == "*":
            m.stars.append(module)
        else:
            path = f"{module}.{alias.name}" if not module.endswith(".") else f"{module}{alias.name}"
            m.bind(alias.asname or alias.name, Dotted(path))
    _imported(m, module.lstrip(".") or (node.names[0].name if node.level else ""))
    return True


def _imported(m: Machine, module: str) -> None:
    top = module.partition(".")[0]
    if not top:
        return
    m.imported[top] = None
    for more in m.local_imports.get(top, ()):
        m.imported[more] = None


def _match(m: Machine, node: Any) -> bool:
    subject = evaluate.evaluate(m, node.subject)
    return _cases(m, subject, node, 0)


def _cases(m: Machine, subject: V, node: Any, index: int) -> bool:
    if index == len(node.cases):
        return True
    case = node.cases[index]
    test = _pattern(m, subject, case.pattern, node)
    for name in (n.name for n in ast.walk(case.pattern) if isinstance(n, (ast.MatchAs, ast.MatchStar)) and n.name):
        m.bind(name, Unknown(RUNS, name))
    if case.guard is not None:
        test = ite(test, evaluate.truth(m, case.guard), False)
    return m.world.branch(test, lambda: block(m, case.body), lambda: _cases(m, subject, node, index + 1))


def _pattern(m: Machine, subject: V, pattern: Any, node: Any) -> V:
    if isinstance(pattern, ast.MatchAs) and pattern.pattern is None:
        return True
    if isinstance(pattern, (ast.MatchValue, ast.MatchSingleton)):
        value = pattern.value if isinstance(pattern, ast.MatchSingleton) else evaluate.evaluate(m, pattern.value)
        compare = ast.Compare(node.subject, [ast.Eq()], [ast.Constant(value if is_constant(value) else None)])
        return m.world.here(lift(lambda s: evaluate._equal(m, s, value, compare), subject))
    if isinstance(pattern, ast.MatchOr):
        tree: V = False
        for one in pattern.patterns:
            tree = ite(tree, True, _pattern(m, subject, one, node))
        return tree
    line = pattern.lineno
    return m.fresh(f"the case at line {line} matches", f"the case at line {line} does not match")


def outer_names(node: ast.AST) -> frozenset[str]:
    """The names that a function declares global or nonlocal."""
    return _shape(node)[0]


def is_generator(node: ast.AST) -> bool:
    """Whether a function yields."""
    return _shape(node)[1]


def _shape(node: Any) -> tuple[frozenset[str], bool]:
    known: tuple[frozenset[str], bool] | None = getattr(node, "_qlora_shape", None)
    if known is None:
        outer: set[str] = set()
        yields = False
        todo: list[ast.AST] = [node.body] if isinstance(node, ast.Lambda) else list(node.body)
        while todo:
            one = todo.pop()
            if isinstance(one, (ast.Global, ast.Nonlocal)):
                outer.update(one.names)
            yields = yields or isinstance(one, (ast.Yield, ast.YieldFrom))
            if not isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
                todo.extend(ast.iter_child_nodes(one))
        known = node._qlora_shape = (frozenset(outer), yields)
    return known


_HANDLERS: dict[type, Callable[[Machine, Any], bool]] = {
    ast.Expr: _expression,
    ast.Assign: _assign,
    ast.AnnAssign: _annotated,
    ast.AugAssign: _augmented,
    ast.Delete: _delete,
    ast.If: _if,
    ast.For: _for,
    ast.AsyncFor: _for,
    ast.While: _while,
    ast.Break: _break,
    ast.Continue: _break,
    ast.Return: _return,
    ast.Raise: _raise,
    ast.Try: _try,
    ast.With: _with,
    ast.AsyncWith: _with,
    ast.Assert: _assert,
    ast.FunctionDef: _function,
    ast.AsyncFunctionDef: _function,
    ast.ClassDef: _class,
    ast.Import: _import,
    ast.ImportFrom: _import_from,
    ast.Match: _match,
}
if hasattr(ast, "TryStar"):
    _HANDLERS[ast.TryStar] = _try

__all__ = ["Snapshot", "block", "is_generator", "outer_names", "set_attribute", "store"]
