"""Calls: the script's own functions are walked with their arguments, library calls are noted."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

from qlora_doctor.gather.static import builtin, evaluate, execute, names
from qlora_doctor.gather.static.machine import (
    MAX_DEPTH,
    MAX_RUNS,
    MAX_STEPS,
    Frame,
    Machine,
    Record,
    part_of,
    root_of,
    span,
    text,
    words,
)
from qlora_doctor.gather.static.values import (
    MISSING,
    RUNS,
    Cells,
    Choice,
    ClassValue,
    DictValue,
    Entry,
    FunctionValue,
    Instance,
    ListValue,
    Made,
    Method,
    Partial,
    Super,
    Unknown,
    V,
    Words,
    bare,
    choose,
    each,
    freeze,
    ite,
    present,
)
from qlora_doctor.source import Dotted

COMMAND_LINE = "comes from the command line"
_CLI = (
    "click",
    "typer",
    "hydra",
    "fire",
    "tyro",
    "draccus",
    "chz",
    "jsonargparse",
    "sacred",
    "gin",
    "cyclopts",
    "modal",
)


@dataclass(slots=True)
class Arguments:
    """The arguments of one call.

    `keywords` may hold choices with MISSING; `open` and `star` say why there may be more; `dicts` says where a dict
    that is passed as `**name` was made.
    """

    positional: list[V] = field(default_factory=list)
    keywords: dict[str, V] = field(default_factory=dict)
    open: V = ""
    star: str = ""
    dicts: dict[str, Any] = field(default_factory=dict)

    def values(self) -> list[V]:
        return [*self.positional, *self.keywords.values()]


def call(m: Machine, node: ast.Call) -> V:
    """The value of a call expression."""
    m.steps += 1
    func = node.func
    if isinstance(func, ast.Name) and func.id == "super" and m.lookup("super") is MISSING:
        return _super(m)
    if isinstance(func, ast.Attribute):
        if func.attr == "update" and isinstance(func.value, ast.Attribute) and func.value.attr == "__dict__":
            builtin.forget(m, evaluate.evaluate(m, func.value.value))
        receiver = evaluate.evaluate(m, func.value)
        arguments = _arguments(m, node)
        return method(m, receiver, func.attr, arguments, node)
    callee = evaluate.evaluate(m, func)
    return value(m, callee, _arguments(m, node), node)


def _super(m: Machine) -> V:
    function = m.frame.function
    return Super(MISSING if function is None else function.bound, None if function is None else function.owner)


def _arguments(m: Machine, node: ast.Call) -> Arguments:
    found = Arguments()
    for arg in node.args:
        if isinstance(arg, ast.Starred):
            items = evaluate.evaluate(m, arg.value)
            if isinstance(items, ListValue) and items.items is not None:
                found.positional += [Entry(i, None, None) for i in items.items]
            else:
                found.star = f"*{text(arg.value)} is known only when the script runs"
            continue
        place = span(arg)
        found.positional.append(Entry(evaluate.evaluate(m, arg), place, place))
    for kw in node.keywords:
        if kw.arg is None:
            given = evaluate.evaluate(m, kw.value)
            entries, why = spread(m, given, text(kw.value))
            if isinstance(given, DictValue) and given.made is not None:
                found.dicts[f"**{text(kw.value)}"] = Entry(None, given.made, None)
            for key, entry in entries.items():
                old = found.keywords.get(str(key), MISSING)
                found.keywords[str(key)] = ite(_is_there(entry), entry, old)
            found.open = _either(found.open, why)
        else:
            found.keywords[kw.arg] = Entry(evaluate.evaluate(m, kw.value), span(kw), span(kw.value))
    return found


def _is_there(entry: V) -> V:
    if isinstance(entry, Choice):
        return choose(entry.atom, _is_there(entry.yes), _is_there(entry.no))
    return entry is not MISSING


def _either(a: V, b: V) -> V:
    if isinstance(a, Choice) or isinstance(b, Choice):
        chosen = a if isinstance(a, Choice) else b
        return choose(
            chosen.atom,
            _either(_at(a, chosen, True), _at(b, chosen, True)),
            _either(_at(a, chosen, False), _at(b, chosen, False)),
        )
    return a or b


def _at(value: V, chosen: Choice, side: bool) -> V:
    if isinstance(value, Choice) and value.atom is chosen.atom:
        return value.yes if side else value.no
    return value


def spread(m: Machine, given: V, written: str) -> tuple[dict[Any, V], V]:
    """What `**given` passes: entries by key, and why there may be more."""
    given = m.world.here(given)
    if isinstance(given, Choice):
        yes, why_yes = spread(m, given.yes, written)
        no, why_no = spread(m, given.no, written)
        keys = {**yes, **no}
        merged = {k: choose(given.atom, yes.get(k, MISSING), no.get(k, MISSING)) for k in keys}
        return merged, choose(given.atom, why_yes, why_no)
    if isinstance(given, DictValue):
        return {k: m.world.here(v) for k, v in given.entries.items()}, m.world.here(given.state["open"])
    if given is None or given is MISSING:
        return {}, ""
    if isinstance(given, Unknown) and given.text:
        return {}, f"**{given.text} {given.reason}"
    return {}, f"**{written} is known only when the script runs"


def spread_into(m: Machine, made: DictValue, given: V, written: str, *, write: bool = False) -> None:
    """`made.update(given)`; with `write` through the store, since others may hold the dict."""
    entries, why = spread(m, given, written)
    for key, entry in entries.items():
        merged = ite(_is_there(entry), entry, made.entries.get(key, MISSING))
        if write:
            m.world.write(made.entries, key, merged)
        else:
            made.entries[key] = merged
    both = _either(m.world.here(made.state["open"]), why)
    if both is not made.state["open"]:
        if write:
            m.world.write(made.state, "open", both)
        else:
            made.state["open"] = both


def value(m: Machine, callee: V, arguments: Arguments, node: ast.AST) -> V:
    """What calling `callee` gives."""
    if isinstance(callee, Choice):
        return evaluate.split(m, callee, lambda leaf: value(m, leaf, arguments, node))
    if isinstance(callee, Dotted):
        return library(m, callee.name, arguments, node)
    if isinstance(callee, FunctionValue):
        return function(m, callee, arguments, node)
    if isinstance(callee, ClassValue):
        return instantiate(m, callee, arguments, node)
    if isinstance(callee, Partial):
        joined = Arguments(
            [*callee.args, *arguments.positional],
            {**callee.kwargs, **arguments.keywords},
            arguments.open,
            arguments.star,
        )
        return value(m, callee.function, joined, node)
    if isinstance(callee, Method):
        return method(m, callee.receiver, callee.name, arguments, node)
    if isinstance(callee, Instance):
        for name in ("__call__", "forward"):
            found = callee.cls.lookup(name) if callee.cls else MISSING
            if isinstance(found, FunctionValue):
                return function(m, found.bind(callee), arguments, node)
        return Unknown(RUNS, words(node))
    if isinstance(callee, (Made, Unknown)):
        return _call_object(m, callee, arguments, node)
    return Unknown(RUNS, words(node))


def _call_object(m: Machine, callee: Made | Unknown, arguments: Arguments, node: ast.AST) -> V:
    hand_over(m, arguments)
    written = text(node.func) if isinstance(node, ast.Call) else ""
    if _is_tracked(callee, written):
        note(m, node, ".__call__", arguments, written, callee)
    if isinstance(callee, Unknown) and callee.step == "." and isinstance(callee.parent, (Made, Unknown)):
        name = callee.text.rpartition(".")[2]
        return builtin.of_object(m, callee.parent, name, arguments, node)
    return m.derive(callee, "()", _key(arguments), words(node))


def _key(arguments: Arguments) -> Any:
    positional = tuple(evaluate.key_of(bare(v)) for v in arguments.positional)
    return positional, tuple((k, evaluate.key_of(bare(v))) for k, v in arguments.keywords.items())


def _is_tracked(receiver: V, written: str) -> bool:
    """Whether the calls of an object are worth noting: the stack's objects, and what is named like them."""
    if isinstance(receiver, Made):
        return names.in_stack(receiver.function)
    word = written.rpartition(".")[2].lower()
    return any(part in word for part in ("model", "tokenizer", "processor", "accelerator", "trainer")) or word in (
        "tok", "base", "llm", "net", "vlm"
    )  # fmt: skip


