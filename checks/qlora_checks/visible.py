"""QD437, QD438 and QD441: which GPUs the environment lets a process see."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qlora_checks import builds
from qlora_doctor.facts import Facts, TorchBuild
from qlora_doctor.finding import Finding
from qlora_doctor.fix import EnvVar
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests


@check("QD437", needs=["gpus", "environ"], since="0.1", requires=["QD407"])
def visible_gpus_that_do_not_exist(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """CUDA_VISIBLE_DEVICES names GPUs that this machine does not have.

    CUDA reads the list from the left and stops at the first entry that no GPU has: `0,1,7,2` on a machine with four
    shows two of them. With `torchrun --nproc-per-node 4` the third process then fails with "invalid device ordinal".

    It does not apply to ids (`GPU-...`, `MIG-...`); those that hide every GPU are QD407's.

    Fix: name GPUs that exist.

    Source: CUDA programming guide, environment variables.
    """
    value = facts.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(builds.nvidia(facts))
    if not value or not count:
        return
    entries = [entry.strip() for entry in value.split(",")]
    if any(not re.fullmatch(r"-?\d+", entry) for entry in entries):
        return
    wrong = next((n for n, entry in enumerate(entries) if not 0 <= int(entry) < count), None)
    # A -1 at the end is a way to say that the list ends.
    if not wrong or (entries[wrong] == "-1" and wrong == len(entries) - 1):
        return
    left = ",".join(entries[:wrong])
    yield Finding(
        'CUDA_VISIBLE_DEVICES="{value}" names GPU {wrong}, and there are {count} (0 to {last}): torch sees only {left}. Name GPUs'
        " that exist.",
        {"value": value, "wrong": entries[wrong], "count": count, "last": count - 1, "left": left},
        fixes=(EnvVar("CUDA_VISIBLE_DEVICES", left),),
    )


@check("QD441", needs=["gpus", "environ"], since="0.1", requires=["QD407"])
def gpu_numbers_in_another_order(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """CUDA_VISIBLE_DEVICES names one of several different GPUs by number, and CUDA counts otherwise than nvidia-smi.

    By itself CUDA calls the fastest GPU number 0; nvidia-smi goes by the place on the bus. So on a machine with a T4
    and an A100 `CUDA_VISIBLE_DEVICES=1` may be the T4 although nvidia-smi shows the A100 as 1.

    An info. It does not apply to GPUs of one kind, to ids, where every GPU is named, where both orders are the same
    here, and where CUDA_DEVICE_ORDER is set.

    Fix: `CUDA_DEVICE_ORDER=PCI_BUS_ID`.

    Source: CUDA programming guide, environment variables (CUDA_DEVICE_ORDER, default FASTEST_FIRST).
    """
    value, gpus = facts.environ.get("CUDA_VISIBLE_DEVICES"), builds.nvidia(facts)
    if not value or "CUDA_DEVICE_ORDER" in facts.environ or len({g.name for g in gpus}) < 2:
        return
    numbers = [entry.strip() for entry in value.split(",")]
    if not all(re.fullmatch(r"\d+", n) for n in numbers) or len(set(numbers)) >= len(gpus):
        return
    ordered = builds.in_cudas_order(facts)
    moved = [
        (gpus[n].name, ordered[n].name) for n in map(int, numbers) if n < len(gpus) and gpus[n].name != ordered[n].name
    ]
    if not moved:
        return
    yield Finding(
        'CUDA_VISIBLE_DEVICES="{value}" counts the fastest GPU first, and nvidia-smi goes by the bus: it is probably {cudas} that is'
        " used, and not {smis}. Set CUDA_DEVICE_ORDER=PCI_BUS_ID beside it to count as nvidia-smi does.",
        {"value": value, "cudas": moved[0][1], "smis": moved[0][0]},
        severity="info",
        fixes=(EnvVar("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),),
    )


@check("QD438", needs=["gpus", "environ", "torch"], since="0.1")
def every_amd_gpu_hidden(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """An environment variable hides every AMD GPU from a ROCm build of torch.

    ROCR_VISIBLE_DEVICES hides them from the driver's library, HIP_VISIBLE_DEVICES and CUDA_VISIBLE_DEVICES from HIP,
    which reads both. An empty value or `-1`, or a first number that no GPU has, leaves torch without a GPU.

    It does not apply to other builds of torch, nor to ids.

    Fix: unset it.

    Source: ROCm documentation, GPU isolation techniques.
    """
    torch: TorchBuild | None = facts.torch
    count = sum(g.vendor == "amd" for g in facts.gpus)
    if torch is None or torch.kind != "rocm" or not count:
        return
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        value = facts.environ.get(name)
        if value is None:
            continue
        first = value.split(",")[0].strip()
        if first and (not re.fullmatch(r"-?\d+", first) or 0 <= int(first) < count):
            continue
        yield Finding(
            '{name}="{value}" hides every AMD GPU ({count} found): torch will not see any. Unset it.',
            {"name": name, "value": value, "count": count},
            fixes=(EnvVar(name, None),),
        )
        return


CHECKS: tuple[Check, ...] = (visible_gpus_that_do_not_exist, every_amd_gpu_hidden, gpu_numbers_in_another_order)
