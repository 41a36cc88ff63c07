"""The deep part of `verify`: one forward, and gradients against a dequantised reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qlora_doctor.families import Family

LAYERS = 6
ROWS = 8
# Relative to the largest value of the reference; a bfloat16 has 8 bits of mantissa and a sum of thousands of products.
TOLERANCE = {"float32": 2e-3, "float16": 2e-2, "bfloat16": 6e-2}


def deep_check(model: Any, family: Family | None) -> tuple[list[str], list[str]]:
    """Problems found, and a line that says what was compared.

    Runs in training mode (an eval forward can repack 4-bit weights on some CPUs) and restores every mode, gradient
    and weight that it touches.
    """
    import torch

    with _training(model), torch.enable_grad():
        problems = _forward(model, family)
        names = _chosen(model)
        worst = 0.0
        for name in names:
            error, limit = _compare(model.get_submodule(name))
            worst = max(worst, error)
            if not error <= limit:
                problems.append(f"{name}: gradients are off by {error:.1e} of their range against a dequantised copy")
    return problems, [
        f"one forward, and the gradients of {len(names)} linears: off by {worst:.1e} of their range at most"
    ]


@contextmanager
def _training(model: Any) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _forward(model: Any, family: Family | None) -> list[str]:
    """One forward of the language model on a few tokens; a vision model without an image is a text model."""
    import torch

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    table = inner.get_input_embeddings().weight
    ids = torch.arange(ROWS, device=table.device).reshape(1, -1) % table.shape[0]
    words: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family is not None and family.layout.qformer:
        inner = inner.get_submodule(family.layout.language_model)
    if getattr(inner.config, "is_encoder_decoder", False):
        words["decoder_input_ids"] = ids
    out = inner(**words)
    if not bool(torch.isfinite(out.logits).all()):
        return ["a forward gives logits that are NaN or infinite"]
    return []


def _chosen(model: Any) -> list[str]:
    """Some quantised linears, those with adapters first, spread over the depth of the model."""
    names = [n for n, m in model.named_modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")]
    with_lora = [n for n in names if hasattr(model.get_submodule(n), "lora_A")]
    names = with_lora or [n for n in names if type(model.get_submodule(n)).__name__ == "Linear4bit"]
    step = max(1, len(names) // LAYERS)
    return names[::step][:LAYERS]


def _compare(layer: Any) -> tuple[float, float]:
    """The largest relative difference of output and gradients between a linear and its reference, and what is allowed."""
    import torch

    base = getattr(layer, "base_layer", layer)
    compute = base.compute_dtype if getattr(base, "compute_dtype", None) is not None else torch.float32
    weight = _dequantized(base).to(compute)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, base.in_features, generator=generator).to(weight.device, compute).requires_grad_()
    towards = torch.randn(ROWS, base.out_features, generator=generator).to(weight.device, compute)
    lora = _lora(layer)
    with _random_b(lora):
        wanted = [x, *(p for pair in lora for p in pair[:2])]
        got = _outcome(layer(x), towards, wanted)
        y = torch.nn.functional.linear(x, weight, None if base.bias is None else base.bias.to(compute))
        for a, b, scale in lora:
            y = y + (scale * torch.nn.functional.linear(torch.nn.functional.linear(x.to(a.dtype), a), b)).to(y.dtype)
        expected = _outcome(y, towards, wanted)
    off = max(
        float((g.float() - e.float()).abs().max() / e.float().abs().max().clamp_min(1e-12))
        for g, e in zip(got, expected, strict=True)
    )
    return off, TOLERANCE[str(compute).removeprefix("torch.")] * (5 if type(base).__name__ == "Linear8bitLt" else 1)


def _outcome(y: Any, towards: Any, wanted: list[Any]) -> list[Any]:
    import torch

    return [y.detach(), *torch.autograd.grad((y * towards.to(y.dtype)).sum(), wanted)]


def _dequantized(base: Any) -> Any:
    import bitsandbytes as bnb

    if type(base).__name__ == "Linear8bitLt":
        scales = base.weight.SCB if getattr(base.weight, "SCB", None) is not None else base.state.SCB
        return bnb.functional.int8_vectorwise_dequant(base.weight.data, scales)
    return bnb.functional.dequantize_4bit(base.weight.data, base.weight.quant_state)


def _lora(layer: Any) -> list[tuple[Any, Any, float]]:
    """The active adapters of a linear: A, B and scale, those without dropout."""
    if not hasattr(layer, "lora_A"):
        return []
    found = []
    for name in layer.active_adapters:
        if name in layer.lora_A:
            layer.lora_dropout[name].eval()
            found.append((layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]))
    return [t for t in found if t[0].requires_grad]


@contextmanager
def _random_b(lora: list[tuple[Any, Any, float]]) -> Iterator[None]:
    """Fresh adapters have B = 0 and so no gradient in A; B is random meanwhile, and put back."""
    import torch

    saved = [b.detach().clone() for _, b, _ in lora]
    with torch.no_grad():
        for _, b, _ in lora:
            b.normal_(0.0, 0.1)
    try:
        yield
    finally:
        with torch.no_grad():
            for (_, b, _), old in zip(lora, saved, strict=True):
                b.copy_(old)