def method(m: Machine, receiver: V, name: str, arguments: Arguments, node: ast.AST) -> V:
    """`receiver.name(...)`."""
    receiver = present(m.world.here(receiver))
    if isinstance(receiver, Choice):
        if all(isinstance(leaf, (Made, Unknown)) for leaf in each(receiver)):
            return _method_of_objects(m, receiver, name, arguments, node)
        return evaluate.split(m, receiver, lambda leaf: method(m, leaf, name, arguments, node))
    if isinstance(receiver, Dotted):
        return library(m, f"{receiver.name}.{name}", arguments, node)
    if isinstance(receiver, Made) and receiver.cls is not None:
        found = receiver.cls.lookup(name)
        if isinstance(found, FunctionValue):
            return function(m, found.bind(receiver), arguments, node)
    if isinstance(receiver, (Made, Unknown)):
        if name in receiver.attrs:
            return value(m, m.world.here(receiver.attrs[name]), arguments, node)
        return _method_of_objects(m, receiver, name, arguments, node)
    if isinstance(receiver, (DictValue, ListValue, str, int, float, bytes)):
        return builtin.method(m, receiver, name, arguments, node)
    if isinstance(receiver, Super):
        return _super_method(m, receiver, name, arguments, node)
    if isinstance(receiver, (Instance, ClassValue)):
        func = node.func if isinstance(node, ast.Call) else node
        return value(m, evaluate.attribute(m, receiver, name, words(func), node), arguments, node)
    hand_over(m, arguments)
    return Unknown(RUNS, words(node))


