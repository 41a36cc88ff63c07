"""QD6: a quantised model and its adapters."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.common import at_least, bnb_quantization, installed_version
from qlora_checks.runs import bits_of, by_trainer, by_trl, calls_named, script_of
from qlora_doctor.errors import UnknownArgument
from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, TrainSetting
from qlora_doctor.registry import Check, check
from qlora_doctor.request import LoadRequest, Requests, TrainRequest
from qlora_doctor.source import Call


@check("QD602", needs=["packages"], since="0.1")
def quantized_training_without_adapters(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """A Trainer is given a 4-bit or 8-bit model to which no adapter was attached.

    Quantised weights are integers and cannot be trained. Since 4.34 transformers refuses when the Trainer is made:
    `ValueError: You cannot perform fine-tuning on purely quantized models` (run on 5.23.0; read in 4.34.1).

    Silent where a `peft_config` is passed, where the script attaches adapters in any way that can be seen, and where
    it cannot be known. A training loop of the script's own is not judged.

    Fix: `model = get_peft_model(model, LoraConfig(...))` before the Trainer, or for TRL `peft_config=LoraConfig(...)`.

    Source: transformers `trainer_utils.py`, validate_quantization_for_training.
    """
    if request.peft is not False or not by_trainer(request):
        return
    bits = bits_of(request)
    if bits is None or request.trainer.has("peft_config"):
        return
    if calls_named(
        script_of(facts), "get_peft_model", ".add_adapter", ".load_adapter", "PeftModel.from_pretrained",
        "inject_adapter_in_model", "PeftModelForCausalLM",
    ):  # fmt: skip
        return
    version = installed_version(facts, "transformers")
    if not at_least(version, "4.34"):
        return
    yield Finding(
        "The {bits}-bit model goes to {trainer} without adapters; transformers {transformers} refuses that: 'You "
        "cannot perform fine-tuning on purely quantized models'. Attach adapters first: "
        "model = get_peft_model(model, LoraConfig(...))",
        {"bits": bits, "trainer": request.trainer.function.rpartition(".")[2], "transformers": str(version)},
        severity="error",
        site=request.site,
        fixes=(Advice("Attach adapters before the trainer: model = get_peft_model(model, LoraConfig(...))"),),
    )


@check("QD603", needs=["script"], since="0.1")
def merge_into_a_quantized_base(facts: Facts, request: Requests) -> Iterator[Finding]:
    """`merge_and_unload` on a model whose base is 4-bit or 8-bit.

    The merged weights are quantised again, and the rounding is not the one that the adapter was trained against: on
    tiny models the logits moved by 3 to 10 % of their range (an upper bound: large adapters on random weights). peft
    warns of it when it runs. The cleaner way: save the adapter, load the base in 16 bit, attach the adapter, merge.

    Only where every load that can be seen is quantised: a script that loads the base again in 16 bit, or through
    AutoPeftModel, is right, and one that loads elsewhere is not judged.

    Source: run on transformers 5.23.0, peft 0.21.2, bitsandbytes 0.50.2; peft `tuners/lora/bnb.py`.
    """
    script = script_of(facts)
    merges = calls_named(script, ".merge_and_unload")
    if (
        not merges
        or not request.loads
        or any("AutoPeft" in c.function for c in calls_named(script, ".from_pretrained"))
    ):
        return
    bits = {_bits(load) for load in request.loads}
    if None in bits:
        return
    for call in merges:
        yield Finding(
            "The adapter is merged into a {bits}-bit base: the result is rounded to {bits} bit once more and differs "
            "from what was trained. For full quality save the adapter, load the base in 16 bit, attach and merge",
            {"bits": min(b for b in bits if b)},
            severity="info",
            site=call.site,
            fixes=(Advice("Merge into a base that was loaded in 16 bit"),),
        )


def _bits(load: LoadRequest) -> int | None:
    try:
        quantization = bnb_quantization(load)
    except UnknownArgument:
        return None
    return None if quantization is None else quantization.bits


@check("QD609", needs=["packages"], since="0.1")
def adapters_attached_twice(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """SFTTrainer gets a model that already has adapters, and a `peft_config` as well.

    From TRL 0.29 on it refuses: `ValueError: You passed a PeftModel instance together with a peft_config to the trainer`
    (run on 1.16.0). From 0.26 it merges the first adapters into the base, quantised again, and attaches new ones; before,
    it ignored the `peft_config` (0.16 read).

    Judged where the script calls `get_peft_model` and the trainer's model is its result.

    Fix: leave `peft_config` out, or leave `get_peft_model` to the trainer.

    Source: trl `trainer/sft_trainer.py` 0.16.1, 0.26.2, 0.29.0, 1.16.0.
    """
    trainer = request.trainer
    if not by_trl(request) or "SFT" not in trainer.function or trainer.arguments.get("peft_config") is None:
        return
    model = trainer.arguments.get("model")
    if not isinstance(model, Call) or not model.function.endswith("get_peft_model"):
        return
    version = installed_version(facts, "trl")
    refused, merged = at_least(version, "0.29"), at_least(version, "0.26")
    yield Finding(
        "The model comes from get_peft_model and peft_config is passed too: TRL {trl} {effect}. Leave one of the two out",
        {
            "trl": str(version),
            "effect": "stops with 'You passed a PeftModel instance together with a peft_config'"
            if refused
            else "merges the first adapters into the quantised base and attaches new ones"
            if merged
            else "ignores the peft_config",
        },
        severity="error" if refused else "warning",
        site=request.site,
        fixes=(TrainSetting("peft_config", drop=True, target="trainer", site=trainer.site),),
    )


CHECKS: tuple[Check, ...] = (
    quantized_training_without_adapters,
    merge_into_a_quantized_base,
    adapters_attached_twice,
)
