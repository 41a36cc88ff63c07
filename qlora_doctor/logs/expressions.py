"""The conditions of causes: small expressions over the facts and the log, with a third answer, "unknown".

    version('transformers', '<4.49') and not log('is required for')

Only `and`, `or`, `not` and calls of the functions below, with strings and numbers. What is not known is None, and
`and` and `or` treat it as such: nothing is excluded for want of facts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from qlora_doctor.errors import NotKnown, RegistryError
from qlora_doctor.facts import Facts
from qlora_doctor.logs.reader import Line
from qlora_doctor.source import Script

# Where torch's message gives the two numbers that tell fragmentation from a full GPU.
_RESERVED = re.compile(r"(\d+(?:\.\d+)?) ([GM])iB (?:is )?reserved by PyTorch but unallocated")
_TRIED = re.compile(r"Tried to allocate (\d+(?:\.\d+)?) ([GM])iB")


@dataclass
class World:
    """What conditions may ask: the facts, the lines of the log, the script, and the codes that checks found."""

    facts: Facts = field(default_factory=Facts)
    lines: tuple[Line, ...] = ()
    script: Script | None = None
    codes: frozenset[str] | None = None
    _asked: dict[str, bool] = field(default_factory=dict)

    def log(self, pattern: str) -> bool:
        """Whether a line of the log matches."""
        if pattern not in self._asked:
            search = compiled(pattern).search
            self._asked[pattern] = any(search(line.text) for line in self.lines)
        return self._asked[pattern]


def version(world: World, name: str, spec: str) -> bool | None:
    """Whether the installed version of a distribution lies in a range; None where it is not installed."""
    found = world.facts.version(name)
    return None if found is None else _inside(found, spec)


def installed(world: World, name: str) -> bool | None:
    """Whether a distribution is installed. A list of a few packages does not say what is absent."""
    packages = world.facts.packages
    if packages.find(name) is not None:
        return True
    return False if len(packages.distributions) > 15 else None


def python(world: World, spec: str) -> bool:
    """Whether the interpreter's version lies in a range."""
    return _inside(world.facts.interpreter.version, spec)


def torch_build(world: World, kind: str) -> bool | None:
    """Whether torch is a `cpu`, `cuda`, `rocm` or `xpu` build."""
    build = world.facts.torch
    return None if build is None else build.kind == kind


def torch_cuda(world: World, spec: str) -> bool | None:
    """Whether the CUDA version that torch was built with lies in a range."""
    build = world.facts.torch
    return None if build is None or build.cuda is None else _inside(build.cuda, spec)


def driver_cuda(world: World, spec: str) -> bool | None:
    """Whether the newest CUDA that the driver serves lies in a range."""
    driver = world.facts.driver
    return None if driver is None or driver.cuda is None else _inside(driver.cuda, spec)


def sm(world: World, spec: str) -> bool | None:
    """Whether a GPU's capability lies in a range."""
    known = [gpu.capability for gpu in world.facts.gpus if gpu.capability]
    return any(_inside(c, spec) for c in known) if known else None


def gpus_busy(world: World) -> bool:
    """Whether other processes hold memory of a GPU."""
    return any(p.memory for gpu in world.facts.gpus for p in gpu.processes)


def system(world: World, name: str) -> bool:
    """Whether this is `Linux`, `Windows` or `Darwin`."""
    return bool(world.facts.host.system == name)


def container(world: World) -> bool:
    """Whether it runs in a container."""
    return world.facts.host.container != ""


def env(world: World, name: str) -> bool:
    """Whether an environment variable is set and not empty."""
    return bool(world.facts.environ.get(name))


def log(world: World, pattern: str) -> bool:
    """Whether a line of the log matches the regular expression."""
    return world.log(pattern)


def calls(world: World, function: str) -> bool | None:
    """Whether the script calls a function or method (`.to`, `get_peft_model`)."""
    return None if world.script is None else bool(world.script.called(function))


def check(world: World, code: str) -> bool | None:
    """Whether a check found something here."""
    return None if world.codes is None else code in world.codes


