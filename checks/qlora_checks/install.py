"""What to install: the builds of torch that a driver, GPU and Python can use, and what goes with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from qlora_checks import builds
from qlora_checks.requirements import leading, older, satisfies
from qlora_checks.tables import rows
from qlora_doctor.facts import Driver, Facts, Interpreter, TorchBuild, Unknown
from qlora_doctor.fix import Advice


class Build(NamedTuple):
    """One build of torch. `torch` is a minor version; `plain`: it is what pip brings where nothing else is said."""

    torch: str
    cuda: str
    plain: bool

    @property
    def label(self) -> str:
        """`cu126`."""
        return "cu" + self.cuda.replace(".", "")

    @property
    def text(self) -> str:
        return f"the {self.label} build of torch {self.torch}"


def fitting(facts: Facts, sms: Sequence[tuple[int, int]] | None = None, *, windows: bool) -> Iterator[Build]:
    """The builds that run here, newest first: by driver, by code for each capability in `sms`, by Python.

    Of one torch the build that pip brings comes first. What is not known (no driver, no GPU) does not narrow the choice;
    rows of the tables that were not verified are left out.
    """
    driver = facts.state("driver")
    if sms is None:
        gpus = facts.state("gpus")
        sms = () if isinstance(gpus, Unknown) else [g.sm for g in builds.nvidia(facts) if g.sm is not None]
    for row in reversed(rows("cuda.toml", "torch")):
        if not row.get("verified", True) or not _python_fits(facts, row.get("python", "")):
            continue
        default = row.get("default", "")
        for cuda in sorted(row["builds"], key=lambda c: (c != default, [-n for n in builds.numbers(c)])):
            if isinstance(driver, Driver) and builds.too_old(driver, cuda, windows=windows):
                continue
            codes = builds.codes_of(row["minor"], cuda, builds.machine(facts))
            if sms and not all(builds.serves(codes, sm, cuda) for sm in sms):
                continue
            yield Build(row["minor"], cuda, cuda == default and not windows)


def _python_fits(facts: Facts, floor: str) -> bool:
    """Whether this interpreter is new enough; True where it is not known."""
    interpreter = facts.state("interpreter")
    if not isinstance(interpreter, Interpreter) or not floor:
        return True
    return leading(interpreter.version)[:2] >= leading(floor)


def nearest(facts: Facts, torch: str, sms: Sequence[tuple[int, int]] | None = None, *, windows: bool) -> Build | None:
    """The build that fits and is nearest to the installed torch; None where there is none."""
    mine = builds.numbers(torch)
    found = list(fitting(facts, sms, windows=windows))
    # The first of several at one distance: the newer torch, and what pip brings.
    return min(found, key=lambda b: abs(builds.numbers(b.torch)[1] - mine[1]), default=None)


def companions(facts: Facts, build: Build) -> list[str]:
    """Requirements for bitsandbytes, transformers, peft and accelerate that go with a build of torch, newest first."""
    torch = TorchBuild(f"{build.torch}.0", build.cuda)
    lines = []
    for row in reversed(rows("matrix.toml", "bitsandbytes")):
        fits = satisfies(torch.version, row.get("torch", "")) is not False and _python_fits(
            facts, row.get("python", "")
        )
        if fits and builds.has_library([f"cuda{v}" for v in row["cuda"].split()], row["version"], build.cuda, None):
            lines.append(f"bitsandbytes=={row['version']}")
            break
    floors: dict[str, str] = {}
    cap = ""
    for row in rows("matrix.toml", "transformers"):
        too_new = not _python_fits(facts, row.get("python", "")) or older(torch.version, row.get("torch", "0"))
        if too_new:
            cap = row["from"]
            break
        floors.update({name: row[name] for name in ("peft", "accelerate") if name in row})
    lines.append(f"transformers<{cap}" if cap else "transformers")
    return [*lines, *(f"{name}>={floor}" for name, floor in sorted(floors.items()))]


def command(build: Build, others: Sequence[str] = ()) -> str:
    """One command that installs a build: pip where pip brings it, else uv, which knows PyTorch's own indexes by label."""
    words = [f"'torch=={build.torch}.*'", *(f"'{line}'" if set(line) & set("<>=") else line for line in others)]
    if build.plain:
        return "pip install " + " ".join(words)
    return f"uv pip install {' '.join(words)} --torch-backend={build.label}"


def advice(facts: Facts, near: Build | None, *, windows: bool) -> tuple[Advice, ...]:
    """The nearest build, and the newest set that fits, each with its command. Display only: gigabytes, and another torch."""
    if near is None:
        return ()
    found = [Advice(f"install {near.text} (a download of gigabytes)", command(near))]
    newest = next(fitting(facts, windows=windows), None)
    if newest is not None and newest.torch != near.torch:
        others = companions(facts, newest)
        found.append(
            Advice(
                f"or make a new environment with the newest set that fits: torch {newest.torch} ({newest.label}), {', '.join(others)}",
                command(newest, others),
            )
        )
    return tuple(found)
