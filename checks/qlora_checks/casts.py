"""QD6: adapters in half precision, and what the optimizer and the loss scaler make of them."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.common import at_least, bnb_quantization, installed_version, nvidia
from qlora_checks.runs import (
    bits_of,
    by_trainer,
    by_trl,
    calls_named,
    decides_dtype,
    edit_span,
    is_true,
    literal,
    script_of,
)
from qlora_doctor.errors import UnknownArgument, UnknownFact
from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding, Severity
from qlora_doctor.fix import Advice, Edit, Fix, SourceEdit, TrainSetting
from qlora_doctor.registry import Check, check
from qlora_doctor.request import TrainRequest, dtype_name
from qlora_doctor.source import Call, Dotted, Script

_HALF = ("torch.float16", "torch.half")
# bitsandbytes and the fused kernel compute in float32 inside; the plain AdamW adds eps in the weights' own dtype.
_PLAIN_ADAMW = frozenset({"adamw_torch", "adamw_hf", "adamw_anyprecision"})


@check("QD611", needs=["packages"], since="0.1")
def adapters_in_half_precision(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """The adapters themselves are float16: `.half()` or `.to(torch.float16)` after `get_peft_model`,
    `autocast_adapter_dtype=False` over a float16 base, or transformers' own `model.add_adapter(...)` over one.

    peft keeps adapters in float32 for a reason. In float16:

    - with torch's AdamW everything is NaN from the second step on. `eps=1e-8` rounds to 0 in float16, and the first
      gradient of lora_A is exactly 0, so the update is 0/0. Learning rate, rank, clipping and warm-up cannot help: with
      lr 5e-9 it is the same. (Run: 18 of 18 adapter tensors not finite, InstructBLIP T5 and Llama, transformers 5.23 and
      4.44.) The stock Trainer shows it as loss 0.0 and goes on.
    - `fp16=True` on a GPU stops with `ValueError: Attempting to unscale FP16 gradients`.
    - with bitsandbytes' optimizers or the fused AdamW (the Trainer's default in new releases) it runs, but small
      updates are rounded away. Then this is a warning.

    A cast on a PeftModel raises nothing, although `.half()` on the 4-bit model under it does: the wrapper is a plain
    module (run on 5.23.0, peft 0.21.2). With `autocast_adapter_dtype=False` over a 4-bit base the adapters take the
    compute dtype from peft 0.19 on; before, they stayed float32 (run on 0.18.1 and 0.21.2). So does
    `add_adapter` of transformers (run on 4.57.6 and 5.23.0).

    A cast behind the trainer, for inference, is left alone.
    bfloat16 adapters are not judged: they train, if coarsely, and TRL casts to them on purpose.

    Fix: take the cast out. To save memory, lower the rank; adapters are a small part of it.

    Source: runs with tiny models on transformers 5.23.0 and 4.57.6; peft `tuners/tuners_utils.py`; transformers #23165.
    """
    script = script_of(facts)
    casts = [*_casts(script, request), *_kept(facts, script, request)]
    if not casts:
        return
    how, severity = _effect(facts, script, request)
    for call, what, fixes in casts:
        yield Finding(
            "{what} makes the adapters float16; {effect}. Do without it: get_peft_model keeps them in float32",
            {"what": what, "effect": how},
            severity=severity,
            site=call.site,
            fixes=fixes,
        )


def _casts(script: Script | None, request: TrainRequest) -> Iterator[tuple[Call, str, tuple[Fix, ...]]]:
    for call in calls_named(script, ".half", ".to"):
        after = 0 < request.trainer.order < call.order
        if not call.origin.endswith("get_peft_model") or after or call.guarded or "base_model" in call.receiver:
            continue
        if call.function.endswith(".to") and not _to_half(call):
            continue
        shown = "half()" if call.function.endswith(".half") else "to(torch.float16)"
        yield call, f"{call.receiver or 'model'}.{shown}", _without_cast(call, shown)


def _to_half(call: Call) -> bool:
    values = list(call.arguments.values())
    return any(isinstance(v, Dotted) and v.name in _HALF for v in values)


def _without_cast(call: Call, shown: str) -> tuple[Fix, ...]:
    site = call.site
    if site is None or site.start < 0 or not site.sha256 or not call.receiver or len(call.arguments) > 1:
        return (Advice(f"Take {shown} out"),)
    edit = Edit(site.start, site.end, call.receiver)
    return (
        SourceEdit(site.path, site.sha256, (edit,), what=f"take .{shown} out", cell=site.cell, applicability="unsafe"),
    )


def _kept(facts: Facts, script: Script | None, request: TrainRequest) -> Iterator[tuple[Call, str, tuple[Fix, ...]]]:
    for call in calls_named(script, "peft.get_peft_model"):
        if call.seen("autocast_adapter_dtype") is not False or _base_dtype(facts, request) != "float16":
            continue
        edit = edit_span(call.site, "autocast_adapter_dtype:value", "True", "let peft keep the adapters in float32")
        yield call, "autocast_adapter_dtype=False over a float16 base", tuple(edit) or (Advice("Leave it out"),)
    for call in calls_named(script, ".add_adapter"):
        if not call.origin.startswith("transformers.") or _base_dtype(facts, request) != "float16":
            continue
        yield call, f"{call.receiver or 'model'}.add_adapter over a float16 base", (Advice("Use peft.get_peft_model"),)


def _base_dtype(facts: Facts, request: TrainRequest) -> str | None:
    """The dtype that peft gives to adapters that it does not cast."""
    load = request.load
    if load is None:
        raise UnknownArgument("dtype", "the load of the trained model cannot be followed")
    quantization = bnb_quantization(load)
    if quantization is None or quantization.bits == 8:
        return load.dtype if quantization is None else None
    if not at_least(installed_version(facts, "peft"), "0.19"):
        return "float32"
    config = quantization.config
    return None if config is None else dtype_name(config.get("bnb_4bit_compute_dtype"))


def _effect(facts: Facts, script: Script | None, request: TrainRequest) -> tuple[str, Severity]:
    if not by_trainer(request):
        if calls_named(script, "torch.optim.AdamW", "torch.optim.Adam"):
            return (
                "with AdamW's eps of 1e-8, which float16 rounds to 0, every adapter is NaN after the first step",
                "error",
            )
        return "AdamW makes them NaN after the first step, and other optimizers round small updates away", "warning"
    if is_true(request.settings, "fp16") and nvidia(facts):
        return "with fp16=True the first step stops with 'Attempting to unscale FP16 gradients'", "error"
    optimizer = _optimizer(facts, request)
    if optimizer in _PLAIN_ADAMW:
        return f"with optim={optimizer!r} every adapter is NaN after the first step, shown as loss 0.0", "error"
    return "small updates are rounded away, and with optim='adamw_torch' or fp16=True training breaks", "warning"


def _optimizer(facts: Facts, request: TrainRequest) -> str | None:
    if request.settings is None:
        return None
    try:
        value = request.settings.get("optim")
        if value is not None:
            return literal(value)
        return None if at_least(installed_version(facts, "transformers"), "4.54") else "adamw_torch"
    except (UnknownArgument, UnknownFact):
        return None


@check("QD612", needs=["packages"], since="0.1")
def fp16_with_bfloat16_adapters(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """`fp16=True` for a TRL trainer whose quantised model gets bfloat16 adapters.

    From 0.26 on TRL casts the adapters of every 4-bit or 8-bit model to bfloat16, whatever the card and the compute
    dtype (run on 1.16: bfloat16 even with float32 compute). `fp16=True` brings a loss scaler that knows float16 only:
    `_amp_foreach_non_finite_check_and_unscale_cuda not implemented for 'BFloat16'` at the first step on a GPU.

    An error where an NVIDIA GPU is present, information where there is none: on CPU no scaler is used. Silent where the
    script chooses by the card (`fp16=not is_bfloat16_supported()`), and with unsloth, which patches TRL's trainers.

    Fix: `bf16=True` in place of `fp16=True`. On a card without bfloat16 (T4, V100, RTX 20): transformers' Trainer with
    float32 adapters, or TRL below 0.26.

    Source: trl `trainer/sft_trainer.py` 0.24.0 (only with bf16=True), 0.26.2, 0.29.0, 1.16.0; trl #4901.
    """
    if not by_trl(request) or "SFT" not in request.trainer.function or request.setting("fp16") is not True:
        return
    script = script_of(facts)
    if decides_dtype(request.when) or (script is not None and script.imports_module("unsloth")):
        return
    if bits_of(request) is None or (request.peft is False and not request.trainer.has("peft_config")):
        return
    version = installed_version(facts, "trl")
    if not at_least(version, "0.26"):
        return
    assert request.settings is not None
    yield Finding(
        "fp16=True, but TRL {trl} makes the adapters of a quantised model bfloat16: on a GPU the first step stops with "
        "'_amp_foreach_non_finite_check_and_unscale_cuda not implemented for BFloat16'. Pass bf16=True in its place; on "
        "a card without bfloat16 use transformers' Trainer",
        {"trl": str(version)},
        severity="error" if nvidia(facts) else "info",
        site=request.settings.site,
        fixes=(TrainSetting("bf16", True, replaces="fp16", applicability="unsafe", site=request.settings.site),),
    )


CHECKS: tuple[Check, ...] = (adapters_in_half_precision, fp16_with_bfloat16_adapters)
