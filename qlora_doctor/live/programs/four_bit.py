"""Quantises a weight to NF4, takes it back, and multiplies with it, against a reference in plain torch."""

from __future__ import annotations

from typing import Any

# The 16 values of NF4 (QLoRA, appendix E); written out, so that what is tried does not judge itself.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
BLOCK = 64


def main(arguments: list[str]) -> dict[str, object]:
    """`arguments`: the compute dtype, the device."""
    import bitsandbytes
    import torch
    from bitsandbytes import functional

    dtype = getattr(torch, arguments[0])
    torch.manual_seed(0)
    weight = torch.randn(128, 256, dtype=torch.float32)
    given = weight.to(dtype)
    reference = dequantized(given.float())
    packed, state = functional.quantize_4bit(given.to(arguments[1]), blocksize=BLOCK, quant_type="nf4")
    back = functional.dequantize_4bit(packed, state).float().cpu()
    error = float((back - reference).abs().max())
    # bfloat16 keeps eight bits of numbers up to about 4.
    if not error < 0.05:
        return {"outcome": "failed", "detail": f"dequantised weights are off by {error:.3g}"}
    for rows in (1, 8):  # one row takes another kernel than several
        left = torch.randn(rows, 256, dtype=torch.float32).to(dtype)
        product = bitsandbytes.matmul_4bit(left.to(arguments[1]), packed.t(), state).float().cpu()
        expected = left.float() @ reference.t()
        off = float((product - expected).abs().max() / expected.abs().max())
        if not off < 0.05:
            what = f"a product of {rows} rows is off by {off:.1%}"
            return {"outcome": "failed", "detail": what}
    return {"outcome": "ok"}


def dequantized(weight: Any) -> Any:
    """`weight` (float32) as NF4 keeps it: the nearest of 16 values, scaled by the largest of each 64."""
    import torch

    values = torch.tensor(NF4)
    blocks = weight.reshape(-1, BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    index = (blocks.div(scale).unsqueeze(-1) - values).abs().argmin(dim=-1)
    return (values[index] * scale).reshape(weight.shape)
