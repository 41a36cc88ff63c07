"""What the packages of the stack ask of each other: the one place where the checks of versions look it up.

The installed transformers is asked first (`facts.installed`, read from its source); the table stands in where it
could not be read, and knows the pairs that no package states.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qlora_checks.requirements import leading, lower_bound, older, release, satisfies
from qlora_checks.tables import load, rows
from qlora_doctor.errors import UnknownArgument
from qlora_doctor.facts import NEWEST, Distribution, Facts, Packages, Unknown, canonical
from qlora_doctor.finding import Severity
from qlora_doctor.request import LoadRequest, Requests

CORE = ("torch", "transformers", "accelerate", "bitsandbytes", "peft")
STACK = frozenset(
    (*CORE, "huggingface-hub", "tokenizers", "safetensors", "numpy", "trl", "datasets", "torchvision", "torchaudio")
)
# The paths that a path includes: whoever loads a model imports transformers, which imports torch.
_IMPLIES: Mapping[str, tuple[str, ...]] = {
    "load": ("import:transformers",),
    "quantized": ("import:bitsandbytes",),
    "training": ("import:transformers",),
    "adapters": ("import:peft",),
    "import:trl": ("import:transformers", "import:accelerate", "import:datasets"),
    "import:peft": ("import:transformers", "import:accelerate"),
    "import:transformers": ("import:torch",),
    "import:accelerate": ("import:torch",),
    "import:bitsandbytes": ("import:torch",),
}


def paths(requests: Requests) -> frozenset[str]:
    """All paths that a run takes, with those that they include.

    Beyond those of `Requests`: `load` (a model is loaded at all), `plain-adapters` (adapters, and no load is quantised).
    """
    found = {p if not p.startswith("import:") else p.partition(".")[0] for p in requests.paths}
    if requests.loads:
        found.add("load")
    if "adapters" in found and requests.loads and all(quantized(load) is False for load in requests.loads):
        found.add("plain-adapters")
    todo = list(found)
    while todo:
        for implied in _IMPLIES.get(todo.pop(), ()):
            if implied not in found:
                found.add(implied)
                todo.append(implied)
    return frozenset(found)


def quantized(load: LoadRequest) -> bool | None:
    """Whether a load is quantised; None where arguments that cannot be read, or the repository itself, may say so."""
    try:
        if load.quantization is not None:
            return True
        return None if re.search(r"[48]-?bit|int[48]|gptq|awq|bnb", load.model.lower()) else False
    except UnknownArgument:
        return None


def empty(requests: Requests) -> bool:
    """Whether there is no run to judge: an environment alone was asked about."""
    return not (requests.loads or requests.trains or requests.imports)


def severity(requests: Requests, breaks: tuple[str, ...], otherwise: Severity = "warning") -> Severity:
    """`error` where the run takes a path that is broken, else `otherwise`. `8-bit+adapters` stands for both at once."""
    taken = paths(requests)
    return "error" if any(taken.issuperset(path.split("+")) for path in breaks) else otherwise


# The index of the packages that were asked about last: `Packages.find` walks all distributions each time.
_last: tuple[Packages | None, dict[str, Distribution]] = (None, {})


def by_name(packages: Packages) -> Mapping[str, Distribution]:
    """The distributions by canonical name; of two copies the one that an import takes."""
    global _last
    if _last[0] is not packages:
        index: dict[str, Distribution] = {}
        for distribution in packages.distributions:
            index.setdefault(canonical(distribution.name), distribution)
        _last = (packages, index)
    return _last[1]


def installed(facts: Facts, name: str) -> str | None:
    """The installed version as its metadata writes it; None where it is not installed."""
    distribution = by_name(facts.packages).get(canonical(name))
    return None if distribution is None else distribution.version


def table_row(transformers: str) -> Mapping[str, str]:
    """Everything that the table knows of a transformers version, also of one newer than its last row."""
    values: dict[str, str] = {}
    for row in rows("matrix.toml", "transformers"):
        if older(transformers, row["from"]):
            break
        values.update(row)
    return values


def newer_than_table(facts: Facts, package: str) -> bool:
    """Whether an installed package is newer than anything that the table describes."""
    version, last = installed(facts, package), load("matrix.toml")["known_to"].get(package)
    if version == NEWEST:
        return False
    have, known = leading(version or ""), leading(last or "")
    return bool(have and known) and have[:2] > known[:2]


@dataclass(frozen=True, slots=True)
class Floor:
    """The oldest `package` that the installed transformers works with, who says so, and what breaks below it."""

    package: str
    version: str
    source: str
    breaks: tuple[str, ...]


# peft: only add_adapter and load_adapter of transformers look at its floor; get_peft_model works below it.
_FLOOR_BREAKS: Mapping[str, tuple[str, ...]] = {
    "bitsandbytes": ("quantized",),
    "accelerate": ("quantized", "training"),
    "peft": (),
    "torch": ("load", "training"),
}


def floors(facts: Facts) -> dict[str, Floor]:
    """The floors that the installed transformers enforces when a feature is used, by package."""
    version = installed(facts, "transformers")
    if version is None:
        return {}
    stated: Mapping[str, str] = {}
    source = f"transformers {version}, its own source"
    known = facts.state("installed")
    if not isinstance(known, Unknown):
        stated = known.minimums.get("transformers", {})
    row = {} if newer_than_table(facts, "transformers") else table_row(version)
    found = {}
    for package, breaks in _FLOOR_BREAKS.items():
        if package in stated:
            found[package] = Floor(package, stated[package], source, breaks)
        elif package in row:
            found[package] = Floor(package, row[package], "the table of this doctor", breaks)
    return found


def import_ranges(facts: Facts) -> tuple[dict[str, str], str]:
    """The versions that the installed transformers insists on when it is imported, by canonical name; and who says so."""
    from qlora_checks.requirements import needs

    version = installed(facts, "transformers")
    if version is None:
        return {}, ""
    known = facts.state("installed")
    if not isinstance(known, Unknown) and known.import_requirements.get("transformers"):
        lines = tuple(known.import_requirements["transformers"])
        stated = {need.name: need.specifier for need in needs(lines, ())}
        return stated, f"transformers {version}, its own source"
    if newer_than_table(facts, "transformers"):
        return {}, ""
    row = table_row(version)
    names = ("huggingface_hub", "tokenizers", "numpy", "safetensors", "regex", "tqdm")
    return {canonical(n): row[n] for n in names if n in row}, "the table of this doctor"


@dataclass(frozen=True, slots=True)
class BadPair:
    """A row of `bad_pair` that is met here. `right_version` is None where the right one is not installed."""

    row: Mapping[str, Any]
    left_version: str
    right_version: str | None


def bad_pairs(facts: Facts) -> Iterator[BadPair]:
    """The known-bad pairs among the installed packages."""
    for row in rows("matrix.toml", "bad_pair"):
        left, right = installed(facts, row["left"]), installed(facts, row["right"])
        if left is None or not satisfies(left, row["left_range"]):
            continue
        absent = row["right_range"] == "absent"
        if (right is None and absent) or (right is not None and not absent and satisfies(right, row["right_range"])):
            yield BadPair(row, left, right)


def told(facts: Facts) -> set[frozenset[str]]:
    """The pairs of packages about which a more specific check speaks; the check of metadata leaves them out."""
    pairs = {frozenset((canonical(p.row["left"]), canonical(p.row["right"]))) for p in bad_pairs(facts)}
    pairs |= {frozenset(("transformers", name)) for name in import_ranges(facts)[0]}
    pairs |= {frozenset(("transformers", package)) for package in floors(facts)}
    torch = by_name(facts.packages).get("torch")
    wheels = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in torch.requires] if torch is not None else []
    pairs |= {frozenset(("torch", canonical(name))) for name in wheels if name.lower().startswith("nvidia")}
    return pairs | {frozenset((name, "torch")) for name in ("torchvision", "torchaudio", "xformers")}


def requirement(facts: Facts, package: str, lower: str = "") -> str:
    """What to ask pip for: `package` from `lower` (or its floor) on, below what the other installed packages cannot take.

    pip looks at Python by itself; that a new bitsandbytes would pull a new torch is what this keeps out.
    """
    floor = floors(facts).get(package)
    if floor is not None and (not lower or older(lower, floor.version)):
        lower = floor.version
    caps = [
        c for c in (*_caps_of_pairs(facts, package), *_cap_of_torch(facts, package)) if not lower or older(lower, c)
    ]
    cap = min(caps, key=lambda c: release(c) or ()) if caps else ""
    clauses = [f">={lower}" if lower else "", f"<{cap}" if cap else ""]
    return package + ",".join(c for c in clauses if c)


def _caps_of_pairs(facts: Facts, package: str) -> Iterator[str]:
    for row in rows("matrix.toml", "bad_pair"):
        if row.get("otherwise") == "info":
            continue
        for mine, other in (("left", "right"), ("right", "left")):
            version = installed(facts, row[other]) if row[mine] == package else None
            bounded = "<" in row[f"{mine}_range"] or row[f"{mine}_range"] == "absent"
            if version is not None and not bounded and satisfies(version, row[f"{other}_range"]):
                yield lower_bound(row[f"{mine}_range"])


def _cap_of_torch(facts: Facts, package: str) -> Iterator[str]:
    torch = installed(facts, "torch")
    if package != "bitsandbytes" or torch is None:
        return
    for row in rows("matrix.toml", "bitsandbytes"):
        if satisfies(torch, row.get("torch", "")) is False:
            yield ".".join(row["version"].split(".")[:2])
            return


KNOWN = ("transformers", "peft", "bitsandbytes", "accelerate", "trl", "torch")


def as_of() -> str:
    """The day of the table."""
    return str(load("matrix.toml")["as_of"])
