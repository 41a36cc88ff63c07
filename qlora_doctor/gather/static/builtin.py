"""What the language's own functions and methods do to values, and what library calls leave behind."""

from __future__ import annotations

import ast
import posixpath
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from qlora_doctor.gather.static import evaluate, invoke, names
from qlora_doctor.gather.static.machine import Machine, Written, part_of, root_of, text, words
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
    Method,
    Partial,
    Unknown,
    V,
    bare,
    each,
    is_constant,
    ite,
    lift,
    present,
)
from qlora_doctor.source import Dotted

if TYPE_CHECKING:
    from qlora_doctor.gather.static.invoke import Arguments

_STRING_METHODS = frozenset(
    {
        "lower", "upper", "strip", "lstrip", "rstrip", "replace", "startswith", "endswith", "title", "capitalize",
        "removeprefix", "removesuffix", "split", "rsplit", "partition", "rpartition", "join", "format", "isdigit",
    }
)  # fmt: skip
_LOCAL_WORDS = frozenset(
    [
        "utils",
        "util",
        "models",
        "model",
        "data",
        "dataset",
        "datasets_utils",
        "config",
        "configs",
        "src",
        "lib",
        "helpers",
        "helper",
        "common",
        "train",
        "trainer",
        "arguments",
        "args",
        "core",
        "modules",
        "components",
        "scripts",
        "tools",
    ]
)


def unknown(node: ast.AST) -> Unknown:
    return Unknown(RUNS, words(node))


def _first(arguments: Arguments, name: str = "") -> V:
    if arguments.positional:
        return bare(arguments.positional[0])
    return present(bare(arguments.keywords.get(name, MISSING)))


def _nth(arguments: Arguments, index: int, name: str = "") -> V:
    if index < len(arguments.positional):
        return bare(arguments.positional[index])
    return present(bare(arguments.keywords.get(name, MISSING)))


