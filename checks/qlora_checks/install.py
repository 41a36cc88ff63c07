"""What the checks advise to install: the nearest build of torch that runs, and the newest set beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from qlora_checks import builds
from qlora_doctor.facts import Driver, Facts, Gpu
from qlora_doctor.fix import Advice
from qlora_doctor.install.builds import Build
from qlora_doctor.install.builds import fitting as fitting_builds
from qlora_doctor.install.machine import Machine, machine_of

__all__ = ["Build", "advice", "command", "companions", "fitting", "nearest"]


def _machine(facts: Facts, windows: bool) -> Machine:
    """The machine as the checks of the GPU mean it: one with an NVIDIA GPU, and a Windows driver where they say so."""
    found = machine_of(facts)
    gpus = None if found.gpus is None else tuple(g for g in found.gpus if g.vendor == "nvidia")
    driver = facts.state("driver")
    return replace(
        found,
        system="Windows" if windows and found.system == "Linux" and not found.wsl else found.system,
        gpus=gpus or (None if gpus is None else (Gpu("any NVIDIA GPU"),)),
        driver=driver if isinstance(driver, Driver) else None,
    )


def fitting(facts: Facts, sms: Sequence[tuple[int, int]] | None = None, *, windows: bool) -> Iterator[Build]:
    """The CUDA builds that run here, newest first: by driver, by code for each capability in `sms`, by Python and system."""
    return fitting_builds(_machine(facts, windows), sms)


def nearest(facts: Facts, torch: str, sms: Sequence[tuple[int, int]] | None = None, *, windows: bool) -> Build | None:
    """The build that fits and is nearest to the installed torch; None where there is none."""
    mine = builds.numbers(torch)
    found = list(fitting(facts, sms, windows=windows))
    # The first of several at one distance: the newer torch, and what pip brings.
    return min(found, key=lambda b: abs(builds.numbers(b.torch)[1] - mine[1]), default=None)


def companions(facts: Facts, *, windows: bool = False) -> list[str]:
    """The newest set that fits, torch first, as exact requirements; empty where none does."""
    # Most runs need no advice, so what gives it is imported when it is asked for.
    from qlora_doctor.install.choose import newest
    from qlora_doctor.install.commands import requirements

    return requirements(newest(_machine(facts, windows)), uv=True)


def command(build: Build, others: Sequence[str] = ()) -> str:
    """One command that installs a build: pip where pip brings it, else uv, which knows PyTorch's own indexes by label."""
    words = others or [f"torch=={build.torch}.*"]
    text = " ".join(f"'{w}'" if set(w) & set("<>*") else w for w in words)
    if build.plain:
        return "pip install " + text
    return f"uv pip install {text} --torch-backend={build.label}"


def advice(facts: Facts, near: Build | None, *, windows: bool) -> tuple[Advice, ...]:
    """The nearest build, and the newest set that fits, each with its command. Display only: gigabytes, and another torch."""
    if near is None:
        return ()
    from qlora_doctor.install.choose import newest
    from qlora_doctor.install.commands import requirements

    found = [Advice(f"install {near.text} (a download of gigabytes)", command(near))]
    best = newest(_machine(facts, windows))
    if best.build is not None and best.build.torch != near.torch:
        others = ", ".join(p.requirement.replace("==", " ") for p in best.pins[1:])
        found.append(
            Advice(
                f"or make a new environment with the newest set that fits: torch {best.build.torch} ({best.build.label}), {others};"
                " `qlora-doctor setup DIR` makes and proves it",
                command(best.build, requirements(best, uv=True)),
            )
        )
    return tuple(found)
