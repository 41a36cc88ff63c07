"""Presets: batch, length and rank come from the memory plan of the card, and what the user set stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_core.presets import PRESETS, MemoryPlan, Room, final_plan, find_room, first_plan, words_that_fit
from qlora_core.settings import Settings
from qlora_doctor.errors import UsageError
from qlora_doctor.facts import Facts, Gpu, TorchBuild
from qlora_doctor.memory.known import MODELS

NAMES = ("qwen3-8b", "llava-1.5-7b-hf", "qwen2.5-vl-7b-instruct", "instructblip-vicuna-7b")


def config_of(name: str) -> Any:
    path = next(p for p in Path(MODELS).glob("*.json") if p.stem.lower() == name)
    return json.loads(path.read_text(encoding="utf-8"))["config"]


def plan_for(name: str, preset: str, longest: int = 600, rows: int = 1000, **settings: Any) -> MemoryPlan:
    asked = Settings(**settings)
    first = first_plan(config_of(name), asked, find_room(preset, Facts(), asked), None)
    return final_plan(first, asked, min(longest, first.settings.max_length or longest), rows, 1)


@pytest.mark.parametrize("preset", PRESETS[1:])
@pytest.mark.parametrize("name", NAMES)
def test_a_preset_fits_its_card_by_the_high_figure(name: str, preset: str) -> None:
    try:
        plan = plan_for(name, preset)
    except UsageError as refusal:
        assert preset == "8gb" and "does not fit" in str(refusal)
        return
    assert plan.room.bytes and plan.breakdown and plan.breakdown.high <= plan.room.bytes
    assert plan.batch * plan.accumulation >= 16


def test_a_larger_card_trains_more_rows_at_a_time_and_never_shorter_ones() -> None:
    plans = [plan_for("qwen3-8b", preset) for preset in ("12gb", "16gb", "24gb")]
    batches = [plan.batch for plan in plans]
    lengths = [plan.settings.max_length or 0 for plan in plans]
    assert batches == sorted(batches) and batches[0] < batches[-1] and lengths == sorted(lengths)


def test_what_the_user_set_is_not_changed_to_make_it_fit() -> None:
    plan = plan_for("qwen3-8b", "12gb", lora_r=64, max_length=1024, per_device_train_batch_size=1)
    s = plan.settings
    assert (s.lora_r, s.max_length, s.per_device_train_batch_size, s.gradient_accumulation_steps) == (64, 1024, 1, 1)
    assert [name for name, _, _ in plan.chosen] == ["gradient_accumulation_steps"]


def test_settings_that_cannot_fit_are_refused_with_those_that_do() -> None:
    with pytest.raises(UsageError, match="does not fit") as refusal:
        plan_for("qwen3-8b", "12gb", 4096, per_device_train_batch_size=16, max_length=4096)
    assert "per_device_train_batch_size 16 ->" in str(refusal.value)


def test_a_model_too_large_for_the_card_is_refused() -> None:
    with pytest.raises(UsageError, match="smaller model or a larger card"):
        plan_for("qwen3-8b", "4gb")


def test_max_memory_caps_the_room_of_a_preset() -> None:
    small, whole = plan_for("qwen3-8b", "24gb", max_memory=10), plan_for("qwen3-8b", "24gb")
    assert small.room.bytes == 10 * 2**30 and small.batch < whole.batch


def test_auto_takes_what_is_free_on_the_gpu_and_nothing_on_a_cpu() -> None:
    gpu = Gpu("RTX", memory_total=12 * 2**30, memory_free=9 * 2**30)
    there = Facts(gpus=(gpu,), torch=TorchBuild("2.13.0", cuda="13.0"))
    assert find_room("auto", there, Settings()) == Room(9 * 2**30, "RTX")
    assert find_room("auto", there, Settings(device="cpu")).bytes is None
    assert find_room("auto", there.but(torch=TorchBuild("2.13.0")), Settings()).device == "cpu"


@pytest.mark.parametrize(
    ("settings", "rows", "batches"),
    [
        ({}, 1000, (4, 4)),
        ({}, 16, (2, 1)),
        ({}, 3, (1, 1)),
        ({"per_device_train_batch_size": 8}, 1000, (8, 1)),
        ({"per_device_train_batch_size": 2, "total_batch_size": 32}, 1000, (2, 16)),
        ({"gradient_accumulation_steps": 8}, 1000, (2, 8)),
    ],
)
def test_batch_and_accumulation_make_the_total(settings: Any, rows: int, batches: tuple[int, int]) -> None:
    asked, room = Settings(**settings), Room(None, "the CPU", "cpu")
    plan = final_plan(first_plan(config_of("qwen3-8b"), asked, room, None), asked, 100, rows, 1)
    assert (plan.batch, plan.accumulation) == batches


def test_after_memory_ran_out_a_smaller_batch_is_named_that_keeps_the_total() -> None:
    plan = plan_for("qwen3-8b", "24gb", longest=2000)
    assert plan.breakdown
    text = words_that_fit(plan, plan.breakdown.allocated + 2**30)
    assert "were allocated" in text and "--set per_device_train_batch_size=" in text
    assert int(text.split("per_device_train_batch_size=")[1].split()[0]) < plan.batch


def test_an_architecture_without_a_plan_is_said_so_and_trains_all_the_same() -> None:
    asked = Settings()
    first = first_plan({"model_type": "never_seen"}, asked, Room(8 * 2**30, "x"), None)
    plan = final_plan(first, asked, 100, 1000, 1)
    assert plan.breakdown is None and "no memory plan" in plan.notes[0] and plan.settings.max_length == 2048


def test_a_learning_vision_tower_is_said_to_be_beyond_the_plan() -> None:
    assert any("vision tower keeps" in note for note in plan_for("llava-1.5-7b-hf", "24gb", train="vision").notes)
    assert not any("vision tower keeps" in note for note in plan_for("llava-1.5-7b-hf", "24gb").notes)
