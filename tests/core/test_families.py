"""The table of families against the real classes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.families import BY_TYPE, FAMILIES, Family

KINDS = {
    "llava": ("llava",),
    "llava_next": ("llava_next",),
    "qwen2": ("qwen2",),
    "qwen3": ("qwen3",),
    "llama": ("llama",),
    "qwen2_vl": ("qwen2_vl",),
    "qwen2_5_vl": ("qwen2_5_vl",),
    "qwen3_vl": ("qwen3_vl",),
    "instructblip": ("instructblip_t5", "instructblip_vicuna"),
    "blip-2": ("blip2_t5", "blip2_opt"),
}
ROWS = [(f, kind) for f in FAMILIES for kind in KINDS[f.model_type]]
every_row = pytest.mark.parametrize(("family", "kind"), ROWS, ids=[kind for _, kind in ROWS])


@pytest.fixture(scope="module")
def linears(tiny: Callable[..., Path]) -> Callable[[str], dict[str, Any]]:
    """The linears of the unquantised model of a kind, by name."""
    import torch

    from qlora_core.tiny import model, tokenizer

    def get(kind: str) -> dict[str, Any]:
        built = model(kind, tokenizer(kind))
        return {n: m for n, m in built.named_modules() if isinstance(m, torch.nn.Linear)}

    return get


def in_language_model(name: str, family: Family) -> bool:
    head = name == "lm_head" or name.endswith(".lm_head")
    return name.startswith(f"{family.layout.language_model}.") and not head


@every_row
def test_lora_targets_are_exactly_the_linears_of_the_language_model(
    family: Family, kind: str, linears: Callable[[str], dict[str, Any]]
) -> None:
    names = set(linears(kind))
    hit = {n for n in names if re.fullmatch(family.lora_targets, n)}
    assert hit == {n for n in names if in_language_model(n, family)} and hit


@every_row
def test_lora_targets_match_the_layout_before_4_52_too(
    family: Family, kind: str, linears: Callable[[str], dict[str, Any]]
) -> None:
    if family.old_layout is None:
        pytest.skip("one layout only")
    names = [n for n in linears(kind) if in_language_model(n, family)]
    old = family.old_layout.language_model
    # The old language model was a whole causal model, so its layers lie one level deeper; Qwen-VL's did not.
    inner = old if "vl" in kind else f"{old}.model"
    renamed = [n.replace(family.layout.language_model, inner, 1) for n in names]
    assert all(re.fullmatch(family.lora_targets, n) for n in renamed)
    others = [n for n in linears(kind) if not in_language_model(n, family)]
    assert not [n for n in others if re.fullmatch(family.lora_targets, n.removeprefix("model."))]


@every_row
@pytest.mark.parametrize("quantize_vision", [False, True])
def test_the_kept_names_really_keep_what_they_name(
    family: Family, kind: str, quantize_vision: bool, tiny: Callable[..., Path]
) -> None:
    import bitsandbytes
    import torch
    import transformers

    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, llm_int8_skip_modules=list(family.kept(quantize_vision))
    )
    auto = getattr(transformers, family.auto_class)
    model = auto.from_pretrained(tiny(kind), quantization_config=config, dtype=torch.bfloat16)
    assert type(model).__name__ in family.classes
    four_bit = {n for n, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
    plain = {n for n, m in model.named_modules() if type(m) is torch.nn.Linear}
    # T5 keeps its `wo` by itself, or not, as the versions of transformers have it.
    four_bit -= {n for n in four_bit if n.endswith(".wo")}
    language = {n for n in four_bit | plain if in_language_model(n, family) and not n.endswith(".wo")}
    vision = {n for n in four_bit | plain if family.vision and n.startswith(f"{family.layout.vision_tower}.")}
    vision -= {n for n in vision if n.startswith(family.layout.projector) or "merger" in n}
    assert four_bit == language | (vision if quantize_vision else set())


@every_row
def test_the_parts_of_a_layout_and_the_processor_class_exist(family: Family, kind: str) -> None:
    import transformers

    from qlora_core.tiny import model, tokenizer

    built = model(kind, tokenizer(kind))
    layout = family.layout
    for path in (layout.language_model, layout.vision_tower, layout.projector, layout.qformer):
        assert not path or built.get_submodule(path) is not None
    assert not family.processor or hasattr(transformers, family.processor)


def test_a_family_is_found_by_its_model_type() -> None:
    assert BY_TYPE["blip-2"].title == "BLIP-2"
