"""QD4: GPU, driver and CUDA, as far as it can be told without touching the GPU."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qlora_checks import (
    accelerators,
    amd,
    builds,
    cuda_wheels,
    extensions,
    features,
    gpus,
    install,
    library,
    natives,
    no_gpu,
    stack,
    visible,
)
from qlora_doctor.errors import UnknownFact
from qlora_doctor.facts import Facts, Gpu, Packages, Unknown
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, EnvVar
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests

_RUN = ("load", "training")


def _windows(facts: Facts) -> bool:
    """Whether the driver's version is that of a Windows driver (also under WSL, where Windows brings it)."""
    host = facts.state("host")
    return not isinstance(host, Unknown) and (host.system == "Windows" or host.wsl > 0)


@check("QD401", needs=["torch", "driver"], wants=["gpus", "host", "interpreter"], since="0.1")
def driver_older_than_the_cuda_of_torch(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The NVIDIA driver cannot run the CUDA version that torch was built with.

    A driver runs the CUDA it came with, every older one, and every newer minor version of the same major (CUDA 12.8
    code runs on a 525 driver). It does not run the next major: a CUDA 13 build of torch needs driver 580. torch then
    says "The NVIDIA driver on your system is too old", `torch.cuda.is_available()` is False, and a 4-bit load goes to
    the CPU or is refused. Since 2.11 the torch that pip brings on Linux is a CUDA 13 build.

    It does not apply to CPU, ROCm and XPU builds, where no driver was found, on Jetson boards, and where the driver
    itself reports a newer CUDA (the compatibility package of data-centre GPUs).

    Fix: another driver, or a build of torch for the CUDA that the driver runs. Neither is done by us.

    Source: NVIDIA CUDA compatibility guide and the release notes of CUDA 13.4.
    """
    torch, driver = facts.torch, facts.driver
    if torch is None or driver is None or torch.cuda is None or _jetson(facts):
        return
    minimum = builds.too_old(driver, torch.cuda, windows=_windows(facts))
    if not minimum:
        return
    windows = _windows(facts)
    near = install.nearest(facts, torch.version, windows=windows)
    better = near.text if near else "a newer driver; no build of torch runs on this one"
    yield Finding(
        "driver {driver} is too old for torch {torch}, a CUDA {cuda} build, which needs {minimum} or newer: torch will"
        " not see the GPU. Update the driver, or install {build}.",
        {"driver": driver.version, "torch": torch.version, "cuda": torch.cuda, "minimum": minimum, "build": better},
        severity=stack.severity(requests, _RUN),
        fixes=(
            Advice(f"update the NVIDIA driver to {minimum} or newer"),
            *install.advice(facts, near, windows=windows),
        ),
    )


def _jetson(facts: Facts) -> bool:
    gpus = facts.state("gpus")
    return not isinstance(gpus, Unknown) and any("orin" in g.name.lower() or "thor" in g.name.lower() for g in gpus)


@check(
    "QD402",
    needs=["torch", "gpus"],
    wants=["driver", "host", "packages", "interpreter", "environ"],
    since="0.1",
    requires=["QD401"],
)
def gpu_without_code_in_torch(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The torch build carries no code for this GPU.

    A build holds machine code for a list of compute capabilities. Code runs on GPUs of the same major capability and
    the same or a later minor one; so 8.6 code serves an RTX 40 (8.9), and nothing below 12.0 serves an RTX 50. Without
    such code the first kernel fails with "no kernel image is available for execution on the device". CUDA 13 builds
    dropped everything before Turing (V100, P100, GTX 10), CUDA 12.6 builds know nothing of Blackwell.

    It does not apply to builds of your own or from a vendor, whose list is not known; that is the outcome *unknown*.

    Fix: a torch build that has the GPU in its list, where there is one. Never done by us.

    Source: RELEASE.md of PyTorch, the table in torch/cuda/__init__.py of 2.13 and 2.14, and build scripts; a row that
    was not verified makes a warning, never an error.
    """
    torch = facts.torch
    if torch is None or torch.cuda is None:
        return
    gpus = builds.by_capability(facts)
    if not gpus:
        return
    packages = facts.state("packages")
    if isinstance(packages, Packages) and getattr(stack.by_name(packages).get("torch"), "installer", "") == "conda":
        raise UnknownFact("architectures of torch", "a build of conda has a list of its own")
    row = builds.arch_row(torch, builds.machine(facts))
    for sm, gpu in gpus.items():
        if builds.serves(row.codes, sm, torch.cuda):
            continue
        near = install.nearest(facts, torch.version, [sm], windows=_windows(facts))
        better = near.text if near else "another GPU; no build of torch that this driver runs has code for it"
        yield Finding(
            "{gpu} has compute capability {capability}, and torch {torch} (CUDA {cuda}) carries code for {codes} only: the"
            " first kernel fails with 'no kernel image is available'. Install {build}.",
            {
                "gpu": gpu.name,
                "capability": gpu.capability,
                "torch": torch.version,
                "cuda": torch.cuda,
                "codes": [c.rstrip("+") for c in row.codes],
                "build": better,
                "verified": row.verified,
            },
            severity=stack.severity(requests, _RUN) if row.verified else "warning",
            fixes=install.advice(facts, near, windows=_windows(facts)),
        )


@check("QD406", needs=["torch", "gpus", "packages"], wants=["driver", "host", "interpreter"], since="0.1")
def cpu_build_of_torch_beside_a_gpu(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """There is an NVIDIA GPU, and the installed torch is a CPU build that cannot use it.

    It comes from an index of CPU wheels, from conda without a CUDA variant, and on Windows from a plain
    `pip install torch`. Nothing fails by itself: transformers 5 quietly loads and trains on the CPU, tens of times
    slower; transformers up to 4.44 says that there is no GPU.

    A warning; an error where the run asks for a quantised load that is refused without CUDA.

    Fix: a CUDA build of the same torch that the driver runs. Never done by us: it is gigabytes.

    Source: torch/version.py of the installation.
    """
    torch = facts.torch
    gpus = builds.nvidia(facts)
    if torch is None or torch.kind != "cpu" or not gpus:
        return
    known = not isinstance(facts.state("driver"), Unknown) and facts.driver is not None
    near = install.nearest(facts, torch.version, windows=_windows(facts)) if known else None
    better = near.text if near else "a CUDA build of torch"
    refusal = no_gpu.refusal_on_cpu(facts)
    yield Finding(
        "torch {torch} is a CPU build and will not use {gpu}{refusal}. Install {build}.",
        {"torch": torch.version, "gpu": gpus[0].name, "refusal": f"; {refusal}" if refusal else "", "build": better},
        severity=stack.severity(requests, ("quantized",)) if refusal else "warning",
        fixes=install.advice(facts, near, windows=_windows(facts)) or (Advice(f"install {better}"),),
    )


@check("QD407", needs=["gpus", "environ"], since="0.1")
def every_gpu_hidden(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """CUDA_VISIBLE_DEVICES hides every GPU of this machine.

    An empty value, `-1`, or a number or id that no GPU has, leaves torch without a GPU (what stands behind the first
    wrong entry is ignored as well). Often it is left over from another machine, or a shell variable that was empty.

    It does not apply where no GPU was found anyway, nor to ids where those of the GPUs are not known.

    Fix: unset it, or name a GPU that exists.

    Source: CUDA programming guide, environment variables.
    """
    value = facts.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(builds.nvidia(facts))
    if value is None or not count:
        return
    first = value.split(",")[0].strip()
    if re.fullmatch(r"-?\d+", first):
        if 0 <= int(first) < count:
            return
    elif first and not _gone(first, builds.nvidia(facts)):
        return
    yield Finding(
        'CUDA_VISIBLE_DEVICES="{value}" hides every GPU ({count} found): torch will not see any. Unset it, or name one of'
        " 0 to {last}.",
        {"value": value, "count": count, "last": count - 1},
        fixes=(EnvVar("CUDA_VISIBLE_DEVICES", None),),
    )


def _gone(entry: str, gpus: tuple[Gpu, ...]) -> bool:
    """Whether an id (`GPU-8932...`, which may be cut short, or `MIG-...`) is of no GPU here; False where ids are unknown."""
    if entry.startswith("MIG-"):
        if any(g.slices is None and g.mig for g in gpus):
            return False
        ids = [s.uuid for g in gpus for s in g.slices or ()]
        return all(ids) and entry not in ids
    ids = [g.uuid for g in gpus]
    return entry.startswith("GPU-") and all(ids) and not any(uuid.startswith(entry) for uuid in ids)


CHECKS: tuple[Check, ...] = (
    driver_older_than_the_cuda_of_torch,
    gpu_without_code_in_torch,
    *library.CHECKS,
    cpu_build_of_torch_beside_a_gpu,
    every_gpu_hidden,
    *no_gpu.CHECKS,
    *gpus.CHECKS,
    *features.CHECKS,
    *natives.CHECKS,
    *accelerators.CHECKS,
    *amd.CHECKS,
    *cuda_wheels.CHECKS,
    *extensions.CHECKS,
    *visible.CHECKS,
)
