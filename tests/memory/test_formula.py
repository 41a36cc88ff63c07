"""The estimate: what must make it larger, what smaller, and the published figures."""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qlora_doctor.errors import UsageError
from qlora_doctor.memory.fit import fit, levers, verdict
from qlora_doctor.memory.formula import GIB, estimate, packed_bytes
from qlora_doctor.memory.known import all_shapes, shipped_shape
from qlora_doctor.memory.settings import Settings
from qlora_doctor.memory.shapes import Shape

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def known(name: str) -> Shape:
    shape = shipped_shape(name)
    assert shape is not None
    return shape


QWEN, LLAVA = known("Qwen/Qwen3-8B"), known("llava-hf/llava-1.5-7b-hf")


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        ({}, {"batch": 2}),
        ({}, {"length": 1024}),
        ({}, {"rank": 64}),
        ({}, {"checkpointing": False}),
        ({}, {"prepared": True}),
        ({}, {"keeps_inputs": True, "checkpointing": False}),
        ({"loss": "chunked"}, {}),
        ({"optimizer": "adamw-8bit"}, {}),
        ({}, {"bits": 16, "method": "lora"}),
        ({}, {"double_quant": False}),
        ({"targets": "q,v"}, {}),
        ({}, {"attention": "eager", "length": 4096, "checkpointing": False}),
        ({}, {"held": True}),
        ({"loss": "chunked"}, {"loss": "chunked", "unpacks": True}),
        ({}, {"masters": True}),
        ({}, {"buckets": 2**28}),
        ({"world": 4, "sharded": True}, {}),
    ],
)
def test_what_takes_more_is_estimated_higher(smaller: dict[str, object], larger: dict[str, object]) -> None:
    few, many = Settings(**smaller), Settings(**larger)  # type: ignore[arg-type]
    assert estimate(QWEN, few).expected < estimate(QWEN, many).expected


@pytest.mark.parametrize("name", [name for name, _ in all_shapes()])
def test_low_expected_and_high_are_in_order_and_the_parts_add_up(name: str) -> None:
    b = estimate(known(name), Settings())
    assert 0 < b.low <= b.expected < b.high
    assert sum(i.bytes for i in b.items) + b.overhead[1] == b.expected
    assert all(i.bytes > 0 for i in b.items)


def test_the_weights_of_llava_are_the_known_figure() -> None:
    # 6.799e9 of 7.063e9 parameters in 4 bit: 3.27 GiB and 0.49 GiB of 16 bit, where only the head is kept.
    b = estimate(LLAVA, Settings(kept=(), images=0))
    assert b.part("quantised weights") / GIB == pytest.approx(3.27, abs=0.01)
    assert sum(i.bytes for i in b.items if i.name.startswith("16-bit")) / GIB == pytest.approx(0.49, abs=0.01)


def test_a_4_bit_weight_takes_4_127_bits() -> None:
    assert 8 * packed_bytes(4096 * 4096) / 4096**2 == pytest.approx(4.127, abs=0.001)


def test_image_tokens_follow_the_family() -> None:
    assert estimate(LLAVA, Settings()).image_tokens == 576
    assert estimate(known("Salesforce/instructblip-vicuna-7b"), Settings()).image_tokens == 32
    qwen = known("Qwen/Qwen2.5-VL-7B-Instruct")
    assert estimate(qwen, Settings(width=448, height=448)).image_tokens == 256
    assert estimate(qwen, Settings(width=4480, height=4480, max_pixels=256 * 784)).image_tokens <= 256


def test_lora_on_the_q_former_alone_still_goes_back_through_the_language_model() -> None:
    shape = known("Salesforce/instructblip-vicuna-7b")
    s = Settings(batch=16, checkpointing=False, targets="Q-Former")
    b, both = estimate(shape, s), estimate(shape, replace(s, targets="language model"))
    assert b.part("saved activations") > 0.4 * both.part("saved activations")
    assert b.trainable < both.trainable / 5


@pytest.mark.parametrize("field", ["batch", "length", "rank", "world"])
def test_a_setting_that_cannot_be_is_refused_by_name(field: str) -> None:
    for value in (0, -1, True, 10**12):
        with pytest.raises(UsageError, match=field):
            Settings(**{field: value})  # type: ignore[arg-type]


def test_the_search_finds_settings_whose_high_figure_fits() -> None:
    for shape in (QWEN, LLAVA):
        for gib in (8, 12, 16, 24):
            wanted = Settings(batch=8, length=2048)
            found = fit(shape, wanted, gib * GIB)
            assert found is not None
            assert verdict(found.breakdown, gib * GIB) == "fits"
            assert found.settings.batch * found.accumulation >= wanted.batch
            assert estimate(shape, found.settings) == found.breakdown


def test_the_search_gives_up_quality_last() -> None:
    roomy = fit(QWEN, Settings(batch=4), 24 * GIB)
    assert roomy is not None and roomy.changed == ()
    tight = fit(QWEN, Settings(batch=4, length=1024), 10 * GIB)
    assert tight is not None
    assert (tight.settings.length, tight.settings.rank) == (1024, 16)
    assert fit(QWEN, Settings(), 4 * GIB) is None


def test_a_larger_card_never_gets_worse_settings() -> None:
    order = []
    for gib in range(7, 25):
        found = fit(LLAVA, Settings(batch=8, length=2048), gib * GIB)
        order.append((0, 0, 0) if found is None else (found.settings.length, found.settings.rank, found.settings.batch))
    assert order == sorted(order)


def test_a_lever_saves_what_it_says() -> None:
    s = Settings(batch=4, length=1024)
    found = levers(QWEN, s)
    assert {"chunked loss", "batch 4 to 1", "8-bit AdamW"} <= {x.name for x in found}
    for lever in found:
        assert estimate(QWEN, s).expected - estimate(QWEN, lever.settings).expected == lever.saves > 0


def test_published_peaks_are_met_as_docs_memory_says() -> None:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from memory_docs import published  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(BENCHMARKS))
    errors = sorted(abs(row.error) for row in published())
    assert len(errors) == 37
    # Short of the aim, 90 % and 6 %; what is missing, and why no constant was moved to hide it, is said in the document.
    assert sum(e <= 0.15 for e in errors) >= 26
    assert statistics.median(errors) < 0.115 and errors[-1] < 0.25


def test_the_estimate_follows_transformers_own_code_at_real_widths() -> None:
    import json

    rows = json.loads((BENCHMARKS / "memory_fake.json").read_text(encoding="utf-8"))
    assert {row["run"].split()[0] for row in rows} == {"qwen3-8b", "llava-1.5-7b-hf"}
    assert max(abs(row["error"]) for row in rows) < 0.05