def _dict(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    made = DictValue(made=_made(node))
    for given in arguments.positional:
        invoke.spread_into(m, made, _as_dict(bare(given)), text(node))
    made.entries.update(arguments.keywords)
    if arguments.open:
        made.state["open"] = arguments.open
    return made


def _made(node: ast.AST) -> Any:
    from qlora_doctor.gather.static.machine import span

    return span(node) if isinstance(node, ast.expr) else None


def _as_dict(value: V) -> V:
    if isinstance(value, ListValue) and value.items is not None:
        pairs = [i.items for i in value.items if isinstance(i, ListValue) and i.items is not None and len(i.items) == 2]
        if len(pairs) == len(value.items) and all(is_constant(p[0]) for p in pairs):
            return DictValue({p[0]: Entry(p[1], None, None) for p in pairs})
    return value


def _list(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    if not arguments.positional:
        return ListValue(())
    return lift(lambda v: ListValue(evaluate.elements(m, v)), _first(arguments))


def _str(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    def one(value: V) -> V:
        if isinstance(value, (str, int, float)):
            return str(value)
        if isinstance(value, Unknown):
            return m.derive(value, "str", 0, words(node))
        return unknown(node)

    return lift(one, _first(arguments)) if arguments.positional else ""


def _number(kind: type[int | float]) -> Function:
    def number(m: Machine, arguments: Arguments, node: ast.AST) -> V:
        def one(value: V) -> V:
            if isinstance(value, (str, int, float)):
                try:
                    return kind(value)
                except (ValueError, OverflowError):
                    return unknown(node)
            if isinstance(value, Unknown):
                return m.derive(value, kind.__name__, 0, words(node))
            return unknown(node)

        return lift(one, _first(arguments)) if len(arguments.positional) == 1 else unknown(node)

    return number


def _bool(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    return m.truth(_first(arguments), words(node)) if arguments.positional else False


def _len(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    def one(value: V) -> V:
        if isinstance(value, ListValue) and value.items is not None:
            return len(value.items)
        if isinstance(value, str):
            return len(value)
        if isinstance(value, (Unknown, Made)):
            return m.derive(value, "len", 0, words(node))
        return unknown(node)

    return lift(one, _first(arguments))


def _getattr(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    name = _nth(arguments, 1)
    base = _first(arguments)
    if not isinstance(name, str):
        return (
            lift(lambda n: _getattr_one(m, base, n, arguments, node), name)
            if isinstance(name, Choice)
            else unknown(node)
        )
    return _getattr_one(m, base, name, arguments, node)


def _getattr_one(m: Machine, base: V, name: V, arguments: Arguments, node: ast.AST) -> V:
    if not isinstance(name, str):
        return unknown(node)
    written = text(node.args[0]) if isinstance(node, ast.Call) and node.args else "it"
    if isinstance(base, Instance) and len(arguments.positional) > 2:
        has_it = name in base.attrs or (base.cls is not None and base.cls.lookup(name) is not MISSING)
        if not has_it and not base.open:
            return bare(arguments.positional[2])
    return present(m.world.here(evaluate.attribute(m, base, name, f"{written}.{name}", node)))


def _setattr(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    from qlora_doctor.gather.static.execute import set_attribute

    base, name, value = _first(arguments), _nth(arguments, 1), _nth(arguments, 2)
    if not isinstance(name, str):
        forget(m, base)
    if isinstance(name, str) and isinstance(node, ast.Call) and len(node.args) == 3:
        set_attribute(m, base, name, value, node, f"{text(node.args[0])}.{name}", node.args[2])
    return None


def forget(m: Machine, base: V) -> None:
    """Any attribute of an object may have been set."""
    for leaf in each(base):
        if isinstance(leaf, Instance):
            leaf.open = leaf.open or RUNS
            for name in list(leaf.attrs):
                m.world.write(leaf.attrs, name, Unknown("may have been set by name", name))


def _hasattr(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    base, name = _first(arguments), _nth(arguments, 1)
    if isinstance(base, Instance) and isinstance(name, str) and not base.open:
        if name in base.attrs:
            return lift(lambda v: v is not MISSING, m.world.here(base.attrs[name]))
        if base.cls is not None and base.cls.lookup(name) is not MISSING:
            return True
    written = text(node)
    if isinstance(base, Choice):
        return m.test(("hasattr", written), written)
    key = base.name if isinstance(base, Dotted) else id(base)
    m.world.kept.append(base)
    return m.test(("hasattr", key, name), written)


_TYPES: Mapping[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (float,), "bool": (bool,), "dict": (DictValue,), "list": (ListValue,),
    "tuple": (ListValue,), "set": (ListValue,), "Mapping": (DictValue,), "NoneType": (type(None),),
}  # fmt: skip


def _isinstance(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    kinds = _nth(arguments, 1)
    wanted = list(kinds.items or ()) if isinstance(kinds, ListValue) else [kinds]
    written = text(node)

    def one(value: V) -> V:
        verdicts = [_is_a(value, kind) for kind in wanted]
        if any(v is True for v in verdicts):
            return True
        if verdicts and all(v is False for v in verdicts):
            return False
        m.world.kept.append(value)
        return m.test(("isinstance", evaluate.key_of(value), written.partition(",")[2]), written)

    return lift(one, _first(arguments))


def _is_a(value: V, kind: V) -> bool | None:
    if isinstance(kind, ClassValue):
        if isinstance(value, Instance) and value.cls is not None:
            return kind is value.cls or kind in _bases(value.cls)
        return False if is_constant(value) or isinstance(value, (DictValue, ListValue, Dotted)) else None
    if not isinstance(kind, Dotted):
        return None
    types = _TYPES.get(names.last(kind.name))
    if types is None:
        return False if is_constant(value) or isinstance(value, (DictValue, ListValue)) else None
    if isinstance(value, ListValue):
        return value.kind == names.last(kind.name) if ListValue in types else False
    if is_constant(value) or isinstance(value, (DictValue, Instance, FunctionValue, Dotted)):
        return isinstance(value, types) and not (isinstance(value, bool) and types == (float,))
    return None


def _bases(cls: ClassValue) -> list[V]:
    found: list[V] = []
    for base in cls.bases:
        found.append(base)
        if isinstance(base, ClassValue):
            found += _bases(base)
    return found


def _range(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    bounds = [bare(a) for a in arguments.positional]
    if bounds and all(type(b) is int for b in bounds) and len(bounds) <= 3 and 0 not in bounds[2:]:
        span = range(*bounds)
        if len(span) <= 8:
            return ListValue(tuple(span))
        return Made("builtins.range", {}, node)
    return unknown(node)


def _zip(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    columns = [evaluate.elements(m, bare(a)) for a in arguments.positional]
    if any(c is None for c in columns) or not columns:
        return unknown(node)
    return ListValue(tuple(ListValue(row, "tuple") for row in zip(*[c or () for c in columns], strict=False)))


def _enumerate(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    items = evaluate.elements(m, _first(arguments))
    if items is None:
        return _first(arguments) if isinstance(_first(arguments), (Unknown, Made)) else unknown(node)
    return ListValue(tuple(ListValue((i, v), "tuple") for i, v in enumerate(items)))


def _same_items(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    value = _first(arguments)
    items = evaluate.elements(m, value)
    if items is not None:
        return ListValue(items)
    return value if isinstance(value, (Unknown, Made)) else unknown(node)


def _copy(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    def one(value: V) -> V:
        if isinstance(value, DictValue):
            return DictValue(dict(value.entries), value.state["open"], value.made)
        if isinstance(value, Instance):
            twin = Instance(value.cls)
            twin.attrs.update(value.attrs)
            twin.open = value.open
            return twin
        return value

    return lift(one, _first(arguments))


def _partial(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    if not arguments.positional:
        return unknown(node)
    return Partial(_first(arguments), arguments.positional[1:], dict(arguments.keywords))


def _namespace(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    made = Instance(None)
    made.attrs.update({k: bare(v) for k, v in arguments.keywords.items()})
    for given in arguments.positional:
        entries, why = invoke.spread(m, bare(given), text(node))
        made.attrs.update({str(k): bare(v) for k, v in entries.items()})
        made.open = made.open or (why if isinstance(why, str) else RUNS)
    made.open = made.open or (arguments.open if isinstance(arguments.open, str) else RUNS)
    return made


def _vars(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    value = _first(arguments)
    if isinstance(value, Instance):
        return DictValue({k: Entry(v, None, None) for k, v in value.attrs.items()}, value.open)
    if isinstance(value, Unknown):
        return DictValue(why_open=f"{value.text or 'it'} {value.reason}")
    return unknown(node)


def _getenv(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    name = _first(arguments, "key")
    return invoke.environment(m, name, words(node)) if isinstance(name, str) else unknown(node)


def _setdefault_environ(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    name = _first(arguments, "key")
    if isinstance(name, str):
        write_environ(m, name, _nth(arguments, 1, "value"), node, default_only=True)
    return unknown(node)


def _putenv(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    name = _first(arguments, "key")
    if isinstance(name, str):
        write_environ(m, name, _nth(arguments, 1, "value"), node)
    return None


def _update_environ(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    for given in arguments.positional:
        entries, _ = invoke.spread(m, bare(given), text(node))
        for key, entry in entries.items():
            write_environ(m, str(key), bare(entry), node)
    for key, entry in arguments.keywords.items():
        write_environ(m, key, bare(entry), node)
    return None


def write_environ(m: Machine, name: str, value: V, node: ast.AST, *, default_only: bool = False) -> None:
    """Notes that the script sets an environment variable."""
    m.environ.append(Written(node, name, value, default_only=default_only, nested=m.nested, imported=tuple(m.imported)))


def _join_path(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    parts = [bare(a) for a in arguments.positional]
    if parts and all(isinstance(p, str) for p in parts):
        return posixpath.join(*parts)
    return pure(m, "os.path.join", arguments, node)


def _path(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    return _join_path(m, arguments, node)


def _from_file(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    return Unknown("is read from a file", text(node))


def _command_line(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    invoke.hand_over(m, arguments)
    return Unknown(invoke.COMMAND_LINE, text(node))


def _nothing(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    return None


def _fields_of(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    return _vars(m, arguments, node)


def _notebook_env(m: Machine, arguments: Arguments, node: ast.AST) -> V:
    name, value = _first(arguments), _nth(arguments, 1)
    if isinstance(name, str):
        write_environ(m, name, value, node)
    return None


Function = Callable[[Machine, "Arguments", ast.AST], V]
FUNCTIONS: dict[str, Function] = {
    "builtins.dict": _dict,
    "builtins.list": _list,
    "builtins.tuple": _list,
    "builtins.set": _list,
    "builtins.sorted": _same_items,
    "builtins.reversed": _same_items,
    "builtins.iter": _same_items,
    "builtins.str": _str,
    "builtins.int": _number(int),
    "builtins.float": _number(float),
    "builtins.bool": _bool,
    "builtins.len": _len,
    "builtins.getattr": _getattr,
    "builtins.setattr": _setattr,
    "builtins.hasattr": _hasattr,
    "builtins.isinstance": _isinstance,
    "builtins.range": _range,
    "builtins.zip": _zip,
    "builtins.enumerate": _enumerate,
    "builtins.vars": _vars,
    "builtins.print": _nothing,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda m, a, n: DictValue(why_open="it is a defaultdict"),
    "copy.copy": _copy,
    "copy.deepcopy": _copy,
    "functools.partial": _partial,
    "types.SimpleNamespace": _namespace,
    "argparse.Namespace": _namespace,
    "easydict.EasyDict": _namespace,
    "dataclasses.asdict": _fields_of,
    "os.getenv": _getenv,
    "os.environ.get": _getenv,
    "os.environ.pop": lambda m, a, n: unknown(n),
    "os.environ.copy": lambda m, a, n: Unknown("comes from the environment", text(n)),
    "os.environ.setdefault": _setdefault_environ,
    "os.environ.update": _update_environ,
    "os.putenv": _putenv,
    "os.path.join": _join_path,
    "pathlib.Path": _path,
    "json.load": _from_file,
    "json.loads": _from_file,
    "yaml.safe_load": _from_file,
    "yaml.load": _from_file,
    "yaml.full_load": _from_file,
    "toml.load": _from_file,
    "tomllib.load": _from_file,
    "omegaconf.OmegaConf.load": _from_file,
    "tyro.cli": _command_line,
    "fire.Fire": _command_line,
    "draccus.parse": _command_line,
    "simple_parsing.parse": _command_line,
    "builtins.input": _command_line,
    "builtins.open": _from_file,
    "builtins.__qlora_doctor_env__": _notebook_env,
}


def method(m: Machine, receiver: V, name: str, arguments: Arguments, node: ast.AST) -> V:
    """A method of a dict, a list or a constant."""
    if isinstance(receiver, DictValue):
        return _dict_method(m, receiver, name, arguments, node)
    if isinstance(receiver, ListValue):
        return _list_method(m, receiver, name, arguments, node)
    given = [bare(a) for a in arguments.positional]
    if isinstance(receiver, str) and name in _STRING_METHODS:
        if name == "join" and len(given) == 1 and isinstance(given[0], ListValue) and given[0].items is not None:
            items = given[0].items
            return receiver.join(items) if all(isinstance(i, str) for i in items) else unknown(node)
        plain = {k: bare(v) for k, v in arguments.keywords.items()}
        if all(is_constant(g) for g in (*given, *plain.values())) and not arguments.open and not arguments.star:
            try:
                result = getattr(receiver, name)(*given, **plain)
            except (TypeError, ValueError, LookupError, AttributeError):
                return unknown(node)
            return ListValue(tuple(result), "list") if isinstance(result, (list, tuple)) else result
    return pure(m, f"{receiver!r:.40}.{name}", arguments, node)


def _dict_method(m: Machine, d: DictValue, name: str, arguments: Arguments, node: ast.AST) -> V:
    key = _first(arguments, "key")
    if name == "update":
        for given in arguments.positional:
            invoke.spread_into(m, d, _as_dict(bare(given)), text(node), write=True)
        for word, entry in arguments.keywords.items():
            m.world.write(d.entries, word, entry)
        if arguments.open:
            m.world.write(d.state, "open", arguments.open)
        return None
    if name == "copy":
        return DictValue(dict(d.entries), d.state["open"], d.made)
    if name == "clear":
        for word in list(d.entries):
            m.world.write(d.entries, word, MISSING)
        m.world.write(d.state, "open", "")
        return None
    if name in ("items", "keys", "values"):
        return _dict_view(m, d, name)
    if name in ("get", "pop", "setdefault"):
        return _dict_entry(m, d, name, key, arguments, node)
    return unknown(node)


def _dict_view(m: Machine, d: DictValue, name: str) -> V:
    if d.state["open"]:
        return ListValue(None)
    rows: list[V] = []
    for key, entry in d.entries.items():
        entry = m.world.here(entry)
        if any(leaf is MISSING for leaf in each(entry)):
            return ListValue(None)
        if name == "keys":
            rows.append(key)
        elif name == "values":
            rows.append(bare(entry))
        else:
            row = ListValue((key, bare(entry)), "tuple")
            row.state["entry"] = entry
            rows.append(row)
    return ListValue(tuple(rows))


def _dict_entry(m: Machine, d: DictValue, name: str, key: V, arguments: Arguments, node: ast.AST) -> V:
    default = _nth(arguments, 1, "default")
    if not is_constant(key):
        if name != "get":
            m.world.write(d.state, "open", "a key is known only when the script runs")
        return unknown(node)
    entry = m.world.here(d.entries.get(key, MISSING))
    there = invoke._is_there(entry)
    otherwise = None if default is MISSING else default
    if d.state["open"] and there is not True:
        otherwise = unknown(node)
    found = ite(there, bare(entry), otherwise)
    if name == "pop":
        m.world.write(d.entries, key, MISSING)
    if name == "setdefault" and there is not True and isinstance(node, ast.Call) and len(node.args) > 1:
        place = _made(node)
        added = Entry(default, place, _made(node.args[1]))
        m.world.write(d.entries, key, ite(there, entry, added))
    return found


def _list_method(m: Machine, value: ListValue, name: str, arguments: Arguments, node: ast.AST) -> V:
    items = value.items
    given = _first(arguments)
    if name == "append" and items is not None and len(items) < 200:
        m.world.write(value.state, "items", (*items, given))
    elif name == "extend" and items is not None:
        more = evaluate.elements(m, given)
        m.world.write(value.state, "items", None if more is None else (*items, *more))
    elif name == "copy":
        return ListValue(items, value.kind)
    elif name in ("insert", "remove", "pop", "clear", "append", "extend", "discard", "add"):
        m.world.write(value.state, "items", () if name == "clear" else None)
    if name in ("append", "extend", "insert", "remove", "clear", "add", "discard", "sort"):
        return None
    return unknown(node)


def of_object(m: Machine, receiver: V, name: str, arguments: Arguments, node: ast.AST) -> V:
    """What a method of a library object gives, and what it does to the object."""
    if isinstance(receiver, Made):
        found = _parsed(m, receiver, name, arguments, node)
        if found is not MISSING:
            return found
        if names.last(receiver.function) == "Accelerator":
            if name == "prepare":
                given = [bare(a) for a in arguments.positional]
                return given[0] if len(given) == 1 else ListValue(tuple(given), "tuple")
            if name in ("unwrap_model", "prepare_model"):
                return _first(arguments)
        if name == "train" and names.is_trainer(receiver.function):
            return unknown(node)
    _mark(m, receiver, name, arguments)
    if not isinstance(receiver, (Made, Unknown)):
        return unknown(node)
    step = "module" if name in names.MODULE_METHODS else "()"
    return m.derive(receiver, step, (name, invoke._key(arguments)), words(node))


def _mark(m: Machine, receiver: V, name: str, arguments: Arguments) -> None:
    part = part_of(receiver)
    if not isinstance(part, Made):
        return
    hook = name == "register_forward_hook" and isinstance(receiver, Unknown) and receiver.step == "module"
    if name == "enable_input_require_grads" or hook:
        m.world.write(part.attrs, "#prepared", True)
    if name in ("add_adapter", "load_adapter") and part is receiver:
        m.world.write(part.attrs, "#peft", True)
        config = next((bare(v) for v in arguments.values() if isinstance(bare(v), Made)), None)
        if config is not None:
            m.world.write(part.attrs, "#lora", config)


def _parsed(m: Machine, parser: Made, name: str, arguments: Arguments, node: ast.AST) -> V:
    kind = names.last(parser.function)
    if kind.endswith("ArgumentParser") or kind in ("TrlParser", "H4ArgumentParser", "Tap"):
        if name == "parse_args":
            return Unknown(invoke.COMMAND_LINE, text(node))
        if name == "parse_known_args":
            known = Unknown(invoke.COMMAND_LINE, text(node))
            return ListValue((known, Unknown(invoke.COMMAND_LINE, text(node))), "tuple")
        if name.startswith("parse"):
            return _dataclasses(parser, node)
    return MISSING


def _dataclasses(parser: Made, node: ast.AST) -> V:
    given = bare(parser.arguments.get("#0", parser.arguments.get("dataclass_types", MISSING)))
    kinds = list(given.items or ()) if isinstance(given, ListValue) else [given]
    found: list[V] = []
    for kind in kinds:
        base = kind.name if isinstance(kind, Dotted) else kind.library_base() if isinstance(kind, ClassValue) else ""
        if base and names.is_settings(base):
            cls = kind if isinstance(kind, ClassValue) else None
            found.append(Made(base, {"**": f"it {invoke.COMMAND_LINE}"}, node, cls))
        else:
            found.append(
                Unknown(invoke.COMMAND_LINE, kind.name if isinstance(kind, (ClassValue, Dotted)) else text(node))
            )
    return _Parsed(tuple(found))


class _Parsed(ListValue):
    """What a parser of dataclasses returns; there may be more than its classes (the remaining strings)."""

    __slots__ = ()

    def __init__(self, items: tuple[V, ...]) -> None:
        super().__init__(items, "tuple")


def library_effect(m: Machine, path: str, arguments: Arguments, made: Made | None, node: ast.AST) -> V:
    """What a library call does to what it is given; MISSING where its result is just its own."""
    name = names.last(path)
    if name in names.PREPARERS:
        _set_mark(m, _first(arguments, "model"), "#prepared")
    elif name in ("compile", "DistributedDataParallel", "DataParallel", "DDP") and names.top(path) == "torch":
        return _first(arguments, "model") if arguments.positional or "model" in arguments.keywords else MISSING
    elif path == "deepspeed.initialize":
        rest = [unknown(node) for _ in range(3)]
        return ListValue((_nth(arguments, 1, "model"), *rest), "tuple")
    elif path in ("trl.setup_chat_format", "trl.clone_chat_template"):
        # They change the model and give it back, with the tokenizer (and the number of tokens that were added).
        pair = (_nth(arguments, 0, "model"), _nth(arguments, 1, "tokenizer"))
        return ListValue(pair if name == "setup_chat_format" else (*pair, unknown(node)), "tuple")
    elif path == "peft.PeftModel" or name.startswith("PeftModelFor"):
        return MISSING
    elif name == "from_dict" and made is not None and arguments.positional:
        entries, why = invoke.spread(m, _first(arguments), text(node))
        made.function = path.removesuffix(".from_dict")
        made.arguments = {**{str(k): v for k, v in entries.items()}, **({"**": why} if why else {})}
    elif _is_local(m, path):
        for given in arguments.values():
            for leaf in each(bare(given)):
                if isinstance(leaf, DictValue):
                    m.world.write(leaf.state, "open", f"{name}() may have changed it")
                elif isinstance(leaf, Made) and names.is_load(leaf.function):
                    m.world.write(leaf.attrs, "#opaque", True)
    return MISSING


def _set_mark(m: Machine, value: V, mark: str) -> None:
    def one(leaf: V) -> V:
        part = part_of(leaf)
        if isinstance(part, Made):
            m.world.write(part.attrs, mark, True)
        return None

    evaluate.split(m, value, one) if isinstance(value, Choice) else one(value)


def _is_local(m: Machine, path: str) -> bool:
    top = names.top(path)
    if not top or top in m.local_imports:
        return True
    return top in _LOCAL_WORDS and top not in sys.stdlib_module_names


def pure(m: Machine, path: str, arguments: Arguments, node: ast.AST) -> V:
    """The result of a call nobody can see into: the same for the same arguments."""
    name = names.last(path)
    written = words(node)
    key = ("call", path, invoke._key(arguments))
    if name.startswith(("is_", "has_")) or name == "exists":
        m.world.kept += [bare(v) for v in arguments.values()]
        return m.test(key, written)
    found = m.pure.get(key)
    if found is None:
        sources = [root_of(bare(a)) for a in arguments.values()]
        command = next((s for s in sources if isinstance(s, Unknown) and s.reason != RUNS), None)
        reason = RUNS if command is None else command.reason
        m.world.kept += [bare(v) for v in arguments.values()]
        found = m.pure[key] = Unknown(reason, written)
        model = next((bare(a) for a in arguments.values() if isinstance(root_of(bare(a)), Made)), None)
        if isinstance(model, (Made, Unknown)):
            found.parent, found.step = model, "call"
    return found


__all__ = ["FUNCTIONS", "Method", "library_effect", "method", "of_object", "pure", "write_environ"]
