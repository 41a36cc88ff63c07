"""A value as source text, in the names that a script uses, and the imports that it then needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import libcst as cst

from qlora_doctor.errors import RepairError
from qlora_doctor.source import Call, Dotted, Unresolved, Value


@dataclass(slots=True)
class Names:
    """What import paths are called at one place of a script.

    `bound` maps an import path to its local name (`torch` to `t`); `taken` are other names that the script gives a
    meaning. `missing` collects the import lines that rendered values need; `elsewhere` are imports of the notebook's
    earlier cells.
    """

    bound: dict[str, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    quote: str = '"'

    def of(self, path: str) -> str:
        """The local name of an import path; adds to `missing` where no import gives it one.

        Raises:
            RepairError: the name that an import would bind has another meaning in the script.
        """
        parts = path.split(".")
        for count in range(len(parts), 0, -1):
            local = self.bound.get(".".join(parts[:count]))
            if local is not None:
                return ".".join([local, *parts[count:]])
        if len(parts) == 1:
            return path
        if parts[-1][:1].isupper():
            line, name = f"from {'.'.join(parts[:-1])} import {parts[-1]}", parts[-1]
        else:
            line, name = f"import {parts[0]}", parts[0]
        if name in self.taken:
            raise RepairError(f"the script uses the name {name} for something else, so `{line}` cannot be added")
        if line not in self.missing:
            self.missing.append(line)
        return name if parts[-1][:1].isupper() else path

    def render(self, value: Value) -> str:
        """`value` as Python source. Raises RepairError where it is not fully known."""
        if isinstance(value, Unresolved):
            raise RepairError(f"the new value is not known: {value.reason}")
        if isinstance(value, Dotted):
            return self.of(value.name)
        if isinstance(value, Call):
            inner = ", ".join(f"{k}={self.render(v)}" for k, v in value.arguments.items())
            return f"{self.of(value.function)}({inner})"
        if isinstance(value, tuple):
            return "[" + ", ".join(self.render(v) for v in value) + "]"
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{self.string(k)}: {self.render(v)}" for k, v in value.items()) + "}"
        return self.string(value) if isinstance(value, str) else repr(value)

    def string(self, value: str) -> str:
        """A string literal in the script's quotes."""
        text = repr(value)
        if self.quote == '"' and text[0] == "'" and '"' not in text and "\\" not in text:
            return f'"{text[1:-1]}"'
        return text


def names_in(module: cst.Module, scopes: list[cst.CSTNode], text: str) -> Names:
    """The names at a place that lies inside `scopes` (the functions around it, outermost first)."""
    names = Names(quote="'" if text.count("'") > text.count('"') else '"')
    for scope in (module, *scopes):
        body = scope.body if isinstance(scope, (cst.Module, cst.FunctionDef, cst.ClassDef)) else scope
        visitor = _Imports(scope)
        (body if isinstance(body, cst.CSTNode) else module).visit(visitor)
        names.bound |= visitor.bound
        names.taken |= visitor.taken
    names.taken -= set(names.bound.values())
    return names


class _Imports(cst.CSTVisitor):
    """The imports and plain names of one scope, without those of the functions inside it."""

    def __init__(self, scope: cst.CSTNode) -> None:
        self.scope = scope
        self.bound: dict[str, str] = {}
        self.taken: set[str] = set()

    def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:
        self.taken.add(node.name.value)
        return False

    def visit_ClassDef(self, node: cst.ClassDef) -> bool:
        self.taken.add(node.name.value)
        return False

    def visit_Lambda(self, node: cst.Lambda) -> bool:
        return False

    def visit_AssignTarget(self, node: cst.AssignTarget) -> None:
        if isinstance(node.target, cst.Name):
            self.taken.add(node.target.value)

    def visit_Import(self, node: cst.Import) -> None:
        for alias in node.names:
            path = dotted(alias.name)
            if alias.asname is not None:
                self.bound[path] = dotted(alias.asname.name)
            else:
                self.bound[path.partition(".")[0]] = path.partition(".")[0]

    def visit_ImportFrom(self, node: cst.ImportFrom) -> None:
        if node.module is None or node.relative or isinstance(node.names, cst.ImportStar):
            return
        for alias in node.names:
            path = f"{dotted(node.module)}.{dotted(alias.name)}"
            self.bound[path] = dotted(alias.asname.name) if alias.asname is not None else dotted(alias.name)


def dotted(node: cst.CSTNode) -> str:
    """`a.b.c` of a chain of attributes; "" for anything else."""
    if isinstance(node, cst.Name):
        return node.value
    if isinstance(node, cst.Attribute):
        left = dotted(node.value)
        return f"{left}.{node.attr.value}" if left else ""
    return ""
