"""QD405 and QD408: what a run does where there is no GPU."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qlora_checks import stack
from qlora_checks.requirements import leading, satisfies
from qlora_doctor.facts import Facts, TorchBuild, Unknown
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, PipRequirement
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests

CPU_STACK = "transformers>=5 with bitsandbytes>=0.50, which work on the CPU"


@check("QD405", needs=["gpus", "packages"], wants=["torch", "host"], since="0.1")
def no_gpu(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """No GPU was found; what still works depends on the versions.

    With transformers 4.53 or newer and bitsandbytes 0.46 or newer a 4-bit load and QLoRA training run on the CPU:
    slowly, but for real, which is enough to try a script on a tiny model. transformers up to 4.44
    refuses a quantised load without CUDA, 4.45 to 4.52 do so as well unless Intel's extension for PyTorch is there.
    The 8-bit optimizers of bitsandbytes run on the CPU from 0.50 on.

    An info, as it changes nothing about the environment; an error where the run asks for a quantised load or an
    optimizer that is refused. It does not apply to ROCm and XPU builds of torch, nor to macOS.

    Fix: a machine with a GPU; or newer packages, where the CPU is meant.

    Source: `validate_environment` and `validate_bnb_backend_availability` in eleven transformers wheels; runs on CPU
    with bitsandbytes 0.48.2 and 0.50.2.
    """
    torch = facts.state("torch")
    other = isinstance(torch, TorchBuild) and torch.kind in ("rocm", "xpu")
    host = facts.state("host")
    if facts.gpus or other or (not isinstance(host, Unknown) and host.system == "Darwin"):
        return
    refusal = refusal_on_cpu(facts)
    if refusal:
        yield Finding(
            "no GPU was found, and {refusal}. Use a machine with a GPU, or install {requirement}.",
            {"refusal": refusal, "requirement": CPU_STACK},
            severity=stack.severity(requests, ("quantized",), "info"),
            fixes=(Advice(f"install {CPU_STACK}"),),
        )
    else:
        yield Finding("no GPU was found. {works}.", {"works": works_on_cpu(facts)}, severity="info")
    version = stack.installed(facts, "bitsandbytes")
    if version is None or leading(version) >= (0, 50):
        return
    for train in requests.trains:
        name = train.settings.seen("optim") if train.settings is not None else None
        if isinstance(name, str) and re.search(r"8bit|paged", name):
            yield Finding(
                "optim={optimizer} of bitsandbytes {version} needs a GPU, and none was found. Use adamw_torch, or install"
                " bitsandbytes>=0.50.",
                {"optimizer": name, "version": version},
                severity="error",
                site=train.settings.site if train.settings is not None else None,
                fixes=(PipRequirement(stack.requirement(facts, "bitsandbytes", "0.50.0")),),
            )


@check("QD408", needs=["gpus", "packages", "host"], since="0.1")
def cpu_that_repacks_4_bit_weights(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """Training in 4 bit on a CPU with AVX512-BF16: one look at the model in eval mode, and what follows is wrong.

    On such a CPU bitsandbytes 0.50 repacks the 4-bit weights at the first forward in eval mode that needs no gradient:
    a sanity `generate`, an evaluation. Training after it fails with "a view of a leaf Variable that requires grad is being
    used in an in-place operation"; `merge_and_unload` after it gives a wrong model without any error (0.5 off where the
    logits span 0.6).

    It does not apply to GPUs, to other CPUs, to bitsandbytes up to 0.48, nor where the model is not evaluated in between.
    So it is an info.

    Fix: `model.state_dict()` before training or merging packs the weights back; or set
    `support_avx512bf16_for_cpu = False` on every Linear4bit after the load. Both were tried.

    Source: runs with bitsandbytes 0.50.2 and 0.48.2; `Linear4bit.forward` in bitsandbytes/nn/modules.py.
    """
    version = stack.installed(facts, "bitsandbytes")
    trains = stack.paths(requests).issuperset(("4-bit", "training"))
    if facts.gpus or version is None or not trains or "avx512_bf16" not in facts.host.cpu_flags:
        return
    if leading(version) < (0, 50):
        return
    yield Finding(
        "this CPU has AVX512-BF16, and bitsandbytes {version} repacks 4-bit weights at the first forward in eval mode:"
        " training after an evaluation fails, and merging after one gives a wrong model. Call model.state_dict() before"
        " training and before merging.",
        {"version": version},
        severity="info",
        fixes=(Advice("call model.state_dict() before training and before merging"),),
    )


def refusal_on_cpu(facts: Facts) -> str:
    """Why the installed transformers refuses a quantised load where torch sees no GPU; "" where it does not."""
    transformers, bnb = stack.installed(facts, "transformers"), stack.installed(facts, "bitsandbytes")
    if transformers is None:
        return ""
    if satisfies(transformers, "<4.45"):
        return f"transformers {transformers} refuses a quantised load without one (it does so up to 4.44)"
    if bnb is None:
        return ""
    if satisfies(transformers, "<5") and satisfies(bnb, "<0.46"):
        return f"transformers {transformers} refuses a quantised load without one with bitsandbytes {bnb} (below 0.46)"
    intel = stack.installed(facts, "intel-extension-for-pytorch") is not None
    if satisfies(transformers, "<4.53") and not intel:
        return (
            f"transformers {transformers} refuses a quantised load without one (4.45 to 4.52 ask for Intel's extension)"
        )
    return ""


def works_on_cpu(facts: Facts) -> str:
    """What can be done on the CPU with these versions, in words."""
    return ", ".join(_works(facts))


def _works(facts: Facts) -> Iterator[str]:
    bnb = stack.installed(facts, "bitsandbytes")
    if bnb is None or stack.installed(facts, "transformers") is None:
        yield "Checks, data preparation and unquantised models work on the CPU"
        return
    if satisfies(bnb, "<0.46.1"):
        yield "Unquantised models work on the CPU; a 4-bit load wants bitsandbytes 0.46.1 or newer"
        return
    yield f"With bitsandbytes {bnb} a 4-bit load and QLoRA training work on the CPU, slowly"
    if satisfies(bnb, "<0.47"):
        yield "in part (all of it from 0.47 on)"
    if satisfies(bnb, "<0.50"):
        yield "without its 8-bit optimizers (from 0.50 on)"


CHECKS: tuple[Check, ...] = (no_gpu, cpu_that_repacks_4_bit_weights)
