"""One finding for each argument of a call that the installed version calls otherwise, with its fix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from qlora_checks.api import (
    Change,
    Kind,
    change_of,
    changes,
    named_arguments,
    new_name,
    own_fields,
    signature_of,
    state_of,
    too_new,
)
from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, Applicability, Fix, LoadKwarg, TrainSetting
from qlora_doctor.source import Call, Value, show

Target = Literal["load", "settings", "lora", "trainer"]
_OF_CONFIG = ("load_in_4bit", "load_in_8bit")
_REMOVED = "{function}: {package} {version} no longer takes {name}= (removed in {removed}): it is a TypeError; {what}"
_DEPRECATED = "{function}: {name}= is deprecated in {package} {version} and still taken; {what}"
_TOO_NEW = "{function}: {package} {version} does not take {name}= yet (it came with {since}): it is a TypeError; {what}"


def findings_of(facts: Facts, call: Call, target: Target, settings: Call | None = None) -> Iterator[Finding]:
    """One finding for each argument of a call that the installed version calls otherwise, or not at all."""
    if call.guarded:
        return
    kind: Kind = "load" if target == "load" else "call"
    own = own_fields(facts, call)
    for name, value in named_arguments(call):
        if name in own:
            continue
        newer = too_new(facts, call, name, kind)
        if newer is not None:
            yield _finding(facts, call, newer, _TOO_NEW, name, (_set(target, newer.name, value, name, True, call),))
            continue
        change = change_of(call, name, kind)
        state = None if change is None else state_of(facts, change, signature_of(facts, call.function))
        if change is not None and state is not None:
            template = _REMOVED if state == "removed" else _DEPRECATED
            yield _finding(facts, call, change, template, name, _fixes(facts, call, change, target, settings))
    yield from _values(facts, call, target)


def _finding(facts: Facts, call: Call, change: Change, template: str, name: str, fixes: tuple[Fix, ...]) -> Finding:
    what = _what(fixes, call, name)
    return Finding(
        template,
        evidence={
            "function": _short(call.function),
            "package": change.package,
            "version": str(facts.version(change.package)),
            "name": name,
            "removed": change.removed,
            "since": change.since,
            "what": f"{what}; {change.effect}" if change.effect else what,
        },
        severity="info" if template == _DEPRECATED else "error",
        site=call.site,
        fixes=fixes,
    )


def _what(fixes: tuple[Fix, ...], call: Call, name: str) -> str:
    """What to do, in a few words; a value that stays as it is is not repeated."""
    done = []
    for fix in fixes:
        if isinstance(fix, Advice):
            done.append(fix.text)
        elif isinstance(fix, (LoadKwarg, TrainSetting)) and not fix.drop:
            same = fix.replaces != "" and call.arguments.get(fix.replaces) == fix.value
            shown = f"{fix.name}=" if same else f"{fix.name}={show(fix.value)}"
            moved = isinstance(fix, TrainSetting) and not fix.replaces
            done.append(
                f"write {shown}" if fix.replaces else f"give {shown} to the settings" if moved else f"pass {shown}"
            )
    return "; ".join(done) or f"drop {name}="


def _short(function: str) -> str:
    parts = function.split(".")
    return ".".join(parts[-2:]) if parts[-1] == "from_pretrained" else parts[-1]


def _fixes(facts: Facts, call: Call, change: Change, target: Target, settings: Call | None) -> tuple[Fix, ...]:
    value = call.arguments[change.name]
    advice = (Advice(change.advice),) if change.advice else ()
    if change.name in _OF_CONFIG and target == "load":
        return _config(call, change.name)
    new = new_name(facts, change)
    if change.moved:
        return _moved(call, change, new or change.name, settings)
    mapped = (change.values or {}).get(str(value)) if isinstance(value, bool) else None
    if change.values and mapped is None:
        return (*advice, Advice(f"replace {change.name}= by {new}=")) if new else advice
    if change.drop or mapped == "drop" or (new and new in call.arguments):
        return (_drop(target, change.name, change.keeps, call), *advice)
    if not new:
        return advice
    given: Value = value if mapped is None else tuple(mapped) if isinstance(mapped, list) else mapped
    return (_set(target, new, given, change.name, change.keeps, call), *advice)


def _config(call: Call, name: str) -> tuple[Fix, ...]:
    """`load_in_4bit=True` and the options beside it go into a BitsAndBytesConfig; False was never needed."""
    if call.seen(name) is not True or "quantization_config" in call.arguments:
        return (_drop("load", name, True, call),)
    options = {k: v for k, v in call.arguments.items() if k.startswith(("bnb_4bit_", "llm_int8_"))}
    config = Call("transformers.BitsAndBytesConfig", arguments={name: True, **options})
    drops = tuple(_drop("load", option, True, call) for option in (name, *options))
    return (*drops, LoadKwarg("quantization_config", config, site=call.site))


def _moved(call: Call, change: Change, new: str, settings: Call | None) -> tuple[Fix, ...]:
    """An argument of the trainer that belongs into its settings."""
    drop = TrainSetting(change.name, drop=True, target="trainer", site=call.site)
    value = call.seen(change.name)
    config = call.function.rpartition(".")[2].removesuffix("Trainer") + "Config"
    if settings is None or not settings.function.endswith(config) or value is None:
        return (Advice(f"pass {new}= to {config}, and the {config} as args="),)
    if new in settings.arguments:
        return (drop,)
    return drop, TrainSetting(new, value, site=settings.site)


def _drop(target: Target, name: str, safe: bool, call: Call) -> Fix:
    applicability: Applicability = "safe" if safe else "unsafe"
    if target == "load":
        return LoadKwarg(name, drop=True, applicability=applicability, site=call.site)
    return TrainSetting(name, drop=True, target=target, applicability=applicability, site=call.site)


def _set(target: Target, new: str, value: Value, old: str, safe: bool, call: Call) -> Fix:
    applicability: Applicability = "safe" if safe else "unsafe"
    if target == "load":
        return LoadKwarg(new, value, replaces=old, applicability=applicability, site=call.site)
    return TrainSetting(new, value, replaces=old, target=target, applicability=applicability, site=call.site)


def _values(facts: Facts, call: Call, target: Target) -> Iterator[Finding]:
    for change in changes("value"):
        if call.function.rpartition(".")[2] not in change.calls or call.seen(change.name) != change.old:
            continue
        if state_of(facts, change, None) == "removed":
            yield Finding(
                "{function}: {name}={old} is refused by {package} {version} (removed in {removed}); use {new}",
                evidence={
                    "function": _short(call.function),
                    "name": change.name,
                    "old": show(change.old),
                    "new": show(change.new),
                    "package": change.package,
                    "version": str(facts.version(change.package)),
                    "removed": change.removed,
                },
                severity="error",
                site=call.site,
                fixes=(_set(target, change.name, change.new, "", True, call),),
            )
