"""What the libraries' interfaces took and take: the rows of api.toml against the installed versions and signatures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from qlora_checks import tables
from qlora_checks.common import at_least
from qlora_doctor.facts import Facts, Installed, Signature, Unknown
from qlora_doctor.source import Call, ClassDefinition, Unresolved, Value

SETTINGS = frozenset(
    {
        "TrainingArguments",
        "Seq2SeqTrainingArguments",
        "SFTConfig",
        "DPOConfig",
        "RewardConfig",
        "GRPOConfig",
        "KTOConfig",
        "ORPOConfig",
        "CPOConfig",
        "RLOOConfig",
        "GKDConfig",
        "OnlineDPOConfig",
    }
)
State = Literal["removed", "deprecated"]
Kind = Literal["load", "call"]


@dataclass(frozen=True, slots=True)
class Change:
    """One row of api.toml, for one name. See the head of that file for the fields."""

    package: str
    name: str
    calls: frozenset[str] = frozenset()
    deprecated: str = ""
    removed: str = ""
    new: str = ""
    since: str = ""
    older: str = ""
    values: Mapping[str, Any] | None = None
    keeps: bool = False
    drop: bool = False
    reverse: bool = False
    moved: bool = False
    advice: str = ""
    effect: str = ""
    module: str = ""
    module_of: str = ""
    old: str = ""


@cache
def changes(table: str) -> tuple[Change, ...]:
    """The rows of one table (`argument`, `value`, `name`), one a name."""
    found = []
    for row in tables.rows("api.toml", table):
        rest = {k: v for k, v in row.items() if k not in ("name", "names", "calls")}
        calls = row.get("calls", ())
        group = frozenset({"load"} if calls == "load" else SETTINGS if calls == "settings" else calls)
        found += [Change(name=name, calls=group, **rest) for name in row.get("names", [row.get("name")])]
    return tuple(found)


def change_of(call: Call, name: str, kind: Kind) -> Change | None:
    """The row for one argument of a call."""
    function = "load" if kind == "load" else call.function.rpartition(".")[2]
    for change in changes("argument"):
        if change.name == name and function in change.calls:
            return change
    return None


def state_of(facts: Facts, change: Change, signature: Signature | None) -> State | None:
    """Whether the installed version has removed or only deprecated a name; None where all is well.

    A decorator may still take a name that the signature lacks, so the table's version decides there; where the
    signature still has the name, it is not removed, whatever the table says.

    Raises:
        UnknownFact: the version of the package cannot be read.
    """
    version = facts.version(change.package)
    if version is None:
        return None
    has = signature is not None and change.name in signature.parameters
    if change.removed and at_least(version, change.removed) and not has:
        return "removed"
    if change.deprecated and at_least(version, change.deprecated):
        return "deprecated"
    return None


def too_new(facts: Facts, call: Call, name: str, kind: Kind) -> Change | None:
    """The row whose new name `name` is, where the installed version only knows the old one.

    Raises:
        UnknownFact: the version of the package cannot be read.
    """
    function = "load" if kind == "load" else call.function.rpartition(".")[2]
    for change in changes("argument"):
        if change.reverse and change.new == name and function in change.calls:
            version = facts.version(change.package)
            return change if version is not None and not at_least(version, change.since) else None
    return None


def new_name(facts: Facts, change: Change) -> str:
    """The name that takes the place of an old one in the installed version, or ""."""
    version = facts.version(change.package)
    if change.since and version is not None and not at_least(version, change.since):
        return change.older
    return change.new


def signature_of(facts: Facts, function: str) -> Signature | None:
    """The installed signature of a function, or None where it is not known. Never raises."""
    installed = facts.state("installed")
    return None if isinstance(installed, Unknown) else _signature(installed, function)


def _signature(installed: Installed, function: str) -> Signature | None:
    return installed.signatures.get(function)


def named_arguments(call: Call) -> Iterator[tuple[str, Value | Unresolved]]:
    """The arguments that are passed by name."""
    for name, value in call.arguments.items():
        if not name.startswith(("#", "*")):
            yield name, value


def subclasses_of(facts: Facts, call: Call) -> tuple[ClassDefinition, ...]:
    """The classes of the script that are built on the called class, also through one another: the call may be theirs."""
    script = facts.state("script")
    if isinstance(script, Unknown):
        return ()
    names = {call.function.rpartition(".")[2]}
    found: list[ClassDefinition] = []
    for _ in script.classes:
        more = [c for c in script.classes if c not in found and names & {b.rpartition(".")[2] for b in c.bases}]
        if not more:
            break
        found += more
        names |= {c.name for c in more}
    return tuple(found)


def own_fields(facts: Facts, call: Call) -> frozenset[str]:
    """The arguments that subclasses in the script add to the called class, by themselves or through other bases."""
    script = facts.state("script")
    known = {} if isinstance(script, Unknown) else {c.name: c for c in script.classes}
    todo, seen = list(subclasses_of(facts, call)), set()
    found: set[str] = set()
    while todo:
        one = todo.pop()
        if one.name not in seen:
            seen.add(one.name)
            found.update(one.fields)
            todo += [known[short] for b in one.bases if (short := b.rpartition(".")[2]) in known]
    return frozenset(found)


def beyond_reading(facts: Facts, call: Call) -> bool:
    """Whether a subclass in the script takes arguments that cannot be seen: an `__init__`, a base from elsewhere."""
    script = facts.state("script")
    known = set() if isinstance(script, Unknown) else {c.name for c in script.classes}
    for one in subclasses_of(facts, call):
        if any(method.name == "__init__" for method in one.methods):
            return True
        for base in one.bases:
            if base.rpartition(".")[2] not in known and base.partition(".")[0] not in ("transformers", "trl", "peft"):
                return True
    return False


def untaken(call: Call, signature: Signature | None) -> tuple[str, ...]:
    """The named arguments that the installed function does not have; none where that cannot be said."""
    if signature is None or signature.open:
        return ()
    return tuple(name for name, _ in named_arguments(call) if name not in signature.parameters)


def nearest(name: str, candidates: tuple[str, ...]) -> tuple[str, bool]:
    """The candidate that is nearest in spelling ("" for none), and whether it can hardly be anything else."""
    import difflib

    plain = {c.replace("_", "").lower(): c for c in candidates}
    swapped = {"".join(sorted(c)): c for c in candidates}
    same = plain.get(name.replace("_", "").lower().replace("-", "")) or swapped.get("".join(sorted(name)))
    if same:
        return same, True
    close = difflib.get_close_matches(name, candidates, 2, 0.8)
    if not close:
        return "", False
    ratios = [difflib.SequenceMatcher(None, name, c).ratio() for c in close]
    clear = ratios[0] >= 0.92 and (len(ratios) == 1 or ratios[0] - ratios[1] > 0.04)
    return close[0], clear and abs(len(name) - len(close[0])) <= 2
