"""QD430 and QD431: AMD, Intel and Apple."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks import stack
from qlora_checks.requirements import satisfies
from qlora_checks.tables import rows
from qlora_doctor.facts import BnbBuild, Facts, TorchBuild, Unknown
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, PipRequirement
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests

_VENDORS = {"amd": ("ROCm", "rocm"), "intel": ("XPU", "xpu")}


@check("QD430", needs=["gpus", "torch"], since="0.1")
def torch_of_another_vendor(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The only GPUs here are AMD's or Intel's, and torch was built for something else.

    A plain `pip install torch` on Linux brings the CUDA build, which sees none of them, and runs on the CPU without a
    word.

    It does not apply beside an NVIDIA GPU, nor to Apple, whose torch needs no build of its own.

    A warning; an error where the run quantises.

    Fix: the ROCm or XPU build of the same torch. Never done by us.

    Source: torch/version.py of the installation.
    """
    torch, gpus = facts.torch, facts.gpus
    if torch is None or not gpus or any(g.vendor not in _VENDORS for g in gpus):
        return
    name, kind = _VENDORS[gpus[0].vendor]
    if torch.kind == kind:
        return
    yield Finding(
        "{gpu} needs a {name} build of torch, and torch {torch} is a {kind} build: it runs on the CPU. Install the {name} build.",
        {"gpu": gpus[0].name, "name": name, "torch": torch.version, "kind": torch.kind.upper()},
        severity=stack.severity(requests, ("quantized",)),
        fixes=(Advice(f"install the {name} build of torch {torch.version.partition('+')[0]}"),),
    )


@check("QD431", needs=["torch", "packages", "host"], wants=["gpus", "bitsandbytes"], since="0.1")
def bitsandbytes_too_old_for_this_accelerator(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """bitsandbytes does not serve this accelerator (AMD, Intel, Apple) yet in the installed version.

    AMD: libraries in the Linux wheel from 0.49, with 4-bit in part; all of it from 0.50. Intel: from 0.48 in part, all of
    it from 0.50. Apple: slowly from 0.49. Before that the load fails, or runs on the CPU.

    It does not apply to NVIDIA GPUs and to the CPU, nor to builds of your own.

    Below the first version: an error where the run quantises, else a warning. Where it works in part: an info.

    Fix: the first version that serves it.

    Source: support tables in the README of each tag; file lists of the wheels.
    """
    version = stack.installed(facts, "bitsandbytes")
    backend = _backend(facts)
    if version is None or not backend or stack.by_name(facts.packages)["bitsandbytes"].origin:
        return
    build = facts.state("bitsandbytes")
    if isinstance(build, BnbBuild) and build.version == version and any(t.startswith(backend) for t in build.libraries):
        served = next((r for r in rows("cuda.toml", "bnb_backend") if r["backend"] == backend), {})
        if satisfies(version, f">={served.get('first', '0')}"):
            return
    for row in rows("cuda.toml", "bnb_backend"):
        if row["backend"] != backend or satisfies(version, f">={row['full']}") is not False:
            continue
        works = satisfies(version, f">={row['first']}") is not False
        wanted = stack.requirement(facts, "bitsandbytes", row["full"])
        yield Finding(
            "bitsandbytes {version} {state} on {name} ({note}). Install {requirement}.",
            {
                "version": version,
                "state": "works in part" if works else "does not work",
                "name": row["name"],
                "note": row["note"],
                "requirement": wanted,
            },
            severity="info" if works else stack.severity(requests, ("quantized",)) if row["verified"] else "warning",
            fixes=(PipRequirement(wanted),),
        )


def _backend(facts: Facts) -> str:
    torch, host, gpus = facts.state("torch"), facts.host, facts.state("gpus")
    if isinstance(torch, TorchBuild) and torch.kind in ("rocm", "xpu"):
        return torch.kind
    apple = not isinstance(gpus, Unknown) and any(g.vendor == "apple" for g in gpus)
    return "mps" if host.system == "Darwin" and apple else ""


CHECKS: tuple[Check, ...] = (torch_of_another_vendor, bitsandbytes_too_old_for_this_accelerator)
