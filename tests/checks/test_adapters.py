"""Adapters and LoRA: what is found, at the severity of its effect on the installed versions, and what is left alone."""

from __future__ import annotations

import dataclasses

import pytest

from qlora_checks.adapters import (
    adapters_attached_twice,
    merge_into_a_quantized_base,
    quantized_training_without_adapters,
)
from qlora_checks.casts import adapters_in_half_precision, fp16_with_bfloat16_adapters
from qlora_checks.lora import (
    lora_on_the_vision_tower,
    lora_targets_that_match_nothing,
    lora_without_target_modules,
    task_type_with_blip,
)
from qlora_checks.preparing import adapters_frozen_by_prepare, quantized_training_without_prepare
from qlora_doctor.facts import Facts, Installed
from qlora_doctor.fix import SourceEdit
from qlora_doctor.request import TrainRequest
from qlora_doctor.source import Call, Dotted, Script, Site, Unresolved, Value
from qlora_doctor.testing import RTX_3060, assert_fixed_by, bnb, facts, findings, load, outcome, train

NEW = facts({"transformers": "5.23.0", "peft": "0.21.2", "trl": "1.16.0", "bitsandbytes": "0.50.2"}, gpus=(RTX_3060,))
OLD = facts({"transformers": "4.57.6", "peft": "0.18.1", "trl": "0.24.0", "bitsandbytes": "0.48.2"}, gpus=(RTX_3060,))
LLAVA = load("llava-hf/llava-1.5-7b-hf", "transformers.LlavaForConditionalGeneration")
QWEN = load("Qwen/Qwen3-4B")
T5 = load("Salesforce/instructblip-flan-t5-xl", "transformers.InstructBlipForConditionalGeneration")


def script(*calls: Call) -> Script:
    return Script("train.py", calls=calls)


def severities(check: object, here: Facts, request: TrainRequest, source: Script | None = None) -> list[str]:
    return [f.severity for f in findings(check, here, request, script=source)]  # type: ignore[arg-type]


def quantized(prepared: bool | None = False, **settings: Value) -> TrainRequest:
    return train(settings=settings, lora={"r": 8}, load=QWEN, prepared=prepared, peft=True)


def test_training_without_prepare_is_information_where_transformers_5_trains_all_the_same() -> None:
    assert severities(quantized_training_without_prepare, NEW, quantized(gradient_checkpointing=True)) == ["info"]