def _method_of_objects(m: Machine, receiver: V, name: str, arguments: Arguments, node: ast.AST) -> V:
    written = text(node.func.value) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
    hand_over(m, arguments)
    leaves = each(receiver)
    if any(_worth(leaf, name, written) for leaf in leaves):
        note(m, node, f".{name}", arguments, written, receiver)
    if name in names.SELF_METHODS and all(_is_module(leaf, written) for leaf in leaves):
        return receiver
    if isinstance(receiver, Choice):
        return evaluate.split(m, receiver, lambda leaf: builtin.of_object(m, leaf, name, arguments, node))
    return builtin.of_object(m, receiver, name, arguments, node)


def _worth(leaf: V, name: str, written: str) -> bool:
    if isinstance(leaf, Made):
        return names.in_stack(leaf.function) or name == "from_pretrained"
    if name not in names.TRACKED_METHODS:
        return False
    if name in ("backward", "from_pretrained"):
        return True
    part = part_of(leaf)
    if isinstance(part, Made) and names.in_stack(part.function):
        return True
    root = root_of(leaf)
    loop = isinstance(leaf, Unknown) and isinstance(root, Made) and names.is_maker(root.function) and leaf.step == "[]"
    return loop or _is_tracked(leaf, written) or (name in names.CASTS and _walks_modules(leaf))


def _walks_modules(leaf: V) -> bool:
    """Whether a value comes from `named_modules()`, `parameters()` and the like."""
    while isinstance(leaf, Unknown) and leaf.parent is not None:
        if leaf.step == "()" and any(
            leaf.text.endswith(f".{word}()") for word in ("named_modules", "modules", "named_parameters", "parameters")
        ):
            return True
        leaf = leaf.parent
    return False


def _is_module(leaf: V, written: str) -> bool:
    part = part_of(leaf)
    if isinstance(part, Made):
        return True
    return _is_tracked(leaf, written)


def _super_method(m: Machine, receiver: Super, name: str, arguments: Arguments, node: ast.AST) -> V:
    owner, instance = receiver.owner, receiver.instance
    if owner is None:
        hand_over(m, arguments)
        return Unknown(RUNS, words(node))
    for base in owner.bases:
        if isinstance(base, ClassValue):
            found = base.lookup(name)
            if isinstance(found, FunctionValue):
                return function(m, found.bind(instance), arguments, node)
            if name == "__init__" and base.fields and isinstance(instance, Instance):
                _fill_fields(m, base, instance, arguments)
                return None
    if name == "__init__" and isinstance(instance, Made):
        # The base's arguments are those of this call, not those that the subclass was called with.
        instance.arguments = named(m, instance.function, arguments)
        if instance.record is not None:
            instance.record.arguments = freeze_all(instance.arguments)
            # `super().__init__(*args, **kwargs)` hands on what stands in the call of the class.
            if isinstance(node, ast.Call) and not _hands_on(node):
                instance.record.node = instance.node = node
        return None
    hand_over(m, arguments)
    return Unknown(RUNS, words(node))


def _hands_on(node: ast.Call) -> bool:
    return all(isinstance(arg, ast.Starred) for arg in node.args) and all(kw.arg is None for kw in node.keywords)


