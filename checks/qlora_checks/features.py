"""QD416 to QD419: what a run asks of a GPU or a system that does not have it."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks import builds, stack
from qlora_doctor.facts import Facts, Gpu
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, LoadKwarg, PipRequirement, TrainSetting
from qlora_doctor.registry import Check, check
from qlora_doctor.request import LoadRequest, Requests, TrainRequest


def _older(facts: Facts, sm: tuple[int, int]) -> Gpu | None:
    """The first GPU that the run sees below a compute capability, or None."""
    return next((g for g in builds.visible(facts) if g.sm is not None and g.sm < sm), None)


@check("QD416", needs=["gpus"], wants=["environ"], since="0.1")
def flash_attention_on_an_old_gpu(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """`attn_implementation="flash_attention_2"` on a GPU before Ampere.

    FlashAttention 2 has kernels for compute capability 8.0 and newer. On a T4, V100 or RTX 20 the first forward fails with
    "FlashAttention only supports Ampere GPUs or newer".

    It does not apply to "sdpa", which chooses a kernel that the GPU has.

    Fix: `attn_implementation="sdpa"`.

    Source: README of flash-attention; torch sdp_utils.cpp.
    """
    if request.call.seen("attn_implementation") != "flash_attention_2":
        return
    old = _older(facts, (8, 0))
    if old is None:
        return
    yield Finding(
        "FlashAttention 2 needs compute capability 8.0, and {gpu} has {capability}: the first forward fails. Pass"
        ' attn_implementation="sdpa".',
        {"gpu": old.name, "capability": old.capability},
        severity="error",
        site=request.call.site,
        fixes=(LoadKwarg("attn_implementation", "sdpa"),),
    )


@check("QD417", needs=["gpus"], wants=["environ"], since="0.1")
def eight_bit_on_an_old_gpu(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """`load_in_8bit=True` on a GPU before Turing, or a 4-bit load on one before Pascal.

    LLM.int8() wants the int8 tensor cores of compute capability 7.5; a V100 or P100 has none, and falls back to slow
    code or fails with "cublasLt ran into an error". 4-bit needs 6.0.

    It does not apply where the capability is not known.

    Fix: 4-bit (NF4) on these cards, in float16.

    Source: installation page of bitsandbytes 0.50.1.
    """
    quantization = request.quantization
    if quantization is None or quantization.method != "bitsandbytes" or quantization.bits not in (4, 8):
        return
    floor = (7, 5) if quantization.bits == 8 else (6, 0)
    old = _older(facts, floor)
    if old is None:
        return
    remedy = "Load in 4 bit (NF4) instead" if quantization.bits == 8 else "Use another GPU"
    yield Finding(
        "{bits}-bit of bitsandbytes needs compute capability {floor}, and {gpu} has {capability}. {remedy}.",
        {
            "bits": quantization.bits,
            "floor": f"{floor[0]}.{floor[1]}",
            "gpu": old.name,
            "capability": old.capability,
            "remedy": remedy,
        },
        severity="error" if quantization.bits == 4 else "warning",
        site=request.call.site,
        fixes=(Advice(remedy),),
    )


@check("QD418", needs=["gpus"], wants=["environ"], since="0.1")
def tf32_on_an_old_gpu(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """`tf32=True` in the training arguments on a GPU before Ampere.

    The training arguments refuse it: "--tf32 requires Ampere or a newer GPU arch".

    Fix: take it out.

    Source: TrainingArguments of transformers; torch/cuda/__init__.py.
    """
    settings = request.settings
    if settings is None or settings.seen("tf32") is not True:
        return
    old = _older(facts, (8, 0))
    if old is None:
        return
    yield Finding(
        "tf32=True needs compute capability 8.0, and {gpu} has {capability}: TrainingArguments refuses it. Take it out.",
        {"gpu": old.name, "capability": old.capability},
        severity="error",
        site=settings.site,
        fixes=(TrainSetting("tf32", drop=True),),
    )


@check("QD419", needs=["packages", "host"], since="0.1")
def compile_on_windows_without_triton(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """`torch_compile=True` (or a script that imports triton) on Windows, where torch brings no triton.

    PyTorch's wheels pull triton on Linux only; on Windows `torch.compile` fails with "Cannot find a working triton
    installation", and `import triton` with ModuleNotFoundError.

    Fix: `triton-windows`, published by others; or no compiling.

    Source: Requires-Dist of torch (`platform_system == "Linux"`).
    """
    if facts.host.system != "Windows":
        return
    index = stack.by_name(facts.packages)
    if "triton" in index or "triton-windows" in index:
        return
    compiled = [t for t in requests.trains if t.settings is not None and t.settings.seen("torch_compile") is True]
    imported = any(name.partition(".")[0] == "triton" for name in requests.imports)
    if not compiled and not imported:
        return
    yield Finding(
        "{what} needs triton, which torch does not bring on Windows. Install triton-windows (published by others), or leave"
        " compiling out.",
        {"what": "torch_compile=True" if compiled else "import triton"},
        severity="error",
        site=compiled[0].settings.site if compiled and compiled[0].settings is not None else None,
        fixes=(TrainSetting("torch_compile", drop=True, applicability="unsafe"), PipRequirement("triton-windows"))
        if compiled
        else (PipRequirement("triton-windows"),),
    )


CHECKS: tuple[Check, ...] = (
    flash_attention_on_an_old_gpu,
    eight_bit_on_an_old_gpu,
    tf32_on_an_old_gpu,
    compile_on_windows_without_triton,
)
