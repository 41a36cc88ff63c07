"""QD5: memory and disk."""

from __future__ import annotations

from typing import Any

from qlora_checks import memory
from qlora_doctor.facts import Facts, Gpu, GpuProcess, Host
from qlora_doctor.fix import Advice, TrainSetting
from qlora_doctor.request import TrainRequest
from qlora_doctor.source import Call, Script
from qlora_doctor.testing import RTX_3060, assert_fixed_by, bnb, facts, findings, load, outcome, train

GIB = 2**30
CARD_8 = Gpu("NVIDIA GeForce RTX 4060", "8.9", 8 * GIB, 8 * GIB)
QWEN, LLAVA = "Qwen/Qwen3-8B", "llava-hf/llava-1.5-7b-hf"


def on(*gpus: Gpu, **parts: Any) -> Facts:
    return facts({"bitsandbytes": "0.50.2"}, gpus=gpus, **parts)


def run(
    model: str = QWEN, lora: dict[str, Any] | None = None, prepared: bool | None = False, **settings: Any
) -> TrainRequest:
    given = {"per_device_train_batch_size": 1, "bf16": True, **settings}
    return train(settings=given, lora=lora or {"r": 16}, load=load(model), prepared=prepared)


def test_a_batch_that_cannot_fit_is_an_error_whose_fixes_fit() -> None:
    request = run(per_device_train_batch_size=64, gradient_checkpointing=True)
    found = findings(memory.training_larger_than_the_gpu, on(CARD_8), request)
    assert [f.severity for f in found] == ["error"]
    names = {f.name: f.value for f in found[0].fixes if isinstance(f, TrainSetting)}
    assert names["gradient_accumulation_steps"] == 64 // int(str(names["per_device_train_batch_size"]))
    assert_fixed_by(memory.training_larger_than_the_gpu, on(CARD_8), request)


def test_a_run_that_fits_is_not_reported() -> None:
    for check in (
        memory.training_larger_than_the_gpu,
        memory.rows_at_the_limit_do_not_fit,
        memory.no_checkpointing_on_a_small_gpu,
    ):
        assert outcome(check, on(RTX_3060), run(LLAVA, gradient_checkpointing=True, max_length=512)) == "ok"


def test_a_batch_size_that_cannot_be_read_is_unknown() -> None:
    open_settings = Call("transformers.TrainingArguments", open="it takes **kwargs")
    request = TrainRequest(Call("transformers.Trainer"), open_settings, Call("peft.LoraConfig"), load(QWEN))
    assert outcome(memory.training_larger_than_the_gpu, on(CARD_8), request) == "unknown"


def test_deepspeed_is_passed_over() -> None:
    request = run(per_device_train_batch_size=64, deepspeed="ds.json")
    assert outcome(memory.training_larger_than_the_gpu, on(CARD_8), request) == "ok"


def test_rows_as_long_as_max_length_that_do_not_fit_are_a_warning() -> None:
    request = run(gradient_checkpointing=True, max_length=8192)
    found = findings(memory.rows_at_the_limit_do_not_fit, on(RTX_3060), request)
    assert [f.severity for f in found] == ["warning"]
    assert "runs out of memory" in found[0].text
    assert_fixed_by(memory.rows_at_the_limit_do_not_fit, on(RTX_3060), request)
    assert findings(memory.rows_at_the_limit_do_not_fit, on(RTX_3060), run(gradient_checkpointing=True)) == ()


def test_what_only_fragmentation_makes_too_much_is_answered_by_the_allocators_setting_first() -> None:
    check, request = memory.rows_at_the_limit_do_not_fit, run(gradient_checkpointing=True, max_length=2048)

    def commands(gib: float, system: str = "Linux") -> list[str]:
        card = Gpu("a card", "8.9", int(gib * GIB), int(gib * GIB))
        found = findings(check, on(card, host=Host(system=system)), request)
        return [f.command for one in found for f in one.fixes if isinstance(f, Advice)]

    barely, hopeless = 11.5, 8.0
    assert "export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True" in commands(barely)
    assert commands(barely, "Windows") == [] and not any("ALLOC_CONF" in c for c in commands(hopeless))


def test_memory_that_a_process_holds_is_named() -> None:
    busy = Gpu("NVIDIA GeForce RTX 3060", "8.6", 12 * GIB, 2 * GIB, processes=(GpuProcess(4242, "jupyter"),))
    found = findings(memory.gpu_memory_held_by_others, on(busy), run(gradient_checkpointing=True))
    assert "jupyter (4242)" in found[0].text
    assert findings(memory.gpu_memory_held_by_others, on(RTX_3060), run(gradient_checkpointing=True)) == ()


def test_workers_with_64_mib_of_shared_memory_are_a_warning() -> None:
    small = facts({}, host=Host(shm_total=64 * 2**20))
    check = memory.shared_memory_too_small_for_workers
    assert [f.severity for f in findings(check, small, run(dataloader_num_workers=4))] == ["warning"]
    assert findings(check, small, run()) == ()
    assert findings(check, facts({}, host=Host(shm_total=8 * GIB)), run(dataloader_num_workers=4)) == ()


def test_checkpointing_that_is_off_where_only_it_makes_the_run_fit_is_a_warning() -> None:
    request = run(LLAVA, per_device_train_batch_size=2)
    assert_fixed_by(memory.no_checkpointing_on_a_small_gpu, on(CARD_8), request)
    large = Gpu("NVIDIA H100", "9.0", 80 * GIB, 80 * GIB)
    assert findings(memory.no_checkpointing_on_a_small_gpu, on(large), request) == ()


def test_padding_to_the_maximum_is_an_info() -> None:
    calls = (Call(".tokenizer", arguments={"padding": "max_length", "max_length": 2048}),)
    script = Script("train.py", calls=calls)
    found = findings(memory.every_row_padded_to_the_maximum, facts({}, script=script), script=script)
    assert [f.severity for f in found] == ["info"]
    short = Script("train.py", calls=(Call(".tokenizer", arguments={"padding": True, "max_length": 2048}),))
    assert findings(memory.every_row_padded_to_the_maximum, facts({}, script=short), script=short) == ()


def test_float32_embeddings_that_fill_the_card_are_a_warning() -> None:
    nine = Gpu("a card", "8.6", 9 * GIB, 9 * GIB)
    assert findings(memory.float32_embeddings_fill_the_gpu, on(nine), run(prepared=True))
    assert (
        findings(memory.float32_embeddings_fill_the_gpu, on(nine), run(prepared=False, gradient_checkpointing=True))
        == ()
    )


def test_an_old_bitsandbytes_that_keeps_activations_is_reported_in_training_only() -> None:
    old = facts({"bitsandbytes": "0.42.0"}, gpus=(RTX_3060,))
    check = memory.bitsandbytes_that_keeps_activations
    assert_fixed_by(check, old, run())
    assert findings(check, facts({"bitsandbytes": "0.43.3"}), run()) == ()
    plain = train(settings={}, load=load(QWEN, quantization_config=None))
    assert findings(check, old, plain) == ()


def test_a_model_that_is_quantised_with_its_vision_tower_kept_takes_more() -> None:
    kept = load(LLAVA, quantization_config=bnb(llm_int8_skip_modules=(".*vision_tower", "lm_head")))
    from qlora_checks.planned import kept_of

    assert kept_of(kept) == ("vision tower",)
    assert kept_of(load(LLAVA)) == ()