def function(m: Machine, fn: FunctionValue, arguments: Arguments, node: ast.AST) -> V:
    """Walks a function of the script with these arguments."""
    body = fn.node
    written = text(node.func) if isinstance(node, ast.Call) else fn.name
    if body in m.active or len(m.active) > MAX_DEPTH or m.steps > MAX_STEPS or m.runs[id(body)] >= MAX_RUNS:
        return Unknown(RUNS, f"{written}()")
    m.runs[id(body)] += 1
    scope: Cells = Cells()
    frame = Frame([scope, *fn.scopes], fn, frozenset() if m.plain else execute.outer_names(body))
    _bind_parameters(m, fn, arguments, scope)
    m.active.append(body)
    try:
        with m.enter(frame):
            if isinstance(body, ast.Lambda):
                return evaluate.evaluate(m, body.body)
            _, result = m.world.body("function", lambda: execute.block(m, body.body))
    finally:
        m.active.pop()
    if not m.plain and execute.is_generator(body):
        return Unknown(RUNS, f"{written}()")
    return present(m.world.here(result))


def _bind_parameters(m: Machine, fn: FunctionValue, arguments: Arguments, scope: dict[str, V]) -> None:
    args = fn.node.args
    given = [bare(v) for v in arguments.positional]
    if fn.bound is not MISSING and fn.bound is not None:
        given.insert(0, fn.bound)
    keywords = dict(arguments.keywords)
    parameters = [a.arg for a in (*args.posonlyargs, *args.args)]
    for index, name in enumerate(parameters):
        if index < len(given):
            scope[name] = given[index]
        else:
            scope[name] = _parameter(m, fn, name, keywords, arguments)
    for arg in args.kwonlyargs:
        scope[arg.arg] = _parameter(m, fn, arg.arg, keywords, arguments)
    if args.vararg is not None:
        rest = given[len(parameters) :]
        scope[args.vararg.arg] = ListValue(None if arguments.star else tuple(rest), "tuple")
    if args.kwarg is not None:
        scope[args.kwarg.arg] = DictValue(
            keywords, arguments.open or (arguments.star and f"**{args.kwarg.arg} of {fn.name}()")
        )


def _parameter(m: Machine, fn: FunctionValue, name: str, keywords: dict[str, V], arguments: Arguments) -> V:
    default = fn.defaults.get(name, MISSING)
    if arguments.star or arguments.open or fn.kind == "decorated":
        default = _parameter_unknown(fn, name)
    if name in keywords:
        passed = bare(keywords.pop(name))
        passed = ite(_is_there(passed), passed, default) if isinstance(passed, Choice) else passed
        return m.world.here(passed)
    return _parameter_unknown(fn, name) if default is MISSING else default


def _parameter_unknown(fn: FunctionValue, name: str) -> Unknown:
    return Unknown(f"is a parameter of {fn.name}()", name)


def run_alone(m: Machine, fn: FunctionValue, arguments: Arguments | None = None) -> None:
    """Walks a function that nothing in the script calls: all of its parameters are open."""
    given = Arguments(star="it is called from elsewhere") if arguments is None else arguments
    function(m, fn, given, fn.node)


def hand_over(m: Machine, arguments: Arguments) -> None:
    """Notes callbacks: what is passed to something unknown may be called with the arguments it is bound to."""
    for passed in arguments.values():
        for leaf in each(bare(passed)):
            if isinstance(leaf, Partial) and isinstance(leaf.function, FunctionValue):
                m.bound[id(leaf.function.node)] = leaf


def instantiate(m: Machine, cls: ClassValue, arguments: Arguments, node: ast.AST) -> V:
    """An object of a class of the script."""
    base = cls.library_base()
    init = cls.lookup("__init__")
    if base and names.in_stack(base) and not base.startswith("builtins"):
        made = Made(base, named(m, base, arguments), node, cls)
        made.record = note(m, node, base, arguments, "", None, made=made)
        made.record.arguments = freeze_all(made.arguments)
        if isinstance(init, FunctionValue):
            function(m, init.bind(made), arguments, node)
        return made
    instance = Instance(cls)
    m.instances.append(instance)
    if names.last(base) in ("BaseSettings",):
        instance.open = "comes from the environment"
    elif isinstance(init, FunctionValue):
        function(m, init.bind(instance), arguments, node)
    elif cls.record:
        _fill_fields(m, cls, instance, arguments)
        after = cls.lookup("__post_init__")
        if isinstance(after, FunctionValue):
            function(m, after.bind(instance), Arguments(), node)
    hand_over(m, arguments)
    return instance


def _fill_fields(m: Machine, cls: ClassValue, instance: Instance, arguments: Arguments) -> None:
    fields = cls.all_fields()
    given = dict(zip(fields, arguments.positional, strict=False))
    given.update(arguments.keywords)
    for name in fields:
        default = cls.lookup(name)
        default = field_default(m, default)
        if name in given:
            passed = bare(given[name])
            default = ite(_is_there(passed), passed, default) if isinstance(passed, Choice) else passed
        elif arguments.open or arguments.star:
            default = Unknown(arguments.open if isinstance(arguments.open, str) and arguments.open else RUNS, "")
        if default is not MISSING:
            m.world.write(instance.attrs, name, default)