def test_training_without_prepare_and_with_reentrant_checkpointing_is_an_error_below_5() -> None:
    request = quantized(gradient_checkpointing=True)
    assert severities(quantized_training_without_prepare, OLD, request) == ["error"]
    assert severities(quantized_training_without_prepare, OLD, quantized(gradient_checkpointing=False)) == ["info"]
    done = quantized(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    assert severities(quantized_training_without_prepare, OLD, done) == ["info"]


@pytest.mark.parametrize(
    "request_",
    [
        quantized(prepared=True),
        train(
            settings={}, lora={"r": 8}, load=load("Qwen/Qwen3-4B", quantization_config=None), prepared=False, peft=True
        ),
        train(
            "trl.SFTTrainer",
            {},
            {"r": 8},
            QWEN,
            prepared=False,
            peft=True,
            trainer_arguments={"peft_config": Call("x")},
        ),
    ],
    ids=["prepared", "not quantised", "TRL prepares"],
)
def test_training_that_is_prepared_or_needs_none_is_left_alone(request_: TrainRequest) -> None:
    assert outcome(quantized_training_without_prepare, OLD, request_) == "ok"


def test_input_gradients_that_the_script_enables_count_as_prepared() -> None:
    source = script(Call(".enable_input_require_grads", receiver="model"))
    request = quantized(gradient_checkpointing=True)
    assert outcome(quantized_training_without_prepare, OLD, request, script=source) == "ok"


def test_whether_the_model_was_prepared_is_unknown_and_not_a_finding_where_it_cannot_be_seen() -> None:
    assert outcome(quantized_training_without_prepare, OLD, quantized(prepared=None)) == "unknown"
    unfollowed = train(settings={}, lora={"r": 8}, prepared=False, peft=True)
    assert outcome(quantized_training_without_prepare, OLD, unfollowed) == "unknown"


@pytest.mark.parametrize(
    ("trainer", "calls", "severity"),
    [
        ("loop", (Call(".gradient_checkpointing_enable", receiver="model"),), "error"),
        ("loop", (), "info"),
    ],
)
def test_a_loop_of_the_scripts_own_is_judged_by_whether_it_checkpoints(
    trainer: str, calls: tuple[Call, ...], severity: str
) -> None:
    request = train(trainer, None, {"r": 8}, QWEN, prepared=False, peft=True)
    assert severities(quantized_training_without_prepare, OLD, request, script(*calls)) == [severity]


def test_the_new_name_of_checkpointing_counts_too() -> None:
    assert severities(quantized_training_without_prepare, OLD, quantized(activation_checkpointing=True)) == ["error"]


def test_prepare_is_wrapped_around_the_model_that_get_peft_model_gets() -> None:
    text = "model = get_peft_model(model, config)\n"
    site = Site("train.py", 1, 9, 1, 8, 37, sha256="0" * 64, spans={"model:value": (23, 28)})
    call = Call("peft.get_peft_model", {"model": Dotted("model")}, site=site, result="model")
    (finding,) = findings(quantized_training_without_prepare, NEW, quantized(), script=script(call))
    assert edited(text, finding.fixes[0]) == "model = get_peft_model(prepare_model_for_kbit_training(model), config)\n"


def edited(text: str, fix: object) -> str:
    assert isinstance(fix, SourceEdit)
    data = text.encode()
    for edit in sorted(fix.edits, key=lambda e: e.start, reverse=True):
        data = data[: edit.start] + edit.text.encode() + data[edit.end :]
    return data.decode()


def test_a_trainer_on_a_quantised_model_without_adapters_is_an_error() -> None:
    request = train(settings={}, load=QWEN, peft=False)
    assert severities(quantized_training_without_adapters, NEW, request) == ["error"]


@pytest.mark.parametrize(
    "request_",
    [
        train(settings={}, load=QWEN, peft=True),
        train(settings={}, load=QWEN, peft=None),
        train(settings={}, load=load(quantization_config=None), peft=False),
        train("loop", None, load=QWEN, peft=False),
        train("trl.SFTTrainer", {}, load=QWEN, peft=False, trainer_arguments={"peft_config": Dotted("cfg")}),
    ],
    ids=["adapters", "not known", "not quantised", "own loop", "peft_config"],
)
def test_a_trainer_whose_model_has_adapters_or_needs_none_is_left_alone(request_: TrainRequest) -> None:
    assert outcome(quantized_training_without_adapters, NEW, request_) == "ok"


def test_lora_without_targets_is_an_error_where_peft_has_no_default_and_the_fix_names_them() -> None:
    request = train(settings={}, lora={"r": 8}, load=LLAVA, peft=True)
    assert severities(lora_without_target_modules, NEW, request) == ["error"]
    assert_fixed_by(lora_without_target_modules, NEW, request)


def test_lora_without_targets_follows_the_defaults_of_the_installed_peft() -> None:
    qwen = train(settings={}, lora={"r": 8}, load=QWEN, peft=True)
    assert outcome(lora_without_target_modules, NEW, qwen) == "ok"
    assert severities(lora_without_target_modules, facts({"peft": "0.11.1"}), qwen) == ["error"]
    told = NEW.but(installed=Installed(lora_defaults=("llava",)))
    assert outcome(lora_without_target_modules, told, train(settings={}, lora={"r": 8}, load=LLAVA)) == "ok"


@pytest.mark.parametrize(
    "lora",
    [{"target_modules": ("q_proj",)}, {"target_parameters": ("a.b",)}, None],
    ids=["modules", "parameters", "none"],
)
def test_lora_with_targets_of_any_kind_is_left_alone(lora: dict[str, Value] | None) -> None:
    assert outcome(lora_without_target_modules, NEW, train(settings={}, lora=lora, load=LLAVA)) == "ok"


def test_an_unknown_architecture_without_targets_is_left_alone() -> None:
    request = train(settings={}, lora={"r": 8}, load=load("someone/some-model"))
    assert outcome(lora_without_target_modules, NEW, request) == "ok"


@pytest.mark.parametrize(
    ("targets", "model"),
    [
        ("q_proj", QWEN),
        ("q_proj,v_proj", QWEN),
        (("all-linear",), QWEN),
        (("query_key_value",), QWEN),
        (("q_proj", "v_proj"), T5),
        (("c_attn", "c_proj"), LLAVA),
        (("query_key_value",), load("meta-llama/Llama-3.1-8B")),
    ],
)
def test_targets_that_match_nothing_are_an_error_and_the_fix_matches(targets: Value, model: object) -> None:
    request = train(settings={}, lora={"target_modules": targets}, load=model)  # type: ignore[arg-type]
    assert severities(lora_targets_that_match_nothing, NEW, request) == ["error"]
    assert_fixed_by(lora_targets_that_match_nothing, NEW, request)


@pytest.mark.parametrize(
    ("targets", "model"),
    [
        ("all-linear", QWEN),
        (("q_proj", "query_key_value"), QWEN),
        (("query", "key", "value", "dense"), T5),
        (("q", "v"), T5),
        (("my_own_layer",), QWEN),
        (("query_key_value",), load("someone/some-model")),
        (r".*\.q_proj", QWEN),
        ("my_own_layer", QWEN),
        (("q_proj", Unresolved("a field")), QWEN),
        ("lm_head", QWEN),
        (("q_proj", "v_proj"), load("Salesforce/instructblip-vicuna-7b")),
        (("self_attn.q_proj",), QWEN),
    ],
)
def test_targets_that_match_or_may_match_are_left_alone(targets: Value, model: object) -> None:
    request = train(settings={}, lora={"target_modules": targets}, load=model)  # type: ignore[arg-type]
    assert outcome(lora_targets_that_match_nothing, NEW, request) == "ok"


def test_all_linear_on_a_vision_model_is_information_and_on_a_text_model_nothing() -> None:
    everywhere: dict[str, Value] = {"target_modules": "all-linear"}
    assert severities(lora_on_the_vision_tower, NEW, train(settings={}, lora=everywhere, load=LLAVA)) == ["info"]
    assert outcome(lora_on_the_vision_tower, NEW, train(settings={}, lora=everywhere, load=QWEN)) == "ok"
    excluded: dict[str, Value] = {**everywhere, "exclude_modules": ".*vision.*"}
    assert outcome(lora_on_the_vision_tower, NEW, train(settings={}, lora=excluded, load=LLAVA)) == "ok"


def test_a_task_type_that_cannot_be_read_is_one_all_the_same() -> None:
    here = facts({"transformers": "4.44.2"})
    unread = train(settings={}, lora={"task_type": Unresolved("a field")}, load=T5)
    assert outcome(task_type_with_blip, here, unread) == "found"


@pytest.mark.parametrize(("version", "expected"), [("4.44.2", "found"), ("4.53.3", "found"), ("4.54.0", "ok")])
def test_a_task_type_on_instructblip_fails_below_4_54(version: str, expected: str) -> None:
    here = facts({"transformers": version, "peft": "0.12.0"})
    lora: dict[str, Value] = {"task_type": Dotted("peft.TaskType.FEATURE_EXTRACTION")}
    assert outcome(task_type_with_blip, here, train(settings={}, lora=lora, load=T5)) == expected


def test_dropping_the_task_type_cures_it() -> None:
    here = facts({"transformers": "4.44.2", "peft": "0.12.0"})
    assert_fixed_by(task_type_with_blip, here, train(settings={}, lora={"task_type": "CAUSAL_LM"}, load=T5))
    assert outcome(task_type_with_blip, here, train(settings={}, lora={"task_type": "CAUSAL_LM"}, load=QWEN)) == "ok"


def half(origin: str = "peft.get_peft_model") -> Script:
    site = Site("train.py", 1, 1, 1, 0, 12, sha256="0" * 64)
    return script(Call(".half", site=site, receiver="model", origin=origin))


def test_half_on_a_peft_model_is_an_error_with_fp16_and_the_edit_takes_it_out() -> None:
    request = train(settings={"fp16": True}, lora={"r": 8}, load=QWEN, peft=True)
    (finding,) = findings(adapters_in_half_precision, NEW, request, script=half())
    assert (finding.severity, edited("model.half()\n", finding.fixes[0])) == ("error", "model\n")
    assert "unscale FP16" in finding.text


@pytest.mark.parametrize(
    ("settings", "severity"),
    [({"optim": "adamw_torch"}, "error"), ({"optim": "paged_adamw_8bit"}, "warning"), ({}, "warning")],
)
def test_half_adapters_break_plain_adamw_and_only_coarsen_the_others(settings: dict[str, Value], severity: str) -> None:
    request = train(settings=settings, lora={"r": 8}, load=QWEN, peft=True)
    assert severities(adapters_in_half_precision, NEW, request, half()) == [severity]


def test_half_adapters_in_a_loop_with_adamw_are_an_error() -> None:
    source = script(*half().calls, Call("torch.optim.AdamW", {"lr": 1e-4}))
    assert severities(adapters_in_half_precision, NEW, train("loop", load=QWEN, peft=True), source) == ["error"]


def test_a_cast_behind_the_trainer_is_left_alone() -> None:
    cast = dataclasses.replace(half().calls[0], order=9)
    request = train(settings={"fp16": True}, lora={"r": 8}, load=QWEN, peft=True)
    for order, expected in ((8, "ok"), (10, "found")):
        placed = dataclasses.replace(request, trainer=dataclasses.replace(request.trainer, order=order))
        assert outcome(adapters_in_half_precision, NEW, placed, script=script(cast)) == expected


def test_a_cast_of_something_else_or_to_another_dtype_is_left_alone() -> None:
    request = train(settings={"fp16": True}, lora={"r": 8}, load=QWEN, peft=True)
    assert outcome(adapters_in_half_precision, NEW, request, script=half("torch.zeros")) == "ok"
    for value in (Dotted("torch.bfloat16"), "cuda"):
        moved = script(Call(".to", {"#0": value}, receiver="model", origin="peft.get_peft_model"))
        assert outcome(adapters_in_half_precision, NEW, request, script=moved) == "ok"


@pytest.mark.parametrize(("peft", "expected"), [("0.21.2", "found"), ("0.18.1", "ok")])
def test_adapters_kept_in_the_base_dtype_are_half_over_a_half_base_from_peft_0_19(peft: str, expected: str) -> None:
    here = facts({"transformers": "5.23.0", "peft": peft}, gpus=(RTX_3060,))
    base = load("Qwen/Qwen3-4B", quantization_config=bnb(bnb_4bit_compute_dtype=Dotted("torch.float16")))
    source = script(Call("peft.get_peft_model", {"autocast_adapter_dtype": False}))
    assert (
        outcome(adapters_in_half_precision, here, train(settings={}, load=base, peft=True), script=source) == expected
    )


def test_trl_with_fp16_on_a_quantised_model_is_an_error_on_a_gpu_and_bf16_cures_it() -> None:
    request = train("trl.SFTTrainer", {"fp16": True}, {"r": 8}, QWEN, "trl.SFTConfig", peft=True)
    assert severities(fp16_with_bfloat16_adapters, NEW, request) == ["error"]
    assert severities(fp16_with_bfloat16_adapters, NEW.but(gpus=()), request) == ["info"]
    assert_fixed_by(fp16_with_bfloat16_adapters, NEW, request)


def test_fp16_with_an_older_trl_or_the_stock_trainer_is_left_alone() -> None:
    request = train("trl.SFTTrainer", {"fp16": True}, {"r": 8}, QWEN, "trl.SFTConfig", peft=True)
    assert outcome(fp16_with_bfloat16_adapters, OLD, request) == "ok"
    assert outcome(fp16_with_bfloat16_adapters, NEW, quantized(fp16=True)) == "ok"


def test_fp16_is_left_alone_where_trl_gets_no_adapters_or_no_quantised_model() -> None:
    bare = train("trl.SFTTrainer", {"fp16": True}, None, QWEN, "trl.SFTConfig", peft=False)
    whole = load("Qwen/Qwen3-4B", quantization_config=None)
    full = train("trl.SFTTrainer", {"fp16": True}, {"r": 8}, whole, "trl.SFTConfig", peft=True)
    for request in (bare, full):
        assert outcome(fp16_with_bfloat16_adapters, NEW, request) == "ok"


def test_a_script_that_merges_through_autopeft_loads_its_base_anew() -> None:
    again = Call("peft.AutoPeftModelForCausalLM.from_pretrained")
    source = script(Call(".merge_and_unload", receiver="model"), again)
    assert outcome(merge_into_a_quantized_base, NEW, QWEN, script=source) == "ok"


def test_merging_into_a_base_whose_quantisation_is_not_known_is_left_alone() -> None:
    source = script(Call(".merge_and_unload", receiver="model"))
    unread = load("Qwen/Qwen3-4B", quantization_config=Unresolved("a field"))
    assert outcome(merge_into_a_quantized_base, NEW, unread, script=source) == "ok"


def test_merging_is_told_of_only_where_every_load_is_quantised() -> None:
    source = script(Call(".merge_and_unload", receiver="model"))
    (finding,) = findings(merge_into_a_quantized_base, NEW, QWEN, script=source)
    assert finding.severity == "info"
    again = load("Qwen/Qwen3-4B", quantization_config=None)
    assert outcome(merge_into_a_quantized_base, NEW, QWEN, again, script=source) == "ok"
    assert outcome(merge_into_a_quantized_base, NEW, QWEN, script=script()) == "ok"


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (Call("peft.prepare_model_for_kbit_training", {"model": Call("peft.get_peft_model")}), "found"),
        (Call("peft.prepare_model_for_kbit_training", {"model": QWEN.call}), "ok"),
        (Call("peft.prepare_model_for_kbit_training", {"model": Dotted("model")}), "ok"),
    ],
    ids=["after", "before", "not known"],
)
def test_preparing_a_model_that_has_adapters_is_an_error(call: Call, expected: str) -> None:
    source = script(Call("peft.get_peft_model"), call)
    assert outcome(adapters_frozen_by_prepare, NEW, script=source) == expected


