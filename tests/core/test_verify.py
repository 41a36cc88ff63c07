"""The proof after the load: what is wrong is named, and what is right has the bytes of the formula."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_core import NotVerified, load_quantized, verify

Copied = Callable[..., Path]


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Writes the weights of a folder anew after `change`."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = change(load_file(path))
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})


def refused(folder: Path, **arguments: Any) -> str:
    with pytest.raises(NotVerified) as caught:
        load_quantized(folder, gate="off", **arguments)
    return str(caught.value)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_layer_that_the_checkpoint_lacks_is_named(bits: int, copied: Copied) -> None:
    folder = copied("llava")
    rewrite(folder, lambda t: {k: v for k, v in t.items() if "projector.linear_1" not in k})
    said = refused(folder, bits=bits)
    assert "2 weights are random" in said and "multi_modal_projector.linear_1" in said


def test_weights_without_a_place_are_named(copied: Copied) -> None:
    import torch

    folder = copied("qwen3")
    rewrite(folder, lambda t: {**t, "model.extra.weight": torch.ones(2)})
    assert "model.extra.weight" in refused(folder)


def test_buffers_that_old_checkpoints_carry_are_no_problem(copied: Copied) -> None:
    import torch

    folder = copied("llama")
    rewrite(folder, lambda t: {**t, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    assert not load_quantized(folder, gate="off").report.verification.problems  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("place", "value"), [("model.norm.weight", "nan"), ("model.layers.1.mlp.up_proj.weight", "inf")]
)
def test_a_weight_that_is_not_finite_is_named(place: str, value: str, copied: Copied) -> None:
    folder = copied("qwen3")

    def spoil(tensors: dict[str, Any]) -> dict[str, Any]:
        tensors[place].view(-1)[3] = float(value)
        return tensors

    rewrite(folder, spoil)
    assert place.removesuffix(".weight") in refused(folder)


def test_a_linear_that_was_put_back_to_16_bit_is_named(tiny: Callable[..., Path]) -> None:
    import torch

    model, _ = load_quantized(tiny("qwen3"), gate="off")
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(64, 128, bias=False, dtype=torch.bfloat16)
    assert any("layers.1.mlp.up_proj is 16-bit and should be 4-bit" in p for p in verify(model).problems)


def test_a_part_in_another_dtype_is_named_and_its_bytes_are_off(tiny: Callable[..., Path]) -> None:
    model, _ = load_quantized(tiny("llava"), dtype="bfloat16", gate="off")
    model.model.multi_modal_projector.float()
    found = verify(model, bits=4, dtype="bfloat16").problems
    assert any("multi_modal_projector.linear_1.weight is float32 and should be bfloat16" in p for p in found)
    assert any("bytes and should take" in p for p in found)


def test_a_parameter_left_on_meta_is_named(tiny: Callable[..., Path]) -> None:
    import torch

    model, _ = load_quantized(tiny("qwen3"), gate="off")
    model.model.norm.weight = torch.nn.Parameter(torch.empty(64, device="meta"))
    assert any("model.norm.weight was never loaded" in p for p in verify(model).problems)


@pytest.mark.parametrize("weights", [64 * 64, 64 * 128, 65 * 3, 4096 * 11008])
@pytest.mark.parametrize("nested", [True, False])
def test_the_formula_of_bytes_is_exact(weights: int, nested: bool) -> None:
    import torch
    from bitsandbytes import functional

    from qlora_core.linears import expected_4bit_bytes

    if weights > 10**6:
        weights = 1024 * 1100
    packed, state = functional.quantize_4bit(
        torch.randn(weights), quant_type="nf4", blocksize=64, compress_statistics=nested
    )
    held = packed.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if nested else 0)
    assert held == expected_4bit_bytes(weights, 64, nested)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["llava", "qwen3", "instructblip_t5", "blip2_opt", "qwen2_5_vl"])
def test_the_deep_check_passes_with_and_without_adapters_and_leaves_no_trace(
    kind: str, bits: int, tiny: Callable[..., Path]
) -> None:
    import torch

    from qlora_core import attach

    model, _ = load_quantized(tiny(kind), bits=bits, dtype="float32", for_training=True, gate="off")
    model.eval()
    assert not verify(model, deep=True).problems
    assert not model.training
    model = attach(model, r=4)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    seen = verify(model, deep=True)
    assert not seen.problems and "gradients of" in seen.deep[0]
    after = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(torch.equal(before[n], after[n]) and after[n].grad is None for n in before)


def test_the_deep_check_sees_weights_that_are_not_those_of_the_state(tiny: Callable[..., Path]) -> None:
    from qlora_core import attach

    model, _ = load_quantized(tiny("qwen3"), dtype="float32", for_training=True, gate="off")
    model = attach(model, r=4)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    forward = layer.base_layer.forward
    layer.base_layer.forward = lambda x: forward(x) * 1.5
    assert any("gradients are off" in p for p in verify(model, deep=True).problems)


def test_a_mixture_of_experts_says_that_its_experts_stay_in_16_bit(tiny: Callable[..., Path]) -> None:
    report = load_quantized(tiny("qwen3_moe"), gate="off").report
    assert any("fused expert tensors" in w for w in report.warnings)
    assert any("not one that we know" in w for w in report.warnings)


def test_the_command_prints_the_proof_and_exits_with_0_1_or_2(tiny: Callable[..., Path], copied: Copied) -> None:
    from click.testing import CliRunner

    from qlora_core.cli import main

    run = CliRunner().invoke
    good = run(main, ["verify", str(tiny("qwen3")), "--deep"])
    assert good.exit_code == 0 and "14 linears in 4-bit" in good.output and "gradients of" in good.output
    data = run(main, ["verify", str(tiny("qwen3")), "--json", "--gate", "off"])
    assert json.loads(data.stdout[data.stdout.index("{") :])["verification"]["bits"] == 4
    folder = copied("qwen3")
    rewrite(folder, lambda t: {k: v for k, v in t.items() if "layers.1" not in k})
    bad = run(main, ["verify", str(folder)])
    assert bad.exit_code == 1 and "weights are random" in bad.output
    assert run(main, ["verify", str(folder / "nowhere" / "at" / "all")]).exit_code == 2
