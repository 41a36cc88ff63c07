"""`load_quantized` on every family: the numbers are right, before, during and after training."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

KINDS = (
    "llava",
    "llava_next",
    "llama",
    "qwen2",
    "qwen3",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "instructblip_t5",
    "instructblip_vicuna",
    "blip2_opt",
    "blip2_t5",
)
every_kind = pytest.mark.parametrize("kind", KINDS)
every_dtype = pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
# Largest difference of a logit, as a part of the range of the logits. 4-bit against unquantised: what NF4 costs a
# random model. Against a copy with the same, dequantised weights: only rounding is left.
NF4_COSTS = 0.35
ROUNDING = {"float32": 1e-4, "bfloat16": 0.06}


def logits(model: Any, inputs: dict[str, Any]) -> Any:
    import torch

    with torch.no_grad():
        return model(**inputs).logits.float()


def off(got: Any, wanted: Any) -> float:
    """The largest difference as a part of the range."""
    return float((got - wanted).abs().max() / (wanted.max() - wanted.min()))


def dequantized_copy(quantized: Any, folder: Path) -> Any:
    """The unquantised float32 model with the quantised model's weights, by bitsandbytes' own dequantisation."""
    import bitsandbytes
    import torch

    from qlora_core import load_quantized

    plain, _ = load_quantized(folder, bits=16, dtype="float32", gate="off")
    with torch.no_grad():
        for name, module in quantized.named_modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
                plain.get_submodule(name).weight.copy_(weight.float())
    return plain


@every_kind
@every_dtype
@pytest.mark.parametrize("for_training", [False, True], ids=["eval", "train"])
def test_a_4_bit_model_answers_like_the_unquantised_one(
    kind: str, dtype: str, for_training: bool, tiny: Callable[..., Path], batch: Callable[..., dict[str, Any]]
) -> None:
    from qlora_core import load_quantized

    folder = tiny(kind)
    model, processor = load_quantized(folder, dtype=dtype, for_training=for_training)
    assert model.training is for_training
    plain, plain_processor = load_quantized(folder, bits=16, dtype="float32", gate="off")
    model.eval()
    got = logits(model, batch(kind, model, processor))
    inputs = batch(kind, plain, plain_processor)
    assert off(got, logits(plain, inputs)) < NF4_COSTS
    assert off(got, logits(dequantized_copy(model, folder), inputs)) < ROUNDING[dtype]


@every_kind
def test_an_eval_forward_before_training_does_not_spoil_the_gradients(
    kind: str, tiny: Callable[..., Path], batch: Callable[..., dict[str, Any]]
) -> None:
    from qlora_core import attach, load_quantized

    def gradients(evaluate: bool) -> dict[str, Any]:
        import torch

        model, processor = load_quantized(tiny(kind), dtype="float32", for_training=True, gate="off")
        torch.manual_seed(0)
        model = attach(model, r=4, init_lora_weights=False)
        inputs = batch(kind, model, processor)
        if evaluate:
            model.eval()
            logits(model, inputs)
            model.train()
        torch.manual_seed(0)  # T5 and the Q-Former have dropout.
        model(**inputs).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    untouched, after = gradients(False), gradients(True)
    assert untouched and all(g is not None and float(g.abs().sum()) > 0 for g in untouched.values())
    for name, gradient in untouched.items():
        assert float((gradient - after[name]).abs().max()) <= 1e-6 * float(gradient.abs().max()) + 1e-9, name


@every_kind
def test_an_adapter_is_saved_and_reloaded_with_the_same_answers(
    kind: str, tiny: Callable[..., Path], batch: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    import torch

    from qlora_core import attach, load_quantized

    torch.manual_seed(0)
    model, processor = load_quantized(tiny(kind), dtype="float32", for_training=True, gate="off")
    model = attach(model, r=4, init_lora_weights=False)
    model.eval()
    inputs = batch(kind, model, processor)
    trained = logits(model, inputs)
    model.save_pretrained(tmp_path / "adapter")
    again, _ = load_quantized(tiny(kind), dtype="float32", adapter=tmp_path / "adapter", gate="off")
    assert torch.equal(logits(again, inputs), trained)
    bare, _ = load_quantized(tiny(kind), dtype="float32", gate="off")
    assert off(logits(bare, inputs), trained) > 0.01


@pytest.mark.parametrize("kind", ["llava", "qwen3", "qwen2_vl", "instructblip_t5"])
def test_a_merge_after_an_eval_forward_gives_the_sum_of_weight_and_adapter(
    kind: str, tiny: Callable[..., Path], batch: Callable[..., dict[str, Any]]
) -> None:
    import bitsandbytes

    from qlora_core import attach, load_quantized

    def weight(layer: Any) -> Any:
        return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()

    def delta(layer: Any) -> Any:
        return layer.get_delta_weight("default").detach().float()

    model, processor = load_quantized(tiny(kind), dtype="float32", for_training=True, gate="off")
    model = attach(model, r=4, init_lora_weights=False)
    model.eval()
    logits(model, batch(kind, model, processor))
    wanted = {
        name: weight(layer.base_layer) + delta(layer)
        for name, layer in model.base_model.model.named_modules()
        if hasattr(layer, "lora_A") and hasattr(layer.base_layer.weight, "quant_state")
    }
    merged = model.merge_and_unload()
    assert len(wanted) >= 14
    for name, expected in wanted.items():
        error = float((weight(merged.get_submodule(name)) - expected).norm() / expected.norm())
        assert error < 0.12, name  # It is quantised once more; a merge of repacked weights is off by more than 1.


@every_kind
@pytest.mark.parametrize("bits", [8, 16])
def test_8_and_16_bits_go_the_same_way_and_are_verified(
    kind: str, bits: int, tiny: Callable[..., Path], batch: Callable[..., dict[str, Any]]
) -> None:
    from qlora_core import load_quantized

    loaded = load_quantized(tiny(kind), bits=bits, dtype="float32")
    plain, processor = load_quantized(tiny(kind), bits=16, dtype="float32", gate="off")
    seen = loaded.report.verification
    assert seen is not None and not seen.problems and seen.bits == bits
    assert (seen.quantized > 0) is (bits == 8)
    inputs = batch(kind, plain, processor)
    assert off(logits(loaded.model, inputs), logits(plain, inputs)) < (0.05 if bits == 8 else 1e-6)


@pytest.mark.parametrize("kind", ["llava", "qwen3", "instructblip_t5", "qwen2_vl"])
def test_lora_lands_on_the_language_model_alone_and_in_float32(kind: str, tiny: Callable[..., Path]) -> None:
    import torch

    from qlora_core import attach, load_quantized
    from qlora_core.adapters import placed

    model, _ = load_quantized(tiny(kind), for_training=True, gate="off")
    model = attach(model, r=4)
    assert set(placed(model)) == {"language model"}
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert trainable and all(p.dtype is torch.float32 for p in trainable)


def test_preparing_for_training_leaves_every_dtype_and_byte_as_it_was(tiny: Callable[..., Path]) -> None:
    from qlora_core import load_quantized, prepare, verify

    model, _ = load_quantized(tiny("qwen3"), dtype="bfloat16", gate="off")
    before = verify(model)
    after = verify(prepare(model))
    assert after.bytes == before.bytes and after.dtypes == before.dtypes
    assert not any(p.requires_grad for p in model.parameters())


def test_training_learns(tiny: Callable[..., Path], batch: Callable[..., dict[str, Any]]) -> None:
    import torch

    from qlora_core import attach, load_quantized

    model, processor = load_quantized(tiny("llava"), for_training=True, gate="off")
    model = attach(model, r=8)
    inputs = batch("llava", model, processor)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_an_adapter_folder_as_model_loads_its_base_under_it(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from qlora_core import attach, load_quantized

    model, _ = load_quantized(tiny("qwen3"), for_training=True, gate="off")
    attach(model, r=4).save_pretrained(tmp_path / "adapter")
    loaded = load_quantized(tmp_path / "adapter", gate="off")
    assert type(loaded.model).__name__ == "PeftModelForCausalLM"
    assert [c.code for c in loaded.report.changes if c.argument == "model"] == ["adapter-base"]


def test_a_model_saved_in_4_bit_is_loaded_as_it_is(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from qlora_core import ModelProblem, load_quantized

    model, processor = load_quantized(tiny("llava"), gate="off")
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again = load_quantized(tmp_path / "saved", gate="off")
    seen = again.report.verification
    assert seen is not None and seen.quantized == 14 and not seen.problems
    with pytest.raises(ModelProblem, match="give bits=4"):
        load_quantized(tmp_path / "saved", bits=8, gate="off")


def test_the_vision_tower_is_quantised_when_asked_and_the_projector_is_not(tiny: Callable[..., Path]) -> None:
    from qlora_core import load_quantized
    from qlora_core.linears import linears_4bit

    model, _ = load_quantized(tiny("llava"), quantize_vision=True, gate="off")
    names = linears_4bit(model)
    assert sum("vision_tower" in n for n in names) == 18
    assert not any("projector" in n or n == "lm_head" for n in names)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import qlora_core, sys; assert not {'torch', 'transformers', 'peft', 'bitsandbytes'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_load_unpacks_into_two_and_its_report_is_text_data_and_html(tiny: Callable[..., Path]) -> None:
    import json

    from qlora_core import load_quantized

    loaded = load_quantized(tiny("qwen3"), gate="off")
    model, processor = loaded
    assert model is loaded.model and processor is loaded.processor
    report = loaded.report
    data = json.loads(json.dumps(report.to_dict()))
    assert data["verification"]["quantized"] == 14 and data["seconds"]["weights"] > 0
    assert "14 linears in 4-bit" in str(report) and "<table>" in report._repr_html_()
