"""The machine as far as an install depends on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qlora_doctor.facts import Driver, Facts, Gpu, Interpreter, TorchBuild, Unknown

_MACHINES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides which wheels run: Python, system, C library, driver and GPUs.

    `python` is `3.11.7`; `libc` is `glibc 2.36`, "" where it is not known; `gpus` and `driver` are None where they could
    not be read, which narrows nothing. `macos` is `14`. `built` is the kind of the torch that is installed; it counts
    where no GPU was found, for those of AMD and Intel are not always seen.
    """

    python: str
    system: str = "Linux"
    machine: str = "x86_64"
    libc: str = ""
    wsl: bool = False
    driver: Driver | None = None
    gpus: tuple[Gpu, ...] | None = None
    macos: str = ""
    built: str = ""

    @property
    def windows_driver(self) -> bool:
        """Whether the driver's version is that of a Windows driver, as under WSL."""
        return self.system == "Windows" or self.wsl

    @property
    def kind(self) -> str:
        """The sort of torch build that is wanted: `cuda`, `rocm`, `xpu`, `mps` or `cpu`."""
        if self.system == "Darwin":
            return "mps" if self.machine == "aarch64" else "cpu"
        if self.gpus is None or any(g.vendor == "nvidia" for g in self.gpus):
            return "cuda"
        vendors = {g.vendor for g in self.gpus}
        if not vendors and self.built in ("rocm", "xpu"):
            return self.built
        return "rocm" if "amd" in vendors else "xpu" if "intel" in vendors else "cpu"

    @property
    def capabilities(self) -> tuple[tuple[int, int], ...]:
        """The compute capability of each kind of NVIDIA GPU here, as far as it is known."""
        found = {g.sm for g in self.gpus or () if g.vendor == "nvidia"}
        return tuple(sorted(sm for sm in found if sm is not None))

    @property
    def capability_text(self) -> str:
        """The capabilities in words: `7.5, 8.6`."""
        return dotted(self.capabilities)

    @property
    def glibc(self) -> str:
        """The version of glibc; "" where it is not known or there is none."""
        match = re.match(r"glibc (\d+\.\d+)", self.libc)
        return match[1] if match and self.system == "Linux" else ""

    @property
    def text(self) -> str:
        """The machine in one line."""
        words = [f"Python {self.python}", f"{self.system} {self.machine}" + (" (WSL)" if self.wsl else "")]
        words += [self.libc] if self.libc and self.system == "Linux" else []
        words += [", ".join(dict.fromkeys(g.name for g in self.gpus)) or "no GPU"] if self.gpus is not None else []
        words += [f"driver {self.driver.version}"] if self.driver is not None else []
        return ", ".join(words)


def machine_of(facts: Facts) -> Machine:
    """The machine that the facts describe; what they do not know is left open."""
    interpreter, host = facts.state("interpreter"), facts.state("host")
    driver, gpus, torch = facts.state("driver"), facts.state("gpus"), facts.state("torch")
    python = interpreter.version if isinstance(interpreter, Interpreter) else ""
    given: dict[str, object] = {}
    if not isinstance(host, Unknown):
        machine = host.machine.lower()
        given = {
            "system": host.system,
            "machine": _MACHINES.get(machine, machine),
            "libc": host.libc,
            "wsl": bool(host.wsl),
        }
        if host.system == "Darwin":
            given["macos"] = macos_of(host.release)
    return Machine(
        python=python,
        driver=driver if isinstance(driver, Driver) else None,
        gpus=None if isinstance(gpus, Unknown) else tuple(gpus),
        built=torch.kind if isinstance(torch, TorchBuild) else "",
        **given,  # type: ignore[arg-type]
    )


def macos_of(kernel: str) -> str:
    """The macOS of a Darwin kernel: `24.6.0` is macOS 15; from kernel 25 on both count by the year (26)."""
    match = re.match(r"(\d+)\.", kernel)
    if match is None:
        return ""
    number = int(match[1])
    return str(number - 9 if 20 <= number < 25 else number + 1) if number >= 20 else "10"


def dotted(sms: Sequence[tuple[int, int]]) -> str:
    """Compute capabilities as `7.5, 8.6`."""
    return ", ".join(f"{major}.{minor}" for major, minor in sms)
