"""Shapes from config.json: the known models' sizes, and what is said of a config that cannot be right."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_doctor.errors import UsageError
from qlora_doctor.memory.known import all_shapes, find_shape, shipped_shape
from qlora_doctor.memory.shapes import shape_of

LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32,
}  # fmt: skip


# Parameter counts as the models' own cards and checkpoints state them.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("Qwen/Qwen2-VL-7B-Instruct", 8_291_375_616),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656),
        ("llava-hf/llava-1.5-7b-hf", 7_063_427_072),
        ("google/gemma-2-2b", 2_614_341_888),
    ],
)
def test_the_shipped_models_have_their_published_number_of_parameters(name: str, count: int) -> None:
    shape = shipped_shape(name)
    assert shape is not None
    assert shape.parameters == count


def test_every_shipped_configuration_says_all_that_is_needed() -> None:
    assert [(name, shape.assumed) for name, shape in all_shapes() if shape.assumed] == []


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B-Base", "qwen3-8b", "meta-llama/Llama-2-7b-chat-hf", "llava-1.5-7b"])
def test_a_tuned_or_shortened_name_finds_its_shape(name: str) -> None:
    assert shipped_shape(name) is not None


@pytest.mark.parametrize("name", ["someone/Qwen3-8B", "Qwen/Qwen3-30B-A3B", "gpt2", ""])
def test_another_model_is_not_taken_for_a_known_one(name: str) -> None:
    assert shipped_shape(name) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 0}, "hidden_size = 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
        ({"hidden_size": "4096"}, "hidden_size = '4096'"),
        ({"num_attention_heads": 30}, "num_attention_heads = 30"),
        ({"num_key_value_heads": 7}, "num_key_value_heads = 7"),
        ({"model_type": "mixtral"}, "mixture of experts"),
        ({"model_type": "qwen3_moe"}, "mixture of experts"),
        ({"model_type": "mamba"}, "'mamba'"),
        ({"model_type": None}, "model_type"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no'"),
    ],
)
def test_an_absurd_field_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=r".") as caught:
        shape_of({**LLAMA, **change}, "config.json")
    assert said in str(caught.value)


def test_a_missing_field_is_assumed_with_a_word_about_it() -> None:
    given = {k: v for k, v in LLAMA.items() if k != "intermediate_size"}
    shape = shape_of(given, "config.json")
    assert shape.assumed == ("config.json: intermediate_size is missing; 11008 is assumed, transformers' default",)


def test_no_configuration_at_all_is_an_error(tmp_path: Any) -> None:
    for data in (None, [], "llama"):
        with pytest.raises(UsageError):
            shape_of(data)
    with pytest.raises(UsageError, match=r"config\.json"):
        find_shape(str(tmp_path), {})
    with pytest.raises(UsageError, match="near it are Qwen/Qwen3-8B"):
        find_shape("Qwen/Qwen3-9B", {})


def test_a_configuration_in_the_local_cache_is_found(tmp_path: Any) -> None:
    import json

    folder = tmp_path / "models--me--tuned" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    _, shape = find_shape("me/tuned", {"HF_HUB_CACHE": str(tmp_path)})
    assert shape.parameters == 6_738_415_616


JUNK = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
)


@given(st.dictionaries(st.sampled_from([*LLAMA, "head_dim", "attention_bias"]), JUNK))
def test_no_configuration_makes_it_fail_in_another_way(changes: dict[str, Any]) -> None:
    try:
        shape = shape_of({**LLAMA, **changes})
    except UsageError:
        return
    assert shape.parameters > 0