def misspelt_class(world: World) -> bool | None:
    """Whether the name that could not be imported is nearly, but not quite, the name of a class of transformers."""
    from difflib import SequenceMatcher

    from qlora_doctor.families import FAMILIES

    known = {c for f in FAMILIES for c in f.classes} | set(_installed_classes(world.facts))
    for line in world.lines:
        match = re.search(r"cannot import name '(\w+)' from 'transformers", line.text)
        if match is None:
            continue
        name = match[1]
        if name in known:
            return False
        plain = name.replace("_", "").lower()
        if any(plain == k.replace("_", "").lower() for k in known):
            return True
        if any(abs(len(k) - len(name)) < 3 and SequenceMatcher(None, k, name).ratio() > 0.96 for k in known):
            return True
    return None


def _installed_classes(facts: Facts) -> tuple[str, ...]:
    state = facts.state("installed")
    return getattr(state, "classes", ())


def fragmented(world: World) -> bool | None:
    """Whether the memory that PyTorch holds unused would have been enough for what it could not get."""
    for line in world.lines:
        reserved, tried = _RESERVED.search(line.text), _TRIED.search(line.text)
        if reserved and tried:
            return _mib(reserved) > 512 and _mib(reserved) >= _mib(tried)
    return None


def _mib(match: re.Match[str]) -> float:
    return float(match[1]) * (1024 if match[2] == "G" else 1)


def _inside(version: Any, spec: str) -> bool:
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    found = Version(version) if isinstance(version, str) else version
    return found in SpecifierSet(spec, prereleases=True)


FUNCTIONS: Mapping[str, Callable[..., bool | None]] = {
    f.__name__: f
    for f in (
        version, installed, python, torch_build, torch_cuda, driver_cuda, sm, gpus_busy, system, container, env, log,
        calls, check, misspelt_class, fragmented,
    )
}  # fmt: skip


@cache
def compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


@cache
def parse(text: str) -> ast.expr:
    """The expression that `text` writes.

    Raises:
        RegistryError: it is not one, or uses what is not allowed.
    """
    # Strings are raw: in a pattern a backslash is the pattern's own.
    try:
        tree = ast.parse(text.strip().replace("\\", "\\\\"), mode="eval").body
    except SyntaxError as error:
        raise RegistryError(f"condition {text!r}: {error.msg}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            constants = all(isinstance(a, ast.Constant) and isinstance(a.value, (str, int, float)) for a in node.args)
            if name not in FUNCTIONS or not constants or node.keywords:
                raise RegistryError(
                    f"condition {text!r}: {ast.unparse(node)} is none of {', '.join(sorted(FUNCTIONS))}"
                )
        elif not isinstance(
            node, (ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.Name, ast.Load, ast.Constant)
        ):
            raise RegistryError(f"condition {text!r}: {type(node).__name__} is not allowed")
    return tree


def evaluate(text: str, world: World) -> bool | None:
    """True, False, or None where it cannot be known."""
    return _value(parse(text), world)


def _value(node: ast.expr, world: World) -> bool | None:
    if isinstance(node, ast.BoolOp):
        values = [_value(v, world) for v in node.values]
        strong = isinstance(node.op, ast.Or)
        if strong in values:
            return strong
        return None if None in values else not strong
    if isinstance(node, ast.UnaryOp):
        inner = _value(node.operand, world)
        return None if inner is None else not inner
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        arguments = [a.value for a in node.args if isinstance(a, ast.Constant)]
        try:
            return FUNCTIONS[node.func.id](world, *arguments)
        except NotKnown:
            return None
    raise RegistryError(f"condition {ast.unparse(node)!r} gives no answer")


def log_patterns(text: str) -> Iterator[str]:
    """The regular expressions that a condition asks the log for."""
    for node in ast.walk(parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "log":
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value


def fact_terms(text: str) -> tuple[str, ...]:
    """The terms of a condition that ask for facts (not for the log), as they are written."""
    found = []
    for node in ast.walk(parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in ("log", "fragmented"):
            found.append(ast.unparse(node))
    return tuple(found)
