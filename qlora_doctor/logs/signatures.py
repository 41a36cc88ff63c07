"""The signatures of all plug-ins: what a message means, as data.

A plug-in names a TOML file of its package in the entry-point group `qlora_doctor.signatures`
(`mine = "my_package:signatures.toml"`). Each `[[signature]]` has `id`, `category`, `patterns` (regular expressions,
tried on one line; they begin and end at the edge of a word), `source`, `causes`, and optionally `kind` and `versions`.
Each cause has `id`, `says`, `fix`, and optionally `when`, `unless` (qlora_doctor.logs.expressions), `rare` and `fixes`:

    "pip NAME>=1"  "pip -NAME"  "env NAME=value"  "env -NAME"  "load name=JSON"  "load -name"  "load old->new"
    and the same with "quant" (BitsAndBytesConfig), "train" (training arguments), "lora" (LoraConfig)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from qlora_doctor.errors import RegistryError
from qlora_doctor.fix import EnvVar, Fix, LoadKwarg, PipRequirement, TrainSetting
from qlora_doctor.logs.expressions import compiled, log_patterns, parse
from qlora_doctor.logs.words import table, words_of
from qlora_doctor.registry import entry_points
from qlora_doctor.source import Value

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GROUP = "qlora_doctor.signatures"
Kind = Literal["error", "weak", "effect", "benign"]


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason for a message. `when` confirms it, `unless` excludes it; a `when` that is false excludes too.

    `rare`: while its `when` is unknown it takes nothing from the confidence in the others.
    """

    id: str
    says: str
    fix: str
    when: str = ""
    unless: str = ""
    fixes: tuple[Fix, ...] = ()
    rare: bool = False


@dataclass(frozen=True, slots=True)
class Signature:
    """One message in all its wordings, and what can cause it, the likeliest first.

    `kind`: `error`; `weak`, where other programs say the same; `effect`, what is said of a failure by whoever saw it;
    `benign`, a notice that looks worse than it is.
    """

    id: str
    category: str
    patterns: tuple[str, ...]
    causes: tuple[Cause, ...]
    source: str
    kind: Kind = "error"
    versions: str = ""
    distribution: str = ""

    def matches(self, text: str) -> bool:
        """Whether one of the patterns matches a line."""
        return any(compiled(p).search(text) for p in self.patterns)


@dataclass
class Signatures:
    """All signatures, with the table that says which to try on a line."""

    all: tuple[Signature, ...]

    @cached_property
    def by_word(self) -> Mapping[bytes, tuple[Signature, ...]]:
        """The signatures that a word makes worth trying; `b""` for those without a telling word."""
        found: dict[bytes, dict[str, Signature]] = {}
        for signature in self.all:
            for pattern in signature.patterns:
                for word in words_of(pattern) or (b"",):
                    found.setdefault(word, {})[signature.id] = signature
        return {word: tuple(some.values()) for word, some in found.items()}

    @cached_property
    def words(self) -> frozenset[bytes]:
        """Every word that a reader has to look for, those of the causes' conditions too."""
        conditions = [c for s in self.all for cause in s.causes for c in (cause.when, cause.unless) if c]
        return frozenset(self.by_word) | table(p for c in conditions for p in log_patterns(c))


@cache
def installed_signatures() -> Signatures:
    """The signatures of every plug-in.

    Raises:
        RegistryError: none at all, one id twice, or one that is not of the form.
    """
    found: dict[str, Signature] = {}
    for _, target, distribution in sorted(entry_points(GROUP)):
        for signature in load(_file(target), distribution):
            if signature.id in found:
                raise RegistryError(f"signature {signature.id!r} is there twice: the second is {distribution}'s")
            found[signature.id] = signature
    if not found:
        raise RegistryError(
            f"no signatures are installed: the entry-point group {GROUP!r} is empty. "
            "Reinstall the package (pip install --force-reinstall --no-deps qlora-doctor)"
        )
    return Signatures(tuple(found.values()))


def _file(target: str) -> Path:
    module, _, name = target.partition(":")
    spec = find_spec(module)
    if spec is None or not spec.origin or not name:
        raise RegistryError(f"entry point {target!r} of {GROUP}: no such package, or no file named after the colon")
    return Path(spec.origin).parent / name


def load(path: Path, distribution: str = "") -> tuple[Signature, ...]:
    """The signatures in one file. Raises RegistryError with the place of what is wrong."""
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))["signature"]
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise RegistryError(f"{path}: {error}") from None
    return tuple(_signature(row, f"{path.name}: signature {row.get('id')!r}", distribution) for row in rows)


def _signature(row: Mapping[str, Any], where: str, distribution: str) -> Signature:
    missing = {"id", "category", "patterns", "causes", "source"} - set(row)
    unknown = set(row) - {"id", "category", "patterns", "causes", "source", "kind", "versions"}
    if missing or unknown or row.get("kind", "error") not in get_args(Kind) or not row["causes"]:
        raise RegistryError(
            f"{where}: missing {sorted(missing)}, unknown {sorted(unknown)}, or a kind or causes that cannot be"
        )
    for pattern in row["patterns"]:
        if words_of(pattern) is None:
            raise RegistryError(f"{where}: the pattern {pattern!r} has no whole word that every match contains")
    causes = tuple(_cause(c, where) for c in row["causes"])
    return Signature(**{**row, "patterns": tuple(row["patterns"]), "causes": causes, "distribution": distribution})


def _cause(row: Mapping[str, Any], where: str) -> Cause:
    if not {"id", "says", "fix"} <= set(row) <= {"id", "says", "fix", "when", "unless", "fixes", "rare"}:
        raise RegistryError(
            f"{where}: a cause has id, says, fix, and maybe when, unless, fixes, rare; found {sorted(row)}"
        )
    for condition in filter(None, (row.get("when"), row.get("unless"))):
        parse(condition)
    return Cause(**{**row, "fixes": tuple(read_fix(f, where) for f in row.get("fixes", ()))})


def _value(data: Any) -> Value:
    """JSON as a value of a script: lists become tuples."""
    if isinstance(data, list):
        return tuple(map(_value, data))
    if isinstance(data, dict):
        return {str(k): _value(v) for k, v in data.items()}
    return data  # type: ignore[no-any-return]


def read_fix(text: str, where: str = "fix") -> Fix:
    """The Fix that a short form writes. Raises RegistryError."""
    verb, _, rest = text.partition(" ")
    drop = rest.startswith("-")
    name, equals, value = rest.lstrip("-").partition("=")
    if verb == "pip" and rest:
        return PipRequirement(rest.lstrip("-"), remove=drop)
    if verb == "env" and (drop or equals):
        return EnvVar(name, None if drop else value)
    old, arrow, new = name.partition("->")
    try:
        data = _value(json.loads(value)) if equals else None
    except ValueError:
        raise RegistryError(f"{where}: {text!r}: the value is not JSON") from None
    if not (drop or equals or arrow):
        raise RegistryError(f"{where}: {text!r} is no short form of a fix")
    name, replaces = (new, old) if arrow else (name, "")
    if verb in ("load", "quant"):
        target: Literal["load", "quantization"] = "load" if verb == "load" else "quantization"
        return LoadKwarg(name, data, drop=drop, replaces=replaces, target=target, applicability="unsafe")
    if verb in ("train", "lora"):
        room: Literal["settings", "lora"] = "settings" if verb == "train" else "lora"
        return TrainSetting(name, data, drop=drop, replaces=replaces, target=room, applicability="unsafe")
    raise RegistryError(f"{where}: {text!r}: the first word is none of pip, env, load, quant, train, lora")