@pytest.mark.parametrize(("trl", "severity"), [("1.16.0", "error"), ("0.26.2", "warning"), ("0.16.1", "warning")])
def test_adapters_attached_twice_are_refused_by_new_releases_of_trl(trl: str, severity: str) -> None:
    arguments: dict[str, Value] = {"model": Call("peft.get_peft_model"), "peft_config": Call("peft.LoraConfig")}
    request = train("trl.SFTTrainer", {}, {"r": 8}, QWEN, peft=True, trainer_arguments=arguments)
    here = facts({"trl": trl})
    assert severities(adapters_attached_twice, here, request) == [severity]
    assert_fixed_by(adapters_attached_twice, here, request)
    for name, value in arguments.items():
        alone = train("trl.SFTTrainer", {}, {"r": 8}, QWEN, trainer_arguments={name: value})
        assert outcome(adapters_attached_twice, here, alone) == "ok"


def test_transformers_own_add_adapter_makes_half_adapters_over_a_half_base() -> None:
    base = load("Qwen/Qwen3-4B", quantization_config=bnb(bnb_4bit_compute_dtype=Dotted("torch.float16")))
    source = script(Call(".add_adapter", receiver="model", origin="transformers.AutoModelForCausalLM.from_pretrained"))
    request = train(settings={"optim": "adamw_torch"}, load=base, peft=True)
    assert severities(adapters_in_half_precision, NEW, request, source) == ["error"]
    assert outcome(adapters_in_half_precision, NEW, train(settings={}, load=QWEN, peft=True), script=source) == "ok"
