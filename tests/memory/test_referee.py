"""The estimate against real training steps: a few runs of benchmarks/memory.py, one a family and mode."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qlora_doctor.memory.formula import estimate
from qlora_doctor.memory.shapes import shape_of

pytestmark = pytest.mark.torch
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"


@pytest.fixture(scope="module")
def referee() -> ModuleType:
    spec = importlib.util.spec_from_file_location("memory_benchmark", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["memory_benchmark"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"checkpointing": True, "autocast": True}),
        ("qwen2", {"checkpointing": False, "autocast": False}),
        ("qwen3", {"checkpointing": False, "autocast": True, "rank": 32}),
        ("llava", {"checkpointing": True, "autocast": True, "images": 1}),
        ("qwen2_vl", {"checkpointing": True, "autocast": False, "images": 2}),
        ("qwen2_5_vl", {"checkpointing": False, "autocast": True, "images": 1}),
        ("instructblip", {"checkpointing": False, "autocast": True, "images": 1, "targets": "Q-Former"}),
        ("instructblip_t5", {"checkpointing": True, "autocast": True, "images": 1}),
        ("llama", {"checkpointing": True, "autocast": True, "prepared": True}),
    ],
)
def test_the_peak_of_a_real_step_is_within_12_percent(
    family: str, settings: dict[str, Any], referee: ModuleType
) -> None:
    given = {"batch": 2, "length": 128, "rank": 8, "images": 0, "answer": 32, **settings}
    run = referee.Run(family, referee.settings_of(**given))
    real, _ = referee.measure(run)
    guess = estimate(shape_of(referee.config(run)), run.settings).allocated
    assert guess == pytest.approx(real, rel=0.12)


@pytest.mark.parametrize(("row", "most"), [(0, 0.02), (4, 0.04)])
def test_a_layer_of_a_real_shape_is_counted_like_the_libraries_own_code(
    row: int, most: float, referee: ModuleType
) -> None:
    sys.path.insert(0, str(BENCHMARK.parent))
    try:
        import memory_fake  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(BENCHMARK.parent))
    stem, settings = memory_fake.ROWS[row]
    config = memory_fake.config_of(stem, 1)
    shape = shape_of(config, stem)
    counted = memory_fake.measure(config, shape, settings)
    assert estimate(shape, settings).allocated == pytest.approx(counted, rel=most)
