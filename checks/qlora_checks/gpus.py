"""QD410 to QD415: the state that the GPUs are in, before anything runs on them."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks import builds, stack
from qlora_doctor.facts import Facts, Gpu
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests

GIB = 2**30
_RUN = ("load", "training")
# A desktop with a browser holds about one GiB.
_TAKEN = 2 * GIB
_TAKEN_SHARE = 0.15
_LISTS = {"nvidia": "nvidia-smi", "amd": "amd-smi process"}


def _label(gpu: Gpu) -> str:
    return f"GPU {gpu.index} ({gpu.name})"


@check("QD410", needs=["gpus"], wants=["environ"], since="0.1")
def gpu_memory_already_taken(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """Something else holds a good part of a GPU's memory.

    A notebook that was not shut down, a training that was killed and left a child behind, another user. The run then
    fails with out of memory although the card is large enough.

    It does not apply below 2 GiB or 15 % (a desktop takes that), to MIG slices, nor to GPUs that CUDA_VISIBLE_DEVICES hides.

    Fix: end what is not needed; the message names the processes as far as the driver does.

    Source: NVML or nvidia-smi, and for AMD the kernel's own figures, at the moment of the check.
    """
    for gpu in (*builds.visible(facts), *(g for g in facts.gpus if g.vendor == "amd")):
        if gpu.memory_total is None or gpu.memory_free is None or gpu.mig:
            continue
        taken = gpu.memory_total - gpu.memory_free
        if taken < max(_TAKEN, _TAKEN_SHARE * gpu.memory_total):
            continue
        holders = [
            f"{p.name or 'a process'} (pid {p.pid}{f', {p.memory / GIB:.1f} GiB' if p.memory else ''})"
            for p in sorted(gpu.processes, key=lambda p: -(p.memory or 0))[:5]
        ]
        yield Finding(
            "{gpu}: {taken} of {total} GiB are already taken, by {holders}. End what is not needed, or use another GPU.",
            {
                "gpu": _label(gpu),
                "taken": f"{taken / GIB:.1f}",
                "total": f"{gpu.memory_total / GIB:.1f}",
                "holders": holders
                or ["processes that the driver does not name here (another user, or outside this container)"],
                "pids": [p.pid for p in gpu.processes],
            },
            fixes=(Advice(f"end the processes that are not needed (`{_LISTS[gpu.vendor]}` lists them)"),),
        )


@check("QD411", needs=["gpus"], wants=["environ"], since="0.1")
def gpu_in_a_restricted_mode(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The compute mode of a GPU lets no process, or only one, use it.

    In `Prohibited` mode every run fails. In `Exclusive_Process` mode the second process fails with "all CUDA-capable
    devices are busy or unavailable": a notebook beside a training, or more ranks than GPUs.

    An error for a run where nothing can start; an info where the exclusive GPU is free.

    Fix: `nvidia-smi -c DEFAULT`, by an administrator. Never done by us.

    Source: NVML, compute mode.
    """
    for gpu in builds.visible(facts):
        command = f"nvidia-smi -i {gpu.index} -c DEFAULT"
        if gpu.compute_mode == "prohibited":
            yield Finding(
                "{gpu} is in Prohibited mode: no process can compute on it. Ask an administrator for `{command}`.",
                {"gpu": _label(gpu), "command": command},
                severity=stack.severity(requests, _RUN),
                fixes=(Advice("set the compute mode to Default (an administrator can)", command),),
            )
        elif gpu.compute_mode.startswith("exclusive"):
            holders = [f"{p.name or 'a process'} (pid {p.pid})" for p in gpu.processes]
            state = f"and {', '.join(holders)} holds it already" if holders else "and it is free now"
            yield Finding(
                "{gpu} is in Exclusive mode: one process at a time can use it, {state}. A second one fails with 'devices are"
                " busy or unavailable'. End the first one, or ask an administrator for `{command}`.",
                {"gpu": _label(gpu), "state": state, "command": command},
                severity=stack.severity(requests, _RUN) if holders else "info",
                fixes=(Advice("set the compute mode to Default (an administrator can)", command),),
            )


