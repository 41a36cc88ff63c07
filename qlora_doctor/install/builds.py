"""The builds of torch that a machine can run, newest first, and why the others are none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from qlora_doctor.install.machine import Machine, dotted
from qlora_doctor.tables import rows
from qlora_doctor.tables.builds import codes_of, driver_minimum, numbers, serves, too_old
from qlora_doctor.tables.versions import leading, satisfies


class Build(NamedTuple):
    """One build of torch. `torch` is a minor version; `plain`: it is what pip brings where nothing else is said.

    `kind` is `cuda`, `rocm`, `xpu`, `mps` or `cpu`. `tag` is the local version of a build that is not CUDA's (`cpu`, `rocm7.2`).
    """

    torch: str
    cuda: str
    plain: bool
    kind: str = "cuda"
    tag: str = ""
    verified: bool = True

    @property
    def label(self) -> str:
        """`cu126`, `cpu`, `rocm7.2`, `xpu`; "" where the wheel of the package index has none."""
        return "cu" + self.cuda.replace(".", "") if self.kind == "cuda" else self.tag

    @property
    def text(self) -> str:
        if self.kind == "mps" or not self.label:
            return f"torch {self.torch}"
        return f"the {self.label} build of torch {self.torch}"

    @property
    def version(self) -> str:
        """The version of its newest wheel, as `pip` names it: `2.14.1+cu126`, or `2.14.1` where it is what pip brings."""
        patch = patch_of(self.torch)
        return patch if self.plain or not self.label else f"{patch}+{self.label}"


class Rejected(NamedTuple):
    """A build that is not for this machine, and why."""

    build: Build
    why: str


def patch_of(minor: str) -> str:
    """The last release of a torch minor: 2.14 has 2.14.1."""
    return next((str(r["patch"]) for r in rows("install.toml", "torch") if r["minor"] == minor), f"{minor}.0")


def fitting(machine: Machine, sms: Sequence[tuple[int, int]] | None = None) -> Iterator[Build]:
    """The builds that run here, newest first. Of one torch the build that pip brings comes first.

    `sms` are the compute capabilities that must be served, those of the machine where None. What is not known of a
    machine does not narrow the choice. Rows of the tables that were not verified come last, and for AMD and Intel only.
    """
    return (found for found in judged(machine, sms) if isinstance(found, Build))


def judged(machine: Machine, sms: Sequence[tuple[int, int]] | None = None) -> Iterator[Build | Rejected]:
    """Every build that the tables know for this kind of machine, newest first, with why it is none for it."""
    if machine.kind in ("rocm", "xpu"):
        candidates = list(_accelerators(machine.kind))
        # What nobody saw is offered after all that somebody saw.
        candidates.sort(key=lambda b: not b.verified)
    elif machine.kind in ("cpu", "mps"):
        candidates = list(_plain(machine))
    else:
        candidates = list(_cuda(machine))
    codes = machine.capabilities if sms is None else sms
    for build in candidates:
        why = _platform(machine, build) or (_runs(machine, build, codes) if build.kind == "cuda" else "")
        yield Rejected(build, why) if why else build


def _cuda(machine: Machine) -> Iterator[Build]:
    for row in reversed(rows("cuda.toml", "torch")):
        if not row.get("verified", True):
            continue
        default = row.get("default", "")
        for cuda in sorted(row["builds"], key=lambda c: (c != default, [-n for n in numbers(c)])):
            # On Windows pip brings the CPU build; what it brings on ARM was not seen.
            plain = cuda == default and machine.system == "Linux" and machine.machine == "x86_64"
            yield Build(row["minor"], cuda, plain)


def _plain(machine: Machine) -> Iterator[Build]:
    # On Linux pip brings the CUDA build, which works without a GPU and is gigabytes.
    tag = "cpu" if machine.system == "Linux" else ""
    for row in reversed(rows("install.toml", "torch")):
        yield Build(row["minor"], "", not tag, machine.kind, tag)


def _accelerators(kind: str) -> Iterator[Build]:
    for row in rows("install.toml", "accelerator_build"):
        if row["kind"] == kind:
            yield Build(row["minor"], "", False, kind, row["label"], row["verified"])


def _platform(machine: Machine, build: Build) -> str:
    """Why no wheel of this torch is for the Python and system, or ""."""
    row = next((r for r in rows("install.toml", "torch") if r["minor"] == build.torch), None)
    if row is None:
        return ""
    if machine.python and not satisfies(machine.python, row["python"]):
        return f"its wheels are for Python {row['python']}"
    if machine.libc.startswith("musl"):
        return "its wheels need glibc, and this system has musl"
    if machine.glibc and numbers(machine.glibc) < numbers(row["glibc"]):
        return f"its wheels need glibc {row['glibc']} or newer"
    if machine.system == "Darwin" and machine.machine != "aarch64":
        return "bitsandbytes has no wheel for Macs with an Intel CPU"
    if machine.macos and leading(machine.macos) < leading(row["macos"]):
        return f"its wheels need macOS {row['macos']} or newer"
    if machine.system == "Windows" and machine.machine != "x86_64":
        return "there is no wheel for Windows on ARM that was seen"
    if build.kind in ("rocm", "xpu") and (machine.system, machine.machine) != ("Linux", "x86_64"):
        return f"its {build.label} build was seen for Linux on x86-64 only"
    return ""


def _runs(machine: Machine, build: Build, sms: Sequence[tuple[int, int]]) -> str:
    """Why a CUDA build does not run on the driver and GPUs, or ""."""
    if machine.driver is not None and too_old(machine.driver, build.cuda, windows=machine.windows_driver):
        minimum = driver_minimum(build.cuda, windows=machine.windows_driver)
        return f"CUDA {build.cuda} needs driver {minimum} or newer, and this is {machine.driver.version}"
    codes = codes_of(build.torch, build.cuda, machine.machine)
    lacking = [sm for sm in sms if not serves(codes, sm, build.cuda)]
    if lacking:
        known = f"carries code for {', '.join(codes)}" if codes else "has a list that was not seen"
        return f"its CUDA {build.cuda} build {known}, not for {dotted(lacking)}"
    return ""
