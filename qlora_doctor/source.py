"""What was read in a script, a notebook or a configuration file: values, calls, and where they stand.

A value is a plain constant, a tuple or a dict of values, a `Dotted` name (`torch.bfloat16`), a `Call`, or
`Unresolved` when only running the script would tell. Names are written as their import path, whatever the script
calls them: `import torch as t; t.float16` is `Dotted("torch.float16")`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qlora_doctor.errors import UnknownArgument, WireError
from qlora_doctor.wire import SCALARS, fields_to_data, from_data, to_data


@dataclass(frozen=True, slots=True)
class Dotted:
    """A name by its import path: `torch.float16`, `transformers.LlavaForConditionalGeneration`."""

    name: str

    def to_wire(self) -> Any:
        return {"name": self.name}


@dataclass(frozen=True, slots=True)
class Unresolved:
    """A value that cannot be known without running the script, and why."""

    reason: str

    def to_wire(self) -> Any:
        return {"unresolved": self.reason}


@dataclass(frozen=True, slots=True)
class Site:
    """A place in a file.

    `line` and `column` count from 1, in characters. `start` and `end` are byte offsets in the file as it lies on disk
    (in a notebook: in the UTF-8 text of the cell's source). `spans` gives the byte range of each argument of a call:
    `name=value` as a whole under its name (positional arguments under `#0`, `#1`; a `**mapping` under `**`), the
    value alone under `name:value`, what lies between the parentheses under `()`, and, where the call is all of a
    statement (`x.f()`, `x = x.f()`) that can be deleted with its lines, those under `statement`. An argument that is
    set elsewhere (`load_kwargs["x"] = ...`, a dict display) has the range of that key and value there, of the whole
    statement where it is one; `**NAME` is where the dict that is passed as `**NAME` is made. `sha256` is of the whole
    file.
    """

    path: str
    line: int = 0
    column: int = 0
    end_line: int = 0
    start: int = -1
    end: int = -1
    cell: int | None = None
    sha256: str = ""
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """A call. `function` is an import path, or `.method` when the receiver's class is not known; the call of an
    object itself (`tokenizer(..)`) is `.__call__`.

    `arguments` maps names to values; positional arguments come under the parameter's name where the signature is
    known to the reader, else under `#0`, `#1`. `open` says why there may be further arguments that could not be read
    (`**kwargs` of a function); empty: the arguments are complete. `receiver` is the variable the method was called
    on (`model` in `model.half()`), and `result` the variable that takes the result. `origin` is the import path of
    the call that made the receiver, where that is known: for `model = X.from_pretrained(..); model.half()` it is
    `X.from_pretrained`. `order` numbers the calls of a script as they stand in it. `guarded` is set where a failure of
    this call is provided for: `try` where an except around it catches it, `version` where a test of a version or a
    signature (`version.parse(..)`, `inspect.signature`, `hasattr`) decides whether it runs. `loads`, for a cast or a
    move, are the loads that the receiver may come from, unwrapped, with the arguments that they have where this call runs;
    none where one of them cannot be followed.
    """

    function: str
    arguments: Mapping[str, Value] = field(default_factory=dict)
    open: str = ""
    site: Site | None = None
    receiver: str = ""
    result: str = ""
    origin: str = ""
    order: int = 0
    guarded: str = ""
    loads: tuple[Call, ...] = ()

    def has(self, *names: str) -> bool:
        """Whether one of `names` is passed.

        Raises:
            UnknownArgument: none is, as far as can be seen, but not all arguments can be seen.
        """
        if any(name in self.arguments for name in names):
            return True
        if self.open:
            raise UnknownArgument(names[0], self.open)
        return False

    def get(self, name: str, default: Value = None) -> Value:
        """The value of an argument, or `default` where it is not passed.

        Raises:
            UnknownArgument: the value, or whether it is passed at all, cannot be known.
        """
        if not self.has(name):
            return default
        value = self.arguments[name]
        if isinstance(value, Unresolved):
            raise UnknownArgument(name, value.reason)
        return value

    def seen(self, name: str) -> Value:
        """The value as far as it could be read: never raises; None where it is absent or unresolved."""
        value = self.arguments.get(name)
        return None if isinstance(value, Unresolved) else value

    def to_wire(self) -> Any:
        return {"call": fields_to_data(self)}

    @classmethod
    def from_wire(cls, data: Any, where: str) -> Call:
        if not isinstance(data, Mapping) or set(data) != {"call"} or not isinstance(data["call"], Mapping):
            raise WireError(where, "expected a call")
        raw = dict(data["call"])
        arguments = {str(k): value_from_data(v, f"{where}.{k}") for k, v in raw.pop("arguments", {}).items()}
        site = from_data(Site, raw.pop("site"), f"{where}.site") if raw.get("site") is not None else None
        raw.pop("site", None)
        loads = tuple(Call.from_wire(one, f"{where}.loads") for one in raw.pop("loads", ()))
        try:
            return cls(arguments=arguments, site=site, loads=loads, **raw)
        except TypeError as error:
            raise WireError(where, str(error)) from None


Value: TypeAlias = (
    "bool | int | float | str | tuple[Value, ...] | Mapping[str, Value] | Dotted | Call | Unresolved | None"
)


def value_from_data(data: Any, where: str) -> Value:
    """The inverse of `wire.to_data` for a value (lists come back as tuples)."""
    if data is None or isinstance(data, SCALARS):
        return data
    if isinstance(data, list):
        return tuple(value_from_data(v, f"{where}[{i}]") for i, v in enumerate(data))
    if isinstance(data, Mapping):
        if set(data) == {"name"}:
            return Dotted(str(data["name"]))
        if set(data) == {"unresolved"}:
            return Unresolved(str(data["unresolved"]))
        if set(data) == {"call"}:
            return Call.from_wire(data, where)
        if set(data) == {"dict"}:
            return {str(k): value_from_data(v, f"{where}.{k}") for k, v in data["dict"].items()}
    raise WireError(where, "expected a value")


def value_to_data(value: Value) -> Any:
    """A value as JSON data; dicts are wrapped so that they cannot be mistaken for names and calls."""
    if isinstance(value, Mapping):
        return {"dict": {k: value_to_data(v) for k, v in value.items()}}
    if isinstance(value, tuple):
        return [value_to_data(v) for v in value]
    return to_data(value)


def show(value: Value) -> str:
    """A value as a person would write it in Python."""
    if isinstance(value, Dotted):
        return value.name
    if isinstance(value, Unresolved):
        return "..."
    if isinstance(value, Call):
        inner = ", ".join(f"{k}={show(v)}" for k, v in value.arguments.items())
        return f"{value.function.rpartition('.')[2]}({inner})"
    if isinstance(value, tuple):
        return "[" + ", ".join(show(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {show(v)}" for k, v in value.items()) + "}"
    return repr(value)


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name: `from transformers import AdamW as A` is module `transformers`, name `AdamW`, alias `A`.

    `import torch` has name "". `nested`: inside a function or class. `guarded`: in a try that catches its failure.
    `used` counts how often the alias is read elsewhere in the script. `site` spans the imported name alone.
    """

    module: str
    name: str = ""
    alias: str = ""
    nested: bool = False
    guarded: bool = False
    used: int = 0
    order: int = 0
    site: Site | None = None


@dataclass(frozen=True, slots=True)
class EnvironWrite:
    """`os.environ[NAME] = value`, `os.environ.setdefault`, `os.putenv`, `os.environ.update`.

    `before` and `after` in the sense of `order`, which is shared with imports and calls. `after_imports` names the
    top-level packages that are imported, directly or by the script's own imports, before this write runs.
    """

    name: str
    value: Value = None
    default_only: bool = False
    order: int = 0
    nested: bool = False
    after_imports: tuple[str, ...] = ()
    site: Site | None = None


@dataclass(frozen=True, slots=True)
class Assignment:
    """An attribute or a plain name set to something a check cares about: `tokenizer.pad_token = tokenizer.eos_token`."""

    target: str
    value: Value = None
    origin: str = ""
    order: int = 0
    nested: bool = False
    site: Site | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """A method that a class of the script defines, with its parameters (`*args` as `*`, `**kwargs` as `**`)."""

    name: str
    parameters: tuple[str, ...] = ()
    calls_super: bool = False
    site: Site | None = None


@dataclass(frozen=True, slots=True)
class ClassDefinition:
    """A class of the script, with its bases as import paths. `fields` are the annotated ones, as of a dataclass."""

    name: str
    bases: tuple[str, ...] = ()
    methods: tuple[Method, ...] = ()
    site: Site | None = None
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fallback:
    """A try whose except loads something else: first `AutoProcessor.from_pretrained`, then `AutoTokenizer...`."""

    first: Call
    second: Call
    site: Site | None = None


@dataclass(frozen=True, slots=True)
class TokenUse:
    """One thing that a script does with padding or labels, as its text shows it (names are not followed).

    `kind`: `pad-is-eos` (the pad token is set to the end token; `detail` is `guarded` where that happens only if there
    was none), `padding-side` and `truncation-side` (`detail` is the side), `mask` (labels become -100; `detail` says by
    what: `pad`, `eos`, `attention`, `other`), `labels-copied` (labels are the input ids), `pad-to-length`
    (`padding="max_length"`).
    """

    kind: str
    detail: str = ""
    site: Site | None = None


@dataclass(frozen=True, slots=True)
class Script:
    """One file that was read. `problem` is set, and the rest empty, where it could not be read as what it is.

    In a notebook one cell that is no Python sets `problem` as well; the other cells are read all the same.

    `kind`: `python`, `notebook`, `config`, or `model`, `adapter`, `checkpoint`, `data` for a path that is no source text.
    `note` is what a person should know of how it was read: what was left out, what a folder is. `format` of a config: `transformers`, `llama-factory`, `axolotl`,
    `ms-swift` or "". `insertion` is the byte offset where an import or an environ write can be put first: after the
    module docstring and `from __future__`. `ignores` maps a line to the codes or names that a
    `# qlora-doctor: ignore[...]` comment there names (`*` for all).
    """

    path: str
    kind: str = "python"
    format: str = ""
    sha256: str = ""
    encoding: str = "utf-8"
    problem: str = ""
    problem_line: int = 0
    note: str = ""
    imports: tuple[Import, ...] = ()
    environ: tuple[EnvironWrite, ...] = ()
    calls: tuple[Call, ...] = ()
    assignments: tuple[Assignment, ...] = ()
    classes: tuple[ClassDefinition, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()
    distributed: str = ""
    insertion: int = 0
    ignores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tokens: tuple[TokenUse, ...] = ()

    def called(self, *functions: str) -> tuple[Call, ...]:
        """The calls whose function is, or ends in, one of `functions` (`get_peft_model`, `.half`, `peft.LoraConfig`)."""
        return tuple(
            c for c in self.calls if any(c.function == f or c.function.endswith("." + f.lstrip(".")) for f in functions)
        )

    def imports_module(self, top: str) -> bool:
        """Whether `top` (a top-level package) is imported anywhere in the script."""
        return any(i.module == top or i.module.startswith(top + ".") for i in self.imports)