@check("QD412", needs=["gpus"], wants=["environ"], since="0.1")
def gpu_split_into_slices(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """A GPU is in MIG mode: torch sees slices of it, one a process, or nothing where no slice was made.

    The whole card's memory is not there for a run; one process can use one slice, also where several are visible, and
    slices cannot be joined by DDP or `device_map`. Without a slice torch sees no GPU at all.

    An info with the sizes; a warning (an error for a run) where there is no slice.

    Fix: make slices (an administrator), or name one in CUDA_VISIBLE_DEVICES (`MIG-...`).

    Source: NVML; NVIDIA MIG user guide.
    """
    for gpu in builds.visible(facts):
        if not gpu.mig or gpu.slices is None:
            continue
        if not gpu.slices:
            yield Finding(
                "{gpu} is in MIG mode and has no slice: torch sees no GPU. Ask an administrator to make slices, or to"
                " switch MIG off.",
                {"gpu": _label(gpu)},
                severity=stack.severity(requests, _RUN),
                fixes=(Advice("make MIG slices, or switch MIG off", f"nvidia-smi -i {gpu.index} -mig 0"),),
            )
            continue
        sizes = [f"{s.memory_total / GIB:.0f} GiB" for s in gpu.slices if s.memory_total]
        yield Finding(
            "{gpu} is split into {count} slice(s) ({sizes}): a run gets the memory of one slice, not of the card.",
            {"gpu": _label(gpu), "count": len(gpu.slices), "sizes": sizes or ["sizes unknown"]},
            severity="info",
        )


@check("QD413", needs=["gpus"], wants=["environ"], since="0.1")
def gpus_of_different_kinds(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The GPUs of this machine are not of one kind.

    With DDP the slowest GPU sets the pace and the smallest the batch; `device_map="auto"` puts layers on every card
    that is visible, also on the small one that drives the screen. Where one of them has no bfloat16 units, bfloat16
    is slow or fails there.

    An info; a warning where a run would use bfloat16 on a pair of which one lacks it. It does not apply to one GPU.

    Fix: `CUDA_VISIBLE_DEVICES` with the cards that are alike, and `CUDA_DEVICE_ORDER=PCI_BUS_ID` beside it: by itself CUDA
    numbers the fastest card 0, and nvidia-smi goes by the bus.

    Source: NVML; CUDA programming guide, environment variables.
    """
    gpus = builds.visible(facts)
    kinds = {(g.capability, None if g.memory_total is None else round(g.memory_total / GIB)) for g in gpus}
    if len(gpus) < 2 or len(kinds) < 2:
        return
    sms = [g.sm for g in gpus if g.sm is not None]
    mixed = bool(sms) and min(sms) < (8, 0) <= max(sms)
    alike = max(
        (tuple(g.index for g in gpus if g.name == name) for name in {g.name for g in gpus}),
        key=lambda t: (len(t), [-i for i in t]),
    )
    yield Finding(
        "the GPUs are of different kinds ({names}){clause}. To use those that are alike:"
        " CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={alike}.",
        {
            "names": [_label(g) for g in gpus],
            "clause": ", and not all of them have bfloat16 units" if mixed else "",
            "alike": ",".join(map(str, alike)),
        },
        severity="warning" if mixed and stack.paths(requests).intersection(_RUN) else "info",
        fixes=(Advice(f"set CUDA_DEVICE_ORDER=PCI_BUS_ID and CUDA_VISIBLE_DEVICES={','.join(map(str, alike))}"),),
    )


@check("QD414", needs=["gpus"], wants=["environ"], since="0.1")
def gpu_with_memory_errors(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """A GPU has counted memory errors that ECC could not correct.

    Each of them ended a process, or spoiled what it computed. More of them mean a card that wants a reset or a repair.

    It does not apply to cards without ECC, nor where it is switched off.

    Fix: restart, and look at `nvidia-smi -q -d ECC,ROW_REMAPPER`.

    Source: NVML, uncorrected errors since the driver was loaded.
    """
    for gpu in builds.visible(facts):
        if gpu.ecc_errors:
            yield Finding(
                "{gpu} has had {count} memory error(s) that could not be corrected since the driver was loaded: results may"
                " be wrong and runs may end. Restart the machine, and have the card looked at when it happens again.",
                {"gpu": _label(gpu), "count": gpu.ecc_errors},
                fixes=(Advice("look at the counters", "nvidia-smi -q -d ECC,ROW_REMAPPER"),),
            )


@check("QD415", needs=["gpus", "host"], since="0.1")
def memory_that_spills_on_windows(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """On Windows the driver moves GPU memory to the computer's own when the card is full.

    A run that needs more than the card has does not fail with out of memory; it crawls, ten to a hundred times slower.
    A step time that jumps after some minutes is the sign.

    An info, and only for a run that loads or trains on an NVIDIA GPU under Windows.

    Fix: in the NVIDIA control panel, "CUDA - Sysmem Fallback Policy": prefer no fallback; and a plan that fits.

    Source: NVIDIA support article on the system memory fallback (drivers from 536.40).
    """
    gpus = builds.nvidia(facts)
    if facts.host.system != "Windows" or not gpus or not stack.paths(requests).intersection(_RUN):
        return
    yield Finding(
        "on Windows a full {gpu} spills into the computer's memory and crawls where Linux would say out of memory. Set"
        " 'CUDA - Sysmem Fallback Policy' to 'Prefer No Sysmem Fallback', to see it.",
        {"gpu": gpus[0].name},
        severity="info",
        fixes=(Advice("NVIDIA control panel: CUDA - Sysmem Fallback Policy: Prefer No Sysmem Fallback"),),
    )


CHECKS: tuple[Check, ...] = (
    gpu_memory_already_taken,
    gpu_in_a_restricted_mode,
    gpu_split_into_slices,
    gpus_of_different_kinds,
    gpu_with_memory_errors,
    memory_that_spills_on_windows,
)