def field_default(m: Machine, made: V) -> V:
    """The value that `field(default=...)` stands for; anything else as it is."""
    if not isinstance(made, Made) or names.last(made.function) not in ("field", "Field"):
        return made
    if "default" in made.arguments:
        return bare(made.arguments["default"])
    if "default_factory" in made.arguments:
        return value(m, bare(made.arguments["default_factory"]), Arguments(), made.node or ast.Pass())
    return bare(made.arguments["#0"]) if "#0" in made.arguments else MISSING


def named(m: Machine, path: str, arguments: Arguments) -> dict[str, V]:
    """The arguments of a library call by name; `**` says why there may be more."""
    parameters = names.parameters(path)
    found: dict[str, V] = {}
    for index, given in enumerate(arguments.positional):
        name = parameters[index] if index < len(parameters) else f"#{index}"
        found[name] = given
        if isinstance(given, Entry) and name[0] != "#":
            found[name] = Entry(given.value, None, given.part)
    for key, entry in arguments.keywords.items():
        found[names.keyword(path, key)] = entry
    why = _either(arguments.open, arguments.star)
    if why:
        found["**"] = why
    return {**found, **arguments.dicts}


def freeze_all(arguments: dict[str, V]) -> dict[str, V]:
    return {k: freeze(v) for k, v in arguments.items()}


def note(
    m: Machine,
    node: ast.AST,
    path: str,
    arguments: Arguments,
    receiver: str,
    receiver_value: V,
    *,
    made: Made | None = None,
) -> Record:
    """Remembers a call for the checks."""
    record = Record(
        node,
        path,
        freeze_all(named(m, path, arguments)),
        receiver,
        freeze(receiver_value),
        m.results.get(id(node), ""),
        dict(m.world.facts),
        list(m.world.path),
        made,
    )
    m.records.append(record)
    return record


def library(m: Machine, path: str, arguments: Arguments, node: ast.AST) -> V:
    """A call of something that is not in the script."""
    known = builtin.FUNCTIONS.get(path)
    if known is not None:
        found = known(m, arguments, node)
        if found is not NotImplemented:
            return found
    hand_over(m, arguments)
    made: Made | None = None
    if names.is_maker(path):
        made = Made(path, named(m, path, arguments), node)
    if names.in_stack(path) or names.is_trainer(path) or names.is_settings(path):
        record = note(m, node, path, arguments, "", None, made=made)
        if made is not None:
            made.record = record
            made.arguments = record.arguments
    effect = builtin.library_effect(m, path, arguments, made, node)
    if effect is not MISSING:
        return effect
    if made is not None:
        return made
    return builtin.pure(m, path, arguments, node)


def environment(m: Machine, name: str, written: str | Words) -> Unknown:
    """The value of an environment variable: the same whenever it is read."""
    found: Unknown = m.pure.setdefault(("environ", name), Unknown("comes from the environment", written))
    return found


def gives_pair(made: Made) -> bool:
    """Whether a call returns the model together with its tokenizer."""
    return names.last(made.function) == "from_pretrained" and (
        (names.owner(made.function).startswith("Fast") and names.top(made.function).startswith("unsloth"))
        or "output_loading_info" in made.arguments
    )


def second(made: Made) -> V:
    """The tokenizer that comes with such a model."""
    if "second" not in made.memo:
        made.memo["second"] = Made(made.function, {}, made.node)
    return made.memo["second"]


def unpacked(m: Machine, given: V, count: int, written: str) -> list[V]:
    """The values that `a, b = given` sets."""
    if isinstance(given, Choice):
        yes, no = unpacked(m, given.yes, count, written), unpacked(m, given.no, count, written)
        return [choose(given.atom, a, b) for a, b in zip(yes, no, strict=True)]
    if isinstance(given, ListValue) and given.items is not None and len(given.items) == count:
        return list(given.items)
    return [evaluate.item(m, given, i, f"{written}[{i}]") for i in range(count)]


def is_cli(decorator: V) -> bool:
    """Whether a decorator hands a function's parameters to the command line."""
    for leaf in each(decorator):
        root = root_of(leaf)
        if isinstance(root, Unknown):
            return True
        path = root.name if isinstance(root, Dotted) else root.function if isinstance(root, Made) else ""
        if names.top(path) in _CLI:
            return True
    return False
