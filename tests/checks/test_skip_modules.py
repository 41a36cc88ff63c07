"""`llm_int8_skip_modules`."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_checks.skip_modules import linear_names, skip_modules_that_skip_nothing, skips
from qlora_doctor.families import FAMILIES
from qlora_doctor.fix import LoadKwarg
from qlora_doctor.source import Unresolved
from qlora_doctor.testing import assert_fixed_by, bnb, facts, findings, load, outcome

QD116 = skip_modules_that_skip_nothing
NOW = facts({"transformers": "5.23.0"})
LLAVA = "transformers.LlavaForConditionalGeneration"


def asked(*entries: str, model: str = "llava-hf/llava-1.5-7b-hf", cls: str = LLAVA) -> Any:
    return load(model, cls, quantization_config=bnb(llm_int8_skip_modules=tuple(entries)))


def test_vision_tower_skips_nothing_in_transformers_5_and_lets_lm_head_go() -> None:
    request = asked("vision_tower")
    nothing, head = findings(QD116, NOW, request)
    assert nothing.severity == head.severity == "warning"
    assert "vision_tower" in nothing.text
    fix = nothing.fixes[0]
    assert isinstance(fix, LoadKwarg) and fix.value == (".*vision_tower", "lm_head")
    assert_fixed_by(QD116, NOW, request)


@pytest.mark.parametrize(
    "entries",
    [
        (".*vision_tower", ".*multi_modal_projector", "lm_head"),
        ("model.vision_tower", "lm_head"),
        ("lm_head", "model.language_model.layers.31"),
        ("lm_head", "q_proj"),
        ("vision_tower", ".*vision_tower", "lm_head"),
        ("visual", "lm_head"),
    ],
)
def test_entries_that_match_are_silent(entries: tuple[str, ...]) -> None:
    assert findings(QD116, NOW, asked(*entries)) == ()


def test_a_tied_lm_head_that_is_quantised_fails_at_the_first_forward() -> None:
    text = "transformers.AutoModelForCausalLM"
    (small,) = findings(QD116, NOW, asked("q_proj", model="Qwen/Qwen2.5-0.5B-Instruct", cls=text))
    assert small.severity == "error" and "AssertionError" in small.text
    (large,) = findings(QD116, NOW, asked("q_proj", model="Qwen/Qwen2.5-7B-Instruct", cls=text))
    assert large.severity == "warning" and "AssertionError" not in large.text


def test_before_transformers_5_an_entry_matched_anywhere() -> None:
    assert findings(QD116, facts({"transformers": "4.57.6"}), asked("vision_tower", "lm_head")) == ()


def test_unknown_models_and_lists_are_not_judged() -> None:
    assert findings(QD116, NOW, asked("vision_tower", model="me/mine", cls="transformers.AutoModel")) == ()
    assert findings(QD116, NOW, load(quantization_config=bnb())) == ()
    assert findings(QD116, NOW, load(quantization_config=None)) == ()
    unread = load(quantization_config=bnb(llm_int8_skip_modules=Unresolved("argparse")))
    assert outcome(QD116, NOW, unread) == "unknown"
    assert outcome(QD116, facts({}), asked("vision_tower")) == "unknown"


@pytest.mark.parametrize("family", [f for f in FAMILIES if linear_names(f)], ids=lambda f: f.model_type)
def test_the_families_own_skip_lists_are_sound_and_keep_the_language_model_quantised(family: Any) -> None:
    request = asked(*family.skip, model="x", cls=f"transformers.{family.classes[0]}")
    assert findings(QD116, NOW, request) == ()
    assert any(not any(skips(e, n) for e in family.skip) for n in linear_names(family))


def test_an_entry_matches_as_a_suffix() -> None:
    assert skips("q_proj", "model.layers.0.self_attn.q_proj")
    assert not skips("q_proj", "model.layers.0.self_attn.k_proj")
    assert not skips("(", "model.layers.0.self_attn.k_proj")


def test_the_fix_names_the_head_only_where_it_was_let_go() -> None:
    (kept,) = findings(QD116, NOW, asked("vision_tower", "lm_head"))
    assert isinstance(kept.fixes[0], LoadKwarg) and kept.fixes[0].value == (".*vision_tower", "lm_head")


def test_a_match_ends_at_a_dot_from_5_23_on() -> None:
    assert skips("model.layers.1", "model.layers.11.mlp.up_proj", boundary=False)
    assert not skips("model.layers.1", "model.layers.11.mlp.up_proj", boundary=True)
