"""One script from top to bottom, then what nothing in it calls: callbacks, entry points, methods of unused classes."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence

from qlora_doctor.gather.static import execute, invoke, names
from qlora_doctor.gather.static.machine import MAX_STEPS, Frame, Machine
from qlora_doctor.gather.static.values import (
    MISSING,
    ClassValue,
    FunctionValue,
    Instance,
    Made,
    Unknown,
    V,
)


def walk(
    body: Sequence[ast.stmt],
    local_imports: Mapping[str, tuple[str, ...]],
    *,
    plain: bool = False,
    told: frozenset[str] = frozenset(),
) -> Machine:
    """Reads a module's statements. `local_imports` says what the script's own modules import.

    `plain`: no function declares names global or yields, so none needs to be searched for that. `told`: the variables
    that hold what a test of a version or a signature gave.
    """
    m = Machine(local_imports=dict(local_imports), plain=plain, told=told)
    m.module["__name__"] = "__main__"
    m.frames.append(Frame([m.module]))
    execute.block(m, body)
    for _ in range(4):
        waiting = [f for f in m.functions if not m.runs[id(f.node)]]
        if not waiting or m.steps > 3 * MAX_STEPS:
            break
        _run_waiting(m, waiting)
    return m


def _run_waiting(m: Machine, waiting: Sequence[FunctionValue]) -> None:
    methods: dict[ClassValue, list[FunctionValue]] = {}
    for fn in waiting:
        if fn.owner is not None:
            methods.setdefault(fn.owner, []).append(fn)
        elif not m.runs[id(fn.node)]:
            bound = m.bound.get(id(fn.node))
            if bound is None:
                invoke.run_alone(m, fn)
            else:
                arguments = invoke.Arguments(list(bound.args), dict(bound.kwargs), star="it is called from elsewhere")
                invoke.run_alone(m, fn, arguments)
    for cls, functions in methods.items():
        _run_methods(m, cls, functions)


def _run_methods(m: Machine, cls: ClassValue, functions: Sequence[FunctionValue]) -> None:
    instance = _instance(m, cls)
    left = [f for f in functions if not m.runs[id(f.node)]]
    touched = {id(f.node): _touched(f.node) for f in functions}
    while left:
        nxt = next((f for f in left if not _waits(f, left, touched)), left[0])
        left.remove(nxt)
        if isinstance(instance, Instance):
            for name in touched[id(nxt.node)][1]:
                if instance.attrs.get(name, 0) is None and any(name in touched[id(f.node)][0] for f in left):
                    m.world.write(instance.attrs, name, Unknown("is set elsewhere in the class", f"self.{name}"))
        if not m.runs[id(nxt.node)]:
            invoke.run_alone(m, nxt if nxt.kind == "static" else nxt.bind(cls if nxt.kind == "class" else instance))


def _instance(m: Machine, cls: ClassValue) -> V:
    for instance in m.instances:
        if instance.cls is not None and (instance.cls is cls or cls in _ancestors(instance.cls)):
            return instance
    base = cls.library_base()
    made: V
    if base and names.in_stack(base):
        made = Made(base, {"**": "it is made elsewhere"}, cls.node, cls)
    else:
        made = Instance(cls)
        made.open = "is set elsewhere"
        m.instances.append(made)
    init = cls.lookup("__init__")
    if isinstance(init, FunctionValue) and not m.runs[id(init.node)]:
        invoke.run_alone(m, init.bind(made))
    elif init is MISSING and cls.record and isinstance(made, Instance):
        for name in cls.all_fields():
            made.attrs[name] = Unknown("is set where the object is made", f"self.{name}")
    return made


def _ancestors(cls: ClassValue) -> list[ClassValue]:
    found: list[ClassValue] = []
    for base in cls.bases:
        if isinstance(base, ClassValue):
            found += [base, *_ancestors(base)]
    return found


def _waits(fn: FunctionValue, left: Sequence[FunctionValue], touched: dict[int, tuple[set[str], set[str]]]) -> bool:
    stores, loads = touched[id(fn.node)]
    return any((loads - stores) & touched[id(other.node)][0] for other in left if other is not fn)


def _touched(node: ast.AST) -> tuple[set[str], set[str]]:
    """The attributes of `self` that a method sets, and those that it reads."""
    stores: set[str] = set()
    loads: set[str] = set()
    for one in ast.walk(node):
        if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id == "self":
            (stores if isinstance(one.ctx, ast.Store) else loads).add(one.attr)
    return stores, loads
