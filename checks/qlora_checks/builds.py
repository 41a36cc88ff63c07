"""What a build of torch or bitsandbytes runs on, and which of that the facts show."""

from __future__ import annotations

from qlora_doctor.facts import Facts, Gpu, Unknown
from qlora_doctor.tables.builds import (
    ArchRow,
    arch_row,
    bitsandbytes_codes,
    bitsandbytes_for,
    codes_of,
    dotted,
    driver_minimum,
    has_library,
    numbers,
    serves,
    too_old,
    wheel_libraries,
)

__all__ = [
    "ArchRow",
    "arch_row",
    "bitsandbytes_codes",
    "bitsandbytes_for",
    "by_capability",
    "codes_of",
    "dotted",
    "driver_minimum",
    "has_library",
    "in_cudas_order",
    "machine",
    "numbers",
    "nvidia",
    "serves",
    "too_old",
    "visible",
    "wheel_libraries",
]


def nvidia(facts: Facts) -> tuple[Gpu, ...]:
    return tuple(g for g in facts.gpus if g.vendor == "nvidia")


def visible(facts: Facts) -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves to a run; all of them where that is not set or cannot be told.

    An entry is a number or the beginning of an id; CUDA stops at the first that no GPU has.
    """
    gpus = nvidia(facts)
    environ = facts.state("environ")
    value = None if isinstance(environ, Unknown) else environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return gpus
    numbered = {str(n): g for n, g in zip((g.index for g in gpus), in_cudas_order(facts), strict=True)}
    found: list[Gpu] = []
    for entry in (e.strip() for e in value.split(",")):
        if entry.startswith(("GPU-", "MIG-")) and not all(g.uuid for g in gpus):
            return gpus
        named = (g for g in gpus if entry.startswith("GPU-") and g.uuid.startswith(entry))
        sliced = (g for g in gpus if entry.startswith("MIG-") and any(s.uuid == entry for s in g.slices or ()))
        gpu = numbered.get(entry) or next(named, None) or next(sliced, None)
        if gpu is None:
            break
        if gpu not in found:
            found.append(gpu)
    return tuple(found)


def in_cudas_order(facts: Facts) -> tuple[Gpu, ...]:
    """The NVIDIA GPUs as CUDA numbers them: the fastest first, unless CUDA_DEVICE_ORDER asks for the order of the bus.

    Which is the fastest is CUDA's to say; capability and memory come near it.
    """
    gpus = nvidia(facts)
    environ = facts.state("environ")
    if not isinstance(environ, Unknown) and environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return gpus
    return tuple(sorted(gpus, key=lambda g: (g.sm or (0, 0), g.memory_total or 0), reverse=True))


def by_capability(facts: Facts) -> dict[tuple[int, int], Gpu]:
    """One GPU of each compute capability that a run sees; those whose capability is not known are left out."""
    return {g.sm: g for g in reversed(visible(facts)) if g.sm is not None}


def machine(facts: Facts) -> str:
    host = facts.state("host")
    return "x86_64" if isinstance(host, Unknown) else host.machine.lower()
