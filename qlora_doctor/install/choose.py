"""The newest set of packages that go together on one machine. Pure: machine in, set out; the tables are its only source."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qlora_doctor.errors import UsageError
from qlora_doctor.facts import TorchBuild, canonical
from qlora_doctor.install.builds import Build, Rejected, judged
from qlora_doctor.install.machine import Machine
from qlora_doctor.install.rules import refused, releases
from qlora_doctor.tables import rows
from qlora_doctor.tables.versions import older

CORE = ("transformers", "huggingface-hub", "peft", "accelerate", "bitsandbytes")
EXTRAS = ("datasets", "trl")
"""What is added where it is asked for; trl brings datasets."""


@dataclass(frozen=True, slots=True)
class Pin:
    """One package of the set. `version` is as pip names it; `size` in bytes, None where nothing is known."""

    name: str
    version: str
    why: str
    size: int | None = None

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True, slots=True)
class Choice:
    """What to install on a machine, torch first. Without a build there is no set, and `reasons` say why.

    `notes` are what a person should know of it. `verified` is False where it rests on something that nobody saw.
    """

    machine: Machine
    build: Build | None
    pins: tuple[Pin, ...] = ()
    notes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def verified(self) -> bool:
        return self.build is not None and self.build.verified

    @property
    def refusal(self) -> str:
        """Why there is no set: for each kind of cause the newest and the oldest build that it stands against."""
        kinds: dict[str, list[str]] = {}
        for reason in self.reasons:
            kinds.setdefault(re.sub(r"[\d.,<>= ]+", " ", reason.partition(": ")[2]), []).append(reason)
        return "; ".join(dict.fromkeys(r for reasons in kinds.values() for r in (reasons[0], reasons[-1])))

    def version(self, name: str) -> str:
        """The version of a package of the set, "" where it is not in it."""
        return next((p.version for p in self.pins if p.name == canonical(name)), "")


def newest(machine: Machine, extras: Sequence[str] = (), torch: str = "") -> Choice:
    """The newest set for a machine, with the packages of `extras` (`trl`, `datasets`). `torch`: only this minor version.

    Raises:
        UsageError: an extra that the tables know nothing of.
    """
    names = names_of(extras)
    reasons: list[str] = []
    for found in judged(machine):
        build = found if isinstance(found, Build) else found.build
        if torch and build.torch != torch:
            continue
        if isinstance(found, Rejected):
            reasons.append(f"{build.text}: {found.why}")
            continue
        # A pair that is harmless for 4-bit training is taken only where nothing without one is left.
        for strict in (True, False):
            pins = _complete(machine, build, names, {}, strict)
            if pins is not None:
                first = Pin("torch", build.version, _why_torch(machine, build, reasons), size_of("torch", build.kind))
                return Choice(machine, build, (first, *pins.values()), tuple(_notes(machine, build, pins)))
        reasons.append(f"{build.text}: {_lacking(machine, build, names)}")
    return Choice(machine, None, reasons=tuple(dict.fromkeys(reasons)) or ("no build of torch is known for it",))


def names_of(extras: Sequence[str]) -> tuple[str, ...]:
    """The packages of a set in the order in which they are chosen. Raises UsageError for one that is not known."""
    asked = [canonical(e) for e in extras if e]
    unknown = [e for e in asked if e not in (*EXTRAS, *CORE, "torch")]
    if unknown:
        raise UsageError(
            f"--with {unknown[0]}: only {' and '.join(EXTRAS)} can be chosen here; install what else you need afterwards, "
            "with the constraints file"
        )
    wanted = {*asked, *(["datasets"] if "trl" in asked else [])}
    return (*CORE, *(e for e in EXTRAS if e in wanted))


def _complete(
    machine: Machine, build: Build, names: Sequence[str], chosen: Mapping[str, Pin], strict: bool
) -> dict[str, Pin] | None:
    """The newest releases of `names` that go with a build and with one another, by trying; None where there are none."""
    if not names:
        return dict(chosen)
    have = {"torch": build.version.partition("+")[0], **{n: p.version for n, p in chosen.items()}}
    passed_over = ""
    for row in releases(names[0]):
        version = str(row["version"])
        why = refused(machine, build, row, have, strict)
        if why:
            passed_over = passed_over or f"{version}: {why}"
            continue
        pin = Pin(names[0], version, _why(machine, build, names[0], passed_over), size_of(names[0]))
        rest = _complete(machine, build, names[1:], {**chosen, names[0]: pin}, strict)
        if rest is not None:
            return rest
        passed_over = passed_over or f"{version}: nothing of {', '.join(names[1:])} goes with it"
    return None


def _lacking(machine: Machine, build: Build, names: Sequence[str]) -> str:
    """What stands against every release of the package at which the search ended."""
    have = {"torch": build.version.partition("+")[0]}
    for name in names:
        whys = [refused(machine, build, row, have, strict=False) for row in releases(name)]
        if all(whys):
            return f"no {name} goes with it ({whys[0]})"
    return "no set of " + ", ".join(names) + " goes with it"


def _why_torch(machine: Machine, build: Build, reasons: Sequence[str]) -> str:
    if build.kind == "cuda":
        driver = f"driver {machine.driver.version} runs it" if machine.driver is not None else "the driver is not known"
        codes = machine.capability_text
        served = f" and it has code for {codes}" if codes else ""
        what = f"the newest with a CUDA build that fits: CUDA {build.cuda}, {driver}{served}"
    elif build.kind == "cpu":
        what = "the newest for this Python; its CPU build, as no GPU was found"
    else:
        what = f"the newest for this machine{f' with a {build.label} build' if build.label else ''}"
    return f"{what}; {reasons[0]}" if reasons else what


def _why(machine: Machine, build: Build, name: str, passed_over: str) -> str:
    what = "the newest that goes with the rest"
    if name == "bitsandbytes" and build.kind == "cuda":
        what = f"the newest with a library for CUDA {build.cuda} that takes torch {build.torch}"
    elif name == "huggingface-hub":
        what = "in the range that transformers insists on when it is imported"
    elif name in ("peft", "accelerate"):
        what = "the newest; transformers has a floor for it"
    return f"{what} ({passed_over})" if passed_over else what


def _notes(machine: Machine, build: Build, pins: Mapping[str, Pin]) -> Iterator[str]:
    if not build.verified:
        yield f"that there is {build.text} was not seen by anyone here; if it is not found, nothing is changed"
    if machine.gpus is None:
        yield "the GPUs could not be read; name yours with --gpu and --driver"
    elif build.kind == "cpu" and machine.system != "Darwin":
        yield "no GPU was found here: this set is for the CPU, which is slow; name the card of another machine with --gpu"
        if older(pins["transformers"].version, "4.53") or older(pins["bitsandbytes"].version, "0.46"):
            yield "on the CPU this transformers refuses a 4-bit load; take Python 3.10 or newer"
    elif build.kind == "cuda" and machine.driver is None:
        yield f"the driver is not known; CUDA {build.cuda} has a minimum, see `qlora-doctor explain QD401`"
    if any(sm >= (12, 0) for sm in machine.capabilities):
        yield "cards of the RTX 50 series want driver 570 or newer, as is generally held"


def size_of(package: str, label: str = "") -> int | None:
    """The rough download of a package in bytes, by the table; None where it has none."""
    for row in rows("install.toml", "size"):
        if row["package"] == package and row["label"] in (label, "cpu" if label == "mps" else label):
            return int(row["bytes"])
    return None


def torch_build(choice: Choice) -> TorchBuild | None:
    """The torch of a set as its `version.py` will state it, for judging the set before it is there."""
    build = choice.build
    if build is None:
        return None
    version = build.version if build.kind != "cuda" else build.version.partition("+")[0]
    hip = build.tag.removeprefix("rocm") if build.kind == "rocm" else None
    return TorchBuild(version, build.cuda or None, hip, "20260100" if build.kind == "xpu" else None)
