"""QD432 and QD439: what the libraries of bitsandbytes for AMD and Intel were built for."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qlora_checks import stack
from qlora_checks.requirements import leading, satisfies
from qlora_checks.tables import rows
from qlora_doctor.facts import Facts, TorchBuild, Unknown
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, EnvVar
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests


def rocm_library(facts: Facts, torch: TorchBuild) -> str | None:
    """The tag of the library that bitsandbytes takes for a ROCm build of torch; "" where none serves, None where unknown.

    Up to 0.49 the version must match; from 0.50 on another minor version of the same major is taken, the newest below
    before the oldest above (`get_cuda_bnb_library_path` of 0.50.2).
    """
    build, version = facts.bitsandbytes, stack.installed(facts, "bitsandbytes")
    if build is None or version is None or build.version != version:
        return None
    wanted = leading(torch.hip or "")[:2]
    served = {(int(t[4]), int(t[5:])): t for t in build.libraries if re.fullmatch(r"rocm\d{2,}", t)}
    if not served or len(wanted) < 2:
        return None
    if wanted in served:
        return served[(wanted[0], wanted[1])]
    same = sorted(v for v in served if v[0] == wanted[0])
    if leading(version) < (0, 50) or not same:
        return ""
    below = [v for v in same if v < wanted]
    return served[below[-1] if below else same[0]]


@check("QD439", needs=["packages", "torch"], wants=["bitsandbytes", "environ"], since="0.1", requires=["QD431"])
def bitsandbytes_without_the_rocm_of_torch(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """bitsandbytes ships no library for the ROCm version of the installed torch.

    It loads a library named after torch's ROCm version, `libbitsandbytes_rocm71.so`. In 0.49 the version must match
    exactly; from 0.50 on another minor version of the same major is taken. Where none fits, the first quantised layer
    fails ("Configured ROCm binary not found"). From 0.50 on `BNB_ROCM_VERSION` overrides the choice, without any
    fallback.

    It does not apply to other builds of torch, nor to a bitsandbytes that has no ROCm library at all, which is QD431's.

    Fix: unset `BNB_ROCM_VERSION`; or a torch for a ROCm that it has, or a newer bitsandbytes.

    Source: `get_cuda_bnb_library_path` of bitsandbytes 0.50.2; the file lists of the wheels.
    """
    torch = facts.torch
    if torch is None or torch.kind != "rocm" or facts.bitsandbytes is None:
        return
    version, tags = stack.installed(facts, "bitsandbytes"), facts.bitsandbytes.libraries
    have = [f"{t[4]}.{t[5:]}" for t in tags if re.fullmatch(r"rocm\d{2,}", t)]
    state = facts.state("environ")
    override = None if isinstance(state, Unknown) else state.get("BNB_ROCM_VERSION")
    severity = stack.severity(requests, ("quantized",))
    evidence = {"version": version, "have": have, "torch": torch.version, "rocm": torch.hip}
    if override is not None and have and leading(version or "") >= (0, 50):
        if f"rocm{override}" not in tags:
            yield Finding(
                "BNB_ROCM_VERSION={override} makes bitsandbytes {version} look for a library that it does not ship (it has ROCm"
                " {have}). Unset it.",
                {**evidence, "override": override},
                severity=severity,
                fixes=(EnvVar("BNB_ROCM_VERSION", None),),
            )
        return
    if rocm_library(facts, torch) != "":
        return
    remedy = "Install a newer bitsandbytes, or the torch of one of these"
    yield Finding(
        "bitsandbytes {version} has no library for ROCm {rocm}, which torch {torch} was built with (it has {have}): the first"
        " quantised layer fails. {remedy}.",
        {**evidence, "remedy": remedy},
        severity=severity,
        fixes=(Advice(remedy),),
    )


@check(
    "QD432",
    needs=["packages", "torch", "gpus"],
    wants=["bitsandbytes", "environ", "host"],
    since="0.1",
    requires=["QD431", "QD439"],
)
def amd_gpu_without_code_in_bitsandbytes(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The ROCm library of bitsandbytes carries no code for this AMD GPU.

    Each library is built for a list of kinds: MI200 and MI300 (gfx90a, gfx942) and RDNA 3 and 4 in all of them, MI350
    (gfx950) from ROCm 7.0, and MI100 and the RX 6000 series (gfx908, gfx103x) from 7.14 only. Without code the first
    quantised layer fails with "invalid device function".

    It does not apply where HSA_OVERRIDE_GFX_VERSION makes the GPU pass for another, where its kind is not known, on
    Windows, nor to builds of your own and to versions that are not in the table.

    Fix: a torch for a ROCm whose library has it, where there is one; else bitsandbytes built from source.

    Source: build-rocm.sh of bitsandbytes 0.50.
    """
    torch, version = facts.torch, stack.installed(facts, "bitsandbytes")
    state, host = facts.state("environ"), facts.state("host")
    overridden = not isinstance(state, Unknown) and "HSA_OVERRIDE_GFX_VERSION" in state
    windows = not isinstance(host, Unknown) and host.system == "Windows"
    if torch is None or torch.kind != "rocm" or version is None or overridden or windows:
        return
    tag = rocm_library(facts, torch)
    if not tag or stack.by_name(facts.packages)["bitsandbytes"].origin:
        return
    table = [r for r in rows("cuda.toml", "bnb_rocm_arch") if satisfies(version, f">={r['from']},<={r['to']}")]
    row = next((r for r in table if tag in r["libraries"].split()), None)
    if row is None:
        return
    for kind in sorted({g.arch.partition(":")[0] for g in facts.gpus if g.vendor == "amd" and g.arch}):
        if kind in row["kinds"].split():
            continue
        gpu = next(g for g in facts.gpus if g.arch.partition(":")[0] == kind)
        others = [t for r in table if kind in r["kinds"].split() for t in r["libraries"].split()]
        named = " or ".join(f"{t[4]}.{t[5:]}" for t in others)
        remedy = f"Install a torch for ROCm {named}" if others else "Build bitsandbytes from source for it"
        yield Finding(
            "{gpu} is a {kind}, and the {tag} library of bitsandbytes {version} has no code for it: the first quantised layer"
            " fails. {remedy}.",
            {"gpu": gpu.name, "kind": kind, "tag": tag, "version": version, "remedy": remedy},
            severity=stack.severity(requests, ("quantized",)),
            fixes=(Advice(remedy),),
        )


CHECKS: tuple[Check, ...] = (amd_gpu_without_code_in_bitsandbytes, bitsandbytes_without_the_rocm_of_torch)
