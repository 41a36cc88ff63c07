"""QD336 held against the real thing: the paths that it tries hold every linear of the loaded model, and peft agrees."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_checks.checkpoint_targets import layouts, lora_targets_absent_from_the_checkpoint, modules_of
from qlora_doctor.families import BY_TYPE
from qlora_doctor.gather.model_files import read_model
from qlora_doctor.testing import facts, findings, load, train

KINDS = ("llava", "llava_next", "qwen2", "qwen3", "qwen2_vl", "qwen2_5_vl", "instructblip", "blip-2")


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_of_the_loaded_model_is_among_the_paths_that_are_tried(
    kind: str, tiny: Callable[..., Path]
) -> None:
    import torch
    import transformers

    folder = tiny(kind)
    facts_of = read_model(str(folder))
    family = BY_TYPE[str((facts_of.config or {})["model_type"])]
    model = getattr(transformers, family.classes[0]).from_pretrained(folder)
    linears = {n for n, m in model.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Embedding))}
    assert linears - layouts(modules_of(facts_of), family) == set()


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("llava", ["q_proj", "v_proj"]),
        ("llava", ["query_key_value"]),
        ("llava", BY_TYPE["llava"].lora_targets),
        ("llava", r"language_model\.model\.layers\.\d+\.mlp\.up_proj"),
        ("qwen2_vl", BY_TYPE["qwen2_vl"].lora_targets),
        ("qwen2_vl", r"model\.visual\.blocks\.\d+\.attn\.qkv"),
        ("qwen2_vl", ["attn.nothing"]),
        ("instructblip", BY_TYPE["instructblip"].lora_targets),
        ("instructblip", ["qkv_proj"]),
        ("qwen3", ["lm_head"]),
        ("qwen3", r".*\.(gate|up)_projection"),
    ],
)
def test_what_the_check_finds_peft_refuses(kind: str, targets: Any, tiny: Callable[..., Path]) -> None:
    import peft
    import transformers

    folder = tiny(kind)
    family = BY_TYPE[str((read_model(str(folder)).config or {})["model_type"])]
    model = getattr(transformers, family.classes[0]).from_pretrained(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets))
        refused = False
    except ValueError as error:
        refused = "not found" in str(error) or "No modules" in str(error)
    given = tuple(targets) if isinstance(targets, list) else targets
    world = facts({"peft": "0.21.2"}, models=(read_model(str(folder)),))
    request = train(lora={"target_modules": given}, load=load(str(folder)))
    found = bool(findings(lora_targets_absent_from_the_checkpoint, world, request))
    # A pattern of the layout before transformers 4.52 is given the benefit of the doubt.
    assert found == refused or (not found and isinstance(targets, str) and targets.startswith("language_model"))
