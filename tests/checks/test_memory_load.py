"""QD5: memory and disk of a load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from qlora_checks import memory_load
from qlora_checks.planned import kept_of
from qlora_doctor.facts import Disk, Facts, Gpu, GpuProcess, Host, Hub, ModelFacts, Repository, TorchBuild
from qlora_doctor.families import BY_TYPE
from qlora_doctor.fix import LoadKwarg
from qlora_doctor.memory.known import MODELS
from qlora_doctor.source import Dotted, Value
from qlora_doctor.testing import assert_fixed_by, bnb, facts, findings, load, outcome

GIB = 2**30
QWEN, LLAVA = "Qwen/Qwen3-8B", "llava-hf/llava-1.5-7b-hf"


def card(gib: float, free: float | None = None, **more: Any) -> Gpu:
    return Gpu("a card", "8.9", int(gib * GIB), int((gib if free is None else free) * GIB), **more)


CARD_8 = card(8)


def on(*gpus: Gpu, **parts: Any) -> Facts:
    return facts({"bitsandbytes": "0.50.2"}, gpus=gpus, **parts)


def config_of(stem: str) -> Mapping[str, Any]:
    import json

    config: Mapping[str, Any] = json.loads((MODELS / f"{stem}.json").read_text(encoding="utf-8"))["config"]
    return config


def test_weights_larger_than_the_card_are_an_error_before_the_download() -> None:
    found = findings(memory_load.weights_larger_than_the_gpu, on(CARD_8), load("Qwen/Qwen2.5-32B-Instruct"))
    assert [f.severity for f in found] == ["error"]
    assert found[0].evidence["needed"] == "17.9"


@pytest.mark.parametrize("model", [QWEN, "someone/a-model", "./Qwen3-32B"])
def test_weights_that_fit_or_are_not_known_are_passed_over(model: str) -> None:
    assert findings(memory_load.weights_larger_than_the_gpu, on(CARD_8), load(model)) == ()


def test_an_unquantised_load_and_two_cards_are_passed_over() -> None:
    big = "Qwen/Qwen2.5-72B"
    assert findings(memory_load.weights_larger_than_the_gpu, on(CARD_8), load(big, quantization_config=None)) == ()
    assert findings(memory_load.weights_larger_than_the_gpu, on(CARD_8, CARD_8), load(big)) == ()


def test_a_container_limit_below_the_load_is_a_warning_and_swap_counts() -> None:
    host = Host(memory_total=64 * GIB, memory_limit=4 * GIB)
    found = findings(memory_load.host_memory_too_small_for_the_load, facts({}, host=host), load(QWEN))
    assert "this container may use" in found[0].text
    roomy = Host(memory_total=64 * GIB, memory_limit=4 * GIB, swap_total=8 * GIB)
    assert findings(memory_load.host_memory_too_small_for_the_load, facts({}, host=roomy), load(QWEN)) == ()
    assert outcome(memory_load.host_memory_too_small_for_the_load, facts({}, host=Host()), load(QWEN)) == "unknown"


def test_a_download_larger_than_the_disk_is_an_error_unless_it_is_cached() -> None:
    disks = (Disk("hf-cache", "/cache", free=10 * GIB),)
    check = memory_load.disk_too_small_for_the_download
    assert [f.severity for f in findings(check, facts({}, disks=disks, hub=Hub()), load(QWEN))] == ["error"]
    assert findings(check, facts({}, disks=disks, hub=Hub(cached=(QWEN,))), load(QWEN)) == ()
    assert findings(check, facts({}, disks=disks), load(QWEN)) == ()


def test_a_folder_is_not_downloaded_and_needs_no_room_for_it() -> None:
    disks = (Disk("hf-cache", "/cache", free=10 * GIB),)
    for origin, count in (("folder", 0), ("hub", 1)):
        model = ModelFacts("me/my-8b", config=config_of("qwen3-8b"), origin=origin)  # type: ignore[arg-type]
        there = facts({}, disks=disks, hub=Hub(), models=(model,))
        assert len(findings(memory_load.disk_too_small_for_the_download, there, load("me/my-8b"))) == count


def test_a_download_whose_size_the_hub_gave_is_left_to_the_check_of_the_hub() -> None:
    disks, check = (Disk("hf-cache", "/cache", free=10 * GIB),), memory_load.disk_too_small_for_the_download
    for size, count in ((None, 1), (2 * GIB, 0)):
        hub = Hub(repositories=(Repository(QWEN, "ok", to_download=size),))
        assert len(findings(check, facts({}, disks=disks, hub=hub), load(QWEN))) == count


def test_a_folder_with_the_same_config_is_judged_like_the_model_of_the_hub() -> None:
    check = memory_load.weights_larger_than_the_gpu
    for name in ("./my-72b", "me/my-72b"):
        there = on(card(24), models=(ModelFacts(name, config=config_of("qwen2.5-72b")),))
        (found,) = findings(check, there, load(name))
        (known,) = findings(check, on(card(24)), load("Qwen/Qwen2.5-72B"))
        assert found.evidence["needed"] == known.evidence["needed"]
    small = on(card(24), models=(ModelFacts("./my-8b", config=config_of("qwen3-8b")),))
    assert findings(check, small, load("./my-8b")) == ()


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mixtral", "hidden_size": 4096},
        {"model_type": "llama"},
        {"model_type": "llava", "hidden_size": 8192, "mm_vision_tower": "openai/clip"},
        {"model_type": "llama", "hidden_size": "wide"},
    ],
)
def test_a_config_that_leaves_out_what_decides_is_passed_over(config: Mapping[str, Any]) -> None:
    there = on(card(1), models=(ModelFacts("./model", config=config),))
    assert findings(memory_load.weights_larger_than_the_gpu, there, load("./model")) == ()


@pytest.mark.parametrize(
    "arguments",
    [
        {"device_map": "cpu"},
        {"device_map": {"": "cpu"}},
        {"quantization_config": bnb(llm_int8_enable_fp32_cpu_offload=True)},
        {"quantization_config": None, "device_map": "auto", "dtype": Dotted("torch.bfloat16")},
        {"quantization_config": None, "device_map": {"": 0}},
    ],
)
def test_a_load_that_is_meant_for_the_cpu_or_does_not_say_is_passed_over(arguments: Any) -> None:
    assert findings(memory_load.weights_larger_than_the_gpu, on(CARD_8), load("Qwen/Qwen2.5-72B", **arguments)) == ()


def test_a_torch_without_cuda_is_passed_over() -> None:
    there = on(CARD_8, torch=TorchBuild("2.13.0+cpu"))
    assert findings(memory_load.weights_larger_than_the_gpu, there, load("Qwen/Qwen2.5-72B")) == ()


def test_an_unquantised_load_onto_the_card_is_judged_and_4_bit_offered() -> None:
    plain = load(QWEN, quantization_config=None, device_map={"": 0}, dtype=Dotted("torch.bfloat16"))
    (found,) = findings(memory_load.weights_larger_than_the_gpu, on(CARD_8), plain)
    assert found.evidence["needed"] == "15.3" and "in 4 bit they take" in found.text
    assert findings(memory_load.weights_larger_than_the_gpu, on(card(16)), plain) == ()


def test_8_bits_that_do_not_fit_name_what_4_bits_take() -> None:
    eight = load("Qwen/Qwen2.5-14B", quantization_config=bnb(load_in_4bit=False, load_in_8bit=True))
    (found,) = findings(memory_load.weights_larger_than_the_gpu, on(card(12)), eight)
    assert "in 4 bit they take 9." in found.text
    assert not any(isinstance(f, LoadKwarg) for f in found.fixes)


def test_the_vision_tower_is_given_up_only_where_the_load_then_fits() -> None:
    kept = load(
        "Qwen/Qwen2.5-VL-7B-Instruct", quantization_config=bnb(llm_int8_skip_modules=BY_TYPE["qwen2_5_vl"].kept())
    )
    check = memory_load.weights_larger_than_the_gpu
    assert_fixed_by(check, on(card(6)), kept)
    (found,) = findings(check, on(card(6)), kept)
    assert [f.name for f in found.fixes if isinstance(f, LoadKwarg)] == ["llm_int8_skip_modules"]
    (found,) = findings(check, on(card(4)), kept)
    assert not any(isinstance(f, LoadKwarg) for f in found.fixes)


def test_double_quantisation_comes_before_the_vision_tower() -> None:
    single = load("Qwen/Qwen2.5-32B", quantization_config=bnb(bnb_4bit_use_double_quant=False))
    assert_fixed_by(memory_load.weights_larger_than_the_gpu, on(card(18.5)), single)
    (found,) = findings(memory_load.weights_larger_than_the_gpu, on(card(18.5)), single)
    assert [f.name for f in found.fixes if isinstance(f, LoadKwarg)] == ["bnb_4bit_use_double_quant"]


def test_the_merger_of_qwen_vl_is_its_projector_and_goes_with_visual() -> None:
    family = BY_TYPE["qwen2_5_vl"]
    assert kept_of(load(quantization_config=bnb(llm_int8_skip_modules=family.kept()))) == ("vision tower", "projector")
    assert kept_of(load(quantization_config=bnb(llm_int8_skip_modules=family.kept(True)))) == ("projector",)


@pytest.mark.parametrize(
    ("gib", "arguments", "count"),
    [
        (6, {"device_map": "auto"}, 1),
        (8, {"device_map": "auto"}, 0),
        (6, {"device_map": {"": 0}}, 0),
        (6, {}, 0),
        (24, {"device_map": "auto", "max_memory": {"0": "6GiB", "cpu": "30GiB"}}, 1),
        (24, {"device_map": "auto", "max_memory": {"0": "8GiB", "cpu": "30GiB"}}, 0),
        (6, {"device_map": "auto", "quantization_config": bnb(llm_int8_enable_fp32_cpu_offload=True)}, 0),
    ],
)
def test_a_quantised_load_of_which_a_part_goes_to_the_cpu_is_an_error(gib: float, arguments: Any, count: int) -> None:
    request = load(QWEN, **arguments)
    found = findings(memory_load.quantized_weights_spread_to_the_cpu, on(card(gib)), request)
    assert [f.severity for f in found] == ["error"] * count
    if count:
        assert_fixed_by(memory_load.quantized_weights_spread_to_the_cpu, on(card(gib)), request)


def test_scales_are_not_counted_where_transformers_does_not_count_them() -> None:
    weights = memory_load.weights_of(on(CARD_8), load(QWEN))
    assert weights is not None and 0.96 < weights.placed / weights.bytes < 0.99
    between = (weights.placed + weights.bytes) / 2 / memory_load.SHARE / GIB
    request = load(QWEN, device_map="auto")
    assert findings(memory_load.quantized_weights_spread_to_the_cpu, on(card(between)), request) == ()


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("6GiB", 6 * GIB),
        ("1.5 GB", 1_500_000_000),
        ("900MB", 900_000_000),
        (10**9, 10**9),
        ("much", None),
        (None, None),
    ],
)
def test_sizes_are_read_as_accelerate_reads_them(value: Value, size: int | None) -> None:
    assert memory_load._bytes(value) == size


def test_memory_that_another_process_holds_is_a_warning_before_the_download() -> None:
    busy = card(12, 4, processes=(GpuProcess(4242, "jupyter"),))
    (found,) = findings(memory_load.weights_larger_than_the_free_memory, on(busy), load(QWEN))
    assert found.severity == "warning" and "jupyter (4242)" in found.text
    assert findings(memory_load.weights_larger_than_the_free_memory, on(card(12)), load(QWEN)) == ()
