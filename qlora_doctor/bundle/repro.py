"""The smallest script that asks for the same: the load calls and the trainer of a request, with their resolved arguments.

What stands in a script beside them (arguments' parsing, data, loops) is left out; unknown data is replaced by two
short rows. The text is judged again, so that it is known which findings it still has.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qlora_doctor import __version__, redaction
from qlora_doctor.errors import UsageError
from qlora_doctor.examine import Examination
from qlora_doctor.finding import Finding
from qlora_doctor.judge import Case, judge
from qlora_doctor.request import LoadRequest, TrainRequest
from qlora_doctor.source import Call, Dotted, Script, Unresolved, Value

# Arguments that say who asks, not what is asked.
_WHO = frozenset(["token", "use_auth_token", "hub_token", "hub_model_id", "api_key", "run_name"])
_ROWS = '[{"input_ids": [5, 6, 7, 8], "attention_mask": [1, 1, 1, 1], "labels": [5, 6, 7, 8]}] * 2'
_DATA = frozenset(["train_dataset", "eval_dataset"])
_CASTS = (
    ".half", ".to", ".cuda", ".float", ".bfloat16", ".cpu", ".type", ".requires_grad_", ".gradient_checkpointing_enable",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Repro:
    """A script, the codes that it has as the original has them, and those that only the original has."""

    text: str
    codes: tuple[str, ...]
    lost: tuple[str, ...]


def make_repro(examination: Examination) -> Repro:
    """The smallest script for what was examined.

    Raises:
        UsageError: nothing in it loads or trains a model.
    """
    from qlora_doctor.gather.script import read_script

    case = _case(examination)
    text = _text(case, examination)
    ast.parse(text)
    script, requests = read_script("repro.py", text.encode("utf-8"))
    again = judge(examination.checks, examination.facts, (Case(requests, script),))
    before, after = _codes(examination.verdict.findings), _codes(again.findings)
    return Repro(text, tuple(c for c in before if c in after), tuple(c for c in before if c not in after))


def _codes(findings: Iterable[Finding]) -> list[str]:
    return list(dict.fromkeys(f.code for f in findings if f.severity != "info" or f.site is not None))


def _case(examination: Examination) -> Case:
    """The case with the gravest finding, else the first that asks for something."""
    asking = [c for c in examination.cases if c.requests.loads or c.requests.trains]
    if not asking:
        raise UsageError(
            "nothing here loads or trains a model, so there is nothing to write; name the script with --script, or a model "
            "with --model"
        )
    paths = [f.site.path for f in examination.verdict.findings if f.site is not None]
    return min(
        asking,
        key=lambda c: paths.index(c.script.path) if c.script is not None and c.script.path in paths else len(paths),
    )


def _text(case: Case, examination: Examination) -> str:
    writer = _Writer()
    loads = _needed(case, examination)
    trains = case.requests.trains[:1]
    for number, load in enumerate(loads):
        name = "model" if number == 0 else f"model_{number + 1}"
        writer.assign(name, load.call)
        for cast in _casts(case.script, load.call):
            writer.line(f"{name} = {name}{cast.function}({writer.arguments(cast)})")
    for train in trains:
        _train(writer, train)
    _others(writer, case.script, examination)
    facts = examination.facts
    versions = [f"{n} {v}" for n in ("torch", "transformers", "peft", "bitsandbytes") if (v := facts.version(n))]
    head = [f"# Made by qlora-doctor {__version__} repro", *([f"# with {', '.join(versions)}"] if versions else [])]
    environ = [
        f"os.environ[{w.name!r}] = {w.value!r}"
        for w in (case.script.environ if case.script is not None else ())
        if isinstance(w.value, str) and redaction.secrets(f"{w.name}={w.value}") == f"{w.name}={w.value}"
    ]
    if environ:
        head += ["import os", "", *dict.fromkeys(environ), ""]
    return "\n".join([*head, *writer.imported(), "", *writer.lines]) + "\n"


def _needed(case: Case, examination: Examination) -> list[LoadRequest]:
    """The loads that something was found in, or that are trained; without any the first."""
    places = {(f.site.path, f.site.start) for f in examination.verdict.findings if f.site is not None}
    trained = [t.load.site for t in case.requests.trains if t.load is not None]
    unique: dict[Any, LoadRequest] = {}
    for load in case.requests.loads:
        key = (load.site.path, load.site.start) if load.site is not None else id(load)
        if key in places or load.site in trained or load.site is None:
            unique.setdefault(key, load)
    return list(unique.values()) or list(case.requests.loads[:1])


def _casts(script: Script | None, load: Call) -> list[Call]:
    """What is done to the loaded model before it is used: `.half()`, `.to("cuda")`."""
    if script is None or load.site is None:
        return []
    here = [
        c
        for c in script.calls
        if c.function in _CASTS and any(o.site and o.site.start == load.site.start for o in c.loads)
    ]
    return [c for c in here if not c.open]


def _others(writer: _Writer, script: Script | None, examination: Examination) -> None:
    """The imports and the further calls (of a processor, a tokenizer) in which something was found."""
    if script is None:
        return
    places = {(f.site.path, f.site.line) for f in examination.verdict.findings if f.site is not None}
    for item in script.imports:
        if item.site is not None and item.name != "*" and (item.site.path, item.site.line) in places:
            writer.use(item.module, item.name)
    for call in script.calls:
        at = call.site
        if at is None or (at.path, at.line) not in places or (at.path, at.start) in writer.written:
            continue
        if "." in call.function[1:] and not call.function.startswith("."):
            name = (
                f"{call.result} = "
                if call.result.isidentifier() and call.result not in ("model", "args", "lora")
                else ""
            )
            writer.line(f"{name}{writer.callee(call.function)}({writer.arguments(call)})")


def _train(writer: _Writer, train: TrainRequest) -> None:
    if "model" not in writer.names.values():
        writer.comment("the model could not be followed; load the one that is trained here")
        writer.line("model = ...")
    if train.prepared:
        writer.use("peft", "prepare_model_for_kbit_training")
        writer.line("model = prepare_model_for_kbit_training(model)")
    wrapped = train.lora is not None and "peft_config" not in train.trainer.arguments
    if train.lora is not None and wrapped:
        writer.assign("lora", train.lora)
        writer.use("peft", "get_peft_model")
        writer.line("model = get_peft_model(model, lora)")
    if train.settings is not None and "." in train.settings.function:
        writer.assign("args", train.settings)
    if train.trainer.function == "loop":
        return
    arguments: dict[str, Value] = {}
    for name, value in train.trainer.arguments.items():
        raw = name in _DATA or (name.startswith("#") and isinstance(value, Unresolved))
        arguments[name] = _Raw(_ROWS) if raw and name in _DATA else value  # type: ignore[assignment]
    if "model" in arguments or not any(n.startswith("#") for n in arguments):
        arguments["model"] = _Raw("model")  # type: ignore[assignment]
    function = train.trainer.function if "." in train.trainer.function else f"transformers.{train.trainer.function}"
    if train.subclass:
        writer.comment(f"the script uses its own subclass, {train.subclass}")
    if train.trainer.site is not None:
        writer.written.add((train.trainer.site.path, train.trainer.site.start))
    writer.assign("trainer", Call(function, arguments))
    writer.line("trainer.train()")


@dataclass(frozen=True, slots=True)
class _Raw:
    """An expression that is written as it is."""

    text: str


@dataclass
class _Writer:
    """Writes calls as Python, and keeps what they need to be imported."""

    lines: list[str] = field(default_factory=list)
    imports: dict[str, set[str]] = field(default_factory=dict)
    names: dict[tuple[str, int], str] = field(default_factory=dict)
    written: set[tuple[str, int]] = field(default_factory=set)

    def line(self, text: str) -> None:
        self.lines.append(text)

    def comment(self, text: str) -> None:
        self.lines.append("# " + " ".join(text.split()))

    def use(self, module: str, name: str = "") -> None:
        self.imports.setdefault(module, set()).update([name] if name else [])

    def imported(self) -> list[str]:
        """The import lines, sorted."""
        out = []
        for module, names in sorted(self.imports.items()):
            out += [f"from {module} import {', '.join(sorted(names))}"] if names else [f"import {module}"]
        return out

    def assign(self, name: str, call: Call) -> None:
        """`name = call(...)`, one argument a line; later the same call is `name`."""
        text = self.arguments(call, ",\n    ")
        inner = f"\n    {text},\n" if text else ""
        self.line(f"{name} = {self.callee(call.function)}({inner})")
        if call.site is not None:
            self.names[(call.site.path, call.site.start)] = name

    def callee(self, path: str) -> str:
        """An import path as the script writes it."""
        parts = path.split(".")
        module = parts[:1]
        while len(module) < len(parts) - 1 and parts[len(module)][:1].islower() and len(parts) - len(module) > 2:
            module.append(parts[len(module)])
        rest = parts[len(module) :]
        if module == ["torch"]:
            self.use("torch")
            return path
        self.use(".".join(module), rest[0])
        return ".".join(rest)

    def arguments(self, call: Call, between: str = ", ") -> str:
        written: list[str] = []
        if call.site is not None:
            self.written.add((call.site.path, call.site.start))
        rows = sorted(
            call.arguments.items(),
            key=lambda item: (not item[0].startswith("#"), item[0] if item[0].startswith("#") else ""),
        )
        for name, value in rows:
            text = self.value(value)
            if name in _WHO:
                continue
            if text is None:
                why = value.reason if isinstance(value, Unresolved) else "a part of it could not be read"
                self.comment(f"left out: {name.lstrip('#')}: {why}")
            else:
                plain = name.startswith("#") or (name == "pretrained_model_name_or_path" and not written)
                written.append(text if plain else f"{name}={text}")
        if call.open:
            self.comment(f"there may be more arguments: {call.open}")
        return between.join(written)

    def value(self, value: Any) -> str | None:
        """A value as Python; None where it is not known."""
        if isinstance(value, _Raw):
            return value.text
        if isinstance(value, Unresolved):
            return None
        if isinstance(value, Dotted):
            return self._dotted(value.name)
        if isinstance(value, Call):
            return self._call(value)
        if isinstance(value, Mapping):
            inner = {k: self.value(v) for k, v in value.items()}
            return None if None in inner.values() else "{" + ", ".join(f"{k!r}: {v}" for k, v in inner.items()) + "}"
        if isinstance(value, tuple):
            items = [self.value(v) for v in value]
            return None if None in items else "[" + ", ".join(i for i in items if i is not None) + "]"
        return repr(redaction.secrets(value)) if isinstance(value, str) else repr(value)

    def _dotted(self, name: str) -> str | None:
        if "." not in name:
            return None  # a variable of the script, whose value nobody followed
        return self.callee(name)

    def _call(self, call: Call) -> str | None:
        if call.site is not None and (call.site.path, call.site.start) in self.names:
            return self.names[(call.site.path, call.site.start)]
        if "." not in call.function or call.function.startswith(".") or not re.match(r"[\w.]+\Z", call.function):
            return None
        return f"{self.callee(call.function)}({self.arguments(call)})"
