"""The parameters of classes and functions of the installed packages, read from their source.

Three answers are possible for a dotted name: a `Signature`; None, where the package certainly has no such name; and
`CannotTell`, where the source is too dynamic to be sure. Only the second may become a finding.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping, Sequence

from qlora_doctor.facts import Signature
from qlora_doctor.gather.sources import CannotTell, Class, Module, Sources, definition

Found = Class | tuple[Module, ast.FunctionDef, int] | Module

# Decorators that leave the parameters as they are.
_PLAIN_CLASS_DECORATORS = frozenset(
    {"dataclass", "add_start_docstrings", "add_end_docstrings", "auto_docstring", "requires", "deprecated", "final",
     "total_ordering", "runtime_checkable", "requires_backends", "experimental", "register_peft_method"}
)  # fmt: skip
# Bases that add nothing at all, and those that add no fields.
_EMPTY_BASES = frozenset({"object", "ABC", "Generic", "Protocol"})
_FIELDLESS_BASES = _EMPTY_BASES | {"Enum", "str", "int", "dict", "list", "Mapping", "Module", "Dataset", "Exception"}


def read_signature(sources: Sources, dotted: str, lazy: Mapping[str, str]) -> Signature | None:
    """The signature of a dotted name; None where it certainly does not exist.

    `lazy` maps the public names of transformers' models to their modules, which no import statement names.

    Raises:
        CannotTell: the source does not say.
    """
    found = resolve(sources, dotted, lazy)
    if found is None:
        return None
    if isinstance(found, Module):
        raise CannotTell(f"{dotted} is a module")
    if isinstance(found, Class):
        return _class_signature(sources, found)
    module, function, line = found
    return _function_signature(sources, module, function, line, bound=False)


def resolve(sources: Sources, dotted: str, lazy: Mapping[str, str]) -> Found | None:
    """What a dotted name stands for, imports followed; None where it certainly does not exist."""
    package, *names = dotted.split(".")
    here = sources.module(package)
    if here is None:
        raise CannotTell(f"the source of {package} is not there")
    found: Found | None = here
    for position, name in enumerate(names):
        if isinstance(found, Module):
            found = look_up(sources, found, name, lazy)
        elif isinstance(found, Class):
            if position != len(names) - 1:
                raise CannotTell(f"{'.'.join(names[:position])} is a class")
            found = _method(sources, found, name)
        else:
            raise CannotTell(f"{'.'.join(names[:position])} is a function")
        if found is None:
            return None
    return found


def look_up(sources: Sources, module: Module, name: str, lazy: Mapping[str, str], depth: int = 0) -> Found | None:
    """What `name` means in a module."""
    if depth > 12:
        raise CannotTell(f"the imports of {name} go round in a circle")
    own = definition(module, name)
    if own is not None:
        return own if isinstance(own, Class) else (module, *own)
    unsure = ""
    for imported in sources.imports(module):
        if imported.alias != name and imported.name != "*":
            continue
        if imported.name == "*" and (imported.module == "transformers.models" or ".dummy_" in imported.module):
            continue  # hundreds of modules, which `lazy` names; and stand-ins for missing backends
        try:
            found = _follow(sources, imported.module, name if imported.name == "*" else imported.name, lazy, depth)
        except CannotTell as error:
            unsure = unsure or str(error)
            continue
        if found is not None:
            return found
        if imported.name != "*":
            unsure = unsure or f"{imported.module} has no {imported.name}"
    if module.name == "transformers" and name in lazy:
        home = sources.module(f"transformers.{lazy[name]}")
        if home is not None:
            return look_up(sources, home, name, {}, depth + 1)
    below = sources.module(f"{module.name}.{name}") if os.path.basename(module.path) == "__init__.py" else None
    if below is not None:
        return below
    if not unsure:
        unsure = _dynamic(module, name)
    if unsure:
        raise CannotTell(unsure)
    return None


def _follow(sources: Sources, module: str, name: str, lazy: Mapping[str, str], depth: int) -> Found | None:
    package = module.partition(".")[0]
    target = sources.module(module)
    if target is None:
        if package in sources.roots:
            return None
        raise CannotTell(f"{name} comes from {module}, which is not read")
    if not name:
        return target
    return look_up(sources, target, name, lazy, depth + 1)


def _dynamic(module: Module, name: str) -> str:
    """Why a module may have a name that its text does not define; "" where it has not."""
    import re

    if re.search(r"^(?:    )?def __getattr__\(", module.text, re.MULTILINE):
        return f"{module.name} makes names when they are asked for"
    # transformers 5 answers for renamed tokenizers and image processors on the fly.
    if module.name == "transformers" and name.endswith(("Tokenizer", "TokenizerFast", "ImageProcessorFast")):
        return "transformers may answer for a renamed class"
    if re.search(rf"^[ \t]*{re.escape(name)}[ \t]*(?::[^=\n]+)?=", module.text, re.MULTILINE):
        return f"{name} is assigned in {module.name}"
    if re.search(rf"""["']{re.escape(name)}["']""", module.text):
        return f"{module.name} mentions {name} as text"
    return ""


# ---- classes


def _bases(sources: Sources, cls: Class) -> list[Class | str]:
    """The base classes; a name where a base is not in the packages that are read."""
    found: list[Class | str] = []
    for base in cls.head.bases:
        while isinstance(base, ast.Subscript):
            base = base.value
        dotted = ast.unparse(base)
        try:
            target = _in_scope(sources, cls.module, dotted)
        except CannotTell:
            target = None
        found.append(target if isinstance(target, Class) else dotted.rpartition(".")[2])
    return found


def _in_scope(sources: Sources, module: Module, dotted: str) -> Found | None:
    first, *rest = dotted.split(".")
    found = look_up(sources, module, first, {})
    for name in rest:
        if not isinstance(found, Module):
            return None
        found = look_up(sources, found, name, {})
    return found


def _decorator_names(node: ast.ClassDef | ast.FunctionDef) -> list[str]:
    calls = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return [ast.unparse(c).rpartition(".")[2] for c in calls]


def _method(sources: Sources, cls: Class, name: str) -> tuple[Module, ast.FunctionDef, int] | None:
    """A method, its own or inherited."""
    unsure = ""
    level: list[Class | str] = [cls]
    seen = 0
    while level and seen < 40:
        one = level.pop(0)
        seen += 1
        if isinstance(one, str):
            if one not in _EMPTY_BASES:
                unsure = unsure or f"{one}, a base of {cls.head.name}, is not read"
            continue
        own = one.method(name)
        if own is not None:
            return (one.module, *own)
        level = [*_bases(sources, one), *level]
    if unsure:
        raise CannotTell(unsure)
    return None


def _class_signature(sources: Sources, cls: Class) -> Signature:
    """What calling the class takes: its `__init__`, or the fields of a dataclass and its bases."""
    return _initializer(sources, cls) or Signature((), source=sources.place(cls.module, cls.line))


def _initializer(sources: Sources, cls: Class) -> Signature | None:
    """The nearest `__init__` of a class and its bases; None where there is none but `object`'s."""
    for name in _decorator_names(cls.head):
        if name not in _PLAIN_CLASS_DECORATORS:
            raise CannotTell(f"{cls.head.name} is decorated with {name}")
    if any(k.arg == "metaclass" and "ABCMeta" not in ast.unparse(k.value) for k in cls.head.keywords):
        raise CannotTell(f"{cls.head.name} has a metaclass")
    own = cls.method("__init__")
    if own is not None:
        return _function_signature(sources, cls.module, *own, bound=True)
    if "dataclass" in _decorator_names(cls.head):
        fields = _dataclass_fields(sources, cls)
        required = tuple(name for name, needed in fields.items() if needed)
        line = cls.line + cls.text[: cls.text.find("class ")].count("\n")
        return Signature(tuple(fields), required, source=sources.place(cls.module, line))
    for base in _bases(sources, cls):
        if isinstance(base, Class):
            found = _initializer(sources, base)
            if found is not None:
                return found
        elif base not in _EMPTY_BASES:
            raise CannotTell(f"what {cls.head.name} takes is up to its base {base}, which is not read")
    return None


def _dataclass_fields(sources: Sources, cls: Class, depth: int = 0) -> dict[str, bool]:
    """The fields that `__init__` takes, base classes first, and whether each is required."""
    fields: dict[str, bool] = {}
    if depth > 8:
        raise CannotTell(f"{cls.head.name} has too many bases")
    for base in reversed(_bases(sources, cls)):
        if isinstance(base, Class):
            fields.update(_dataclass_fields(sources, base, depth + 1))
        elif base not in _FIELDLESS_BASES:
            raise CannotTell(f"{base}, a base of {cls.head.name}, is not read")
    if "dataclass" not in _decorator_names(cls.head):
        return fields
    body = cls.body()
    if body is None:
        raise CannotTell(f"{cls.head.name} does not parse")
    for node in body.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        annotation = ast.unparse(node.annotation)
        if "ClassVar" in annotation or "KW_ONLY" in annotation:
            continue
        keywords = {k.arg: k.value for k in node.value.keywords} if isinstance(node.value, ast.Call) else {}
        init = keywords.get("init")
        if isinstance(init, ast.Constant) and init.value is False:
            fields.pop(node.target.id, None)
            continue
        is_field = isinstance(node.value, ast.Call) and ast.unparse(node.value.func).endswith("field")
        default = {"default", "default_factory"} & set(keywords) if is_field else node.value is not None
        fields[node.target.id] = not default
    return fields


# ---- functions


def _function_signature(
    sources: Sources, module: Module, node: ast.FunctionDef, line: int, *, bound: bool
) -> Signature:
    """`bound`: the first parameter is `self` or `cls`; for others the decorators and its name tell."""
    positional = [*node.args.posonlyargs, *node.args.args]
    decorators = _decorator_names(node)
    if positional and "staticmethod" not in decorators and (bound or positional[0].arg in ("self", "cls")):
        positional = positional[1:]
    defaults = len(node.args.defaults)
    required = [a.arg for a in positional[: max(len(positional) - defaults, 0)]]
    required += [a.arg for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if d is None]
    names = [a.arg for a in (*positional, *node.args.kwonlyargs)]
    names += [n for n in _renamed(node) if n not in names]
    forwards = False
    refuses = False
    if node.args.kwarg is not None:
        use = KeywordUse(node.args.kwarg.arg)
        for statement in node.body:
            use.visit(statement)
        names += [n for n in dict.fromkeys(use.names) if n not in names]
        forwards, refuses = use.forwarded, use.refused
    return Signature(
        tuple(names),
        tuple(required),
        swallows=node.args.kwarg is not None and not forwards and not refuses,
        open=forwards,
        source=sources.place(module, line),
    )


def _renamed(node: ast.FunctionDef) -> Sequence[str]:
    """Old names that a decorator still takes: `@deprecate_kwarg("tokenizer", new_name="processing_class")`."""
    names = []
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and "kwarg" in ast.unparse(decorator.func):
            given = [*decorator.args[:1], *(k.value for k in decorator.keywords if k.arg == "old_name")]
            names += [a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return names


class KeywordUse(ast.NodeVisitor):
    """How a function uses its `**kwargs`: the names it takes out, whether the rest goes on, or is refused."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.names: list[str] = []
        self.forwarded = False
        self.refused = False

    def _is(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id == self.name

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        if isinstance(function, ast.Attribute) and self._is(function.value):
            if function.attr in ("pop", "get", "setdefault") and node.args and isinstance(node.args[0], ast.Constant):
                self.names.append(str(node.args[0].value))
            elif function.attr != "keys":
                self.forwarded = True
            for argument in node.args[1:]:
                self.visit(argument)
            return
        looks = isinstance(function, ast.Name) and function.id in ("len", "list", "bool", "sorted", "set", "str")
        if looks and any(self._is(a) for a in node.args):
            return
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if self._is(node.value):
            if isinstance(node.slice, ast.Constant) and isinstance(node.ctx, (ast.Load, ast.Del)):
                self.names.append(str(node.slice.value))
            self.visit(node.slice)
            return
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if len(node.comparators) == 1 and self._is(node.comparators[0]):
            if isinstance(node.left, ast.Constant) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
                self.names.append(str(node.left.value))
            return
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        test = node.test.operand if isinstance(node.test, ast.UnaryOp) else node.test
        if isinstance(test, ast.Call) and test.args:
            test = test.args[0]
        if isinstance(test, ast.Compare):
            test = test.left.args[0] if isinstance(test.left, ast.Call) and test.left.args else test.left
        if self._is(test):
            self.refused = self.refused or any(isinstance(n, ast.Raise) for n in ast.walk(node))
        else:
            self.visit(node.test)
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    def visit_FormattedValue(self, node: ast.FormattedValue) -> None:
        return

    def visit_Name(self, node: ast.Name) -> None:
        if self._is(node) and isinstance(node.ctx, ast.Load):
            self.forwarded = True
