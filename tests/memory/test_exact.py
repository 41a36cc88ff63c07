"""Weights and LoRA, to the byte: tiny models of every family are loaded in 4 bit and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.families import BY_TYPE
from qlora_doctor.memory.formula import packed_weight_bytes, plain_weight_bytes, quantised, trainable
from qlora_doctor.memory.settings import Settings
from qlora_doctor.memory.shapes import Shape, shape_of

KINDS = (
    "llava", "llava_next", "llama", "qwen2", "qwen3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "instructblip_vicuna",
    "instructblip_t5", "blip2_opt", "blip2_t5",
)  # fmt: skip
pytestmark = pytest.mark.torch


def predicted(shape: Shape, s: Settings) -> tuple[int, int]:
    return sum(packed_weight_bytes(p, s) for p in shape.parts), sum(plain_weight_bytes(p, s) for p in shape.parts)


def loaded(folder: Path, kept: tuple[str, ...] | None, double: bool) -> tuple[Any, int, int, int]:
    """The model, its quantised bytes (weights, scales, tables), the bytes of the rest, and the number of 4-bit matrices."""
    import torch
    import transformers as t

    config = json.loads((folder / "config.json").read_text())
    cls = getattr(t, config["architectures"][0])
    quantisation = t.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        llm_int8_skip_modules=list(kept) if kept is not None else None,
    )
    model = cls.from_pretrained(folder, quantization_config=quantisation, dtype=torch.bfloat16, device_map={"": "cpu"})
    packed = rest = matrices = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is None:
            rest += parameter.numel() * parameter.element_size()
            continue
        matrices += 1
        packed += parameter.numel() * parameter.element_size()
        for inner in (state, state.state2):
            tensors = vars(inner).values() if inner is not None else ()
            packed += sum(x.numel() * x.element_size() for x in tensors if isinstance(x, torch.Tensor))
    return model, packed, rest, matrices


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from qlora_core.tiny import build

    root = tmp_path_factory.mktemp("models")

    def get(kind: str) -> Path:
        return root / kind if (root / kind).exists() else build(kind, root / kind, processor=False)

    return get


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_a_load_with_the_towers_kept_are_exact(kind: str, double: bool, folders: Any) -> None:
    folder = folders(kind)
    shape = shape_of(json.loads((folder / "config.json").read_text()), kind)
    s = Settings(double_quant=double)
    _, packed, rest, matrices = loaded(folder, BY_TYPE[shape.model_type].kept(), double)
    assert predicted(shape, s) == (packed, rest)
    assert sum(x.count for p in shape.parts for x in quantised(p, s)) == matrices > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_a_load_that_keeps_only_the_head_are_exact(kind: str, folders: Any) -> None:
    folder = folders(kind)
    shape = shape_of(json.loads((folder / "config.json").read_text()), kind)
    _, packed, rest, _ = loaded(folder, None, True)
    assert predicted(shape, Settings(kept=())) == (packed, rest)


@pytest.mark.parametrize("kind", [k for k in KINDS if "v" in k or "blip" in k])
def test_the_bytes_of_a_load_with_the_vision_tower_in_4_bit_too_are_exact(kind: str, folders: Any) -> None:
    folder = folders(kind)
    shape = shape_of(json.loads((folder / "config.json").read_text()), kind)
    _, packed, rest, _ = loaded(folder, BY_TYPE[shape.model_type].kept(True), True)
    assert predicted(shape, Settings(kept=("projector", "Q-Former"))) == (packed, rest)


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_trainable_parameters_is_exact(kind: str, folders: Any) -> None:
    from qlora_core.adapters import attach, prepare

    folder = folders(kind)
    shape = shape_of(json.loads((folder / "config.json").read_text()), kind)
    model, *_ = loaded(folder, BY_TYPE[shape.model_type].kept(), True)
    adapted = attach(prepare(model), r=8)
    learns = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trainable(shape, Settings(rank=8)) == learns > 0
