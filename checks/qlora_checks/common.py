"""What several checks ask of the facts and of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlora_checks.builds import visible
from qlora_doctor.facts import Facts, Gpu, Unknown, known
from qlora_doctor.request import LoadRequest, Quantization
from qlora_doctor.source import Dotted, Value

if TYPE_CHECKING:
    from packaging.version import Version

AMPERE = (8, 0)


def installed_version(facts: Facts, name: str) -> Version:
    """The installed version of a package.

    Raises:
        UnknownFact: it is not installed, or cannot be read. What a call means depends on it, so nothing is guessed.
    """
    return known(facts.version(name), f"version of {name}", "it is not installed")


def at_least(version: Version, floor: str) -> bool:
    """Whether `version` is `floor` or newer, a development version of `floor` included (`5.0.0.dev0` is 5.0)."""
    from packaging.version import Version

    return version.release >= Version(floor).release


def nvidia(facts: Facts) -> tuple[Gpu, ...] | None:
    """The NVIDIA GPUs, or None where the GPUs could not be read. Never raises."""
    state = facts.state("gpus")
    return None if isinstance(state, Unknown) else tuple(g for g in state if g.vendor == "nvidia")


def without_bfloat16(facts: Facts) -> tuple[str, ...]:
    """The NVIDIA GPUs that a run sees and that have no bfloat16 units (capability below 8.0), as `Tesla T4 (7.5)`."""
    seen = visible(facts) if nvidia(facts) else ()
    return tuple(f"{g.name} ({g.capability})" for g in seen if g.sm is not None and g.sm < AMPERE)


def suited_dtype(facts: Facts) -> tuple[str, str]:
    """The 16-bit dtype for this machine, and why: bfloat16 unless a GPU lacks it."""
    old = without_bfloat16(facts)
    if old:
        return "float16", f"{', '.join(old)} has no bfloat16 units"
    if any(g.sm is not None for g in nvidia(facts) or ()):
        return "bfloat16", "every GPU here has bfloat16 units"
    return "bfloat16", "no GPU is known here, so one of capability 8.0 or newer is assumed"


def torch_dtype(name: str) -> Value:
    """A dtype as the script would write it: `torch.bfloat16`."""
    return Dotted(f"torch.{name}")


def bnb_quantization(request: LoadRequest) -> Quantization | None:
    """The 4-bit or 8-bit bitsandbytes quantisation that a load asks for, or None.

    Raises:
        UnknownArgument: it cannot be known.
    """
    quantization = request.quantization
    if quantization is None or quantization.method != "bitsandbytes" or not quantization.bits:
        return None
    return quantization


def of_transformers(request: LoadRequest) -> bool:
    """Whether the class that loads is one of transformers' own."""
    return request.call.function.startswith("transformers.")


def is_auto(request: LoadRequest) -> bool:
    """Whether an Auto class loads."""
    return request.class_name.startswith("Auto")
