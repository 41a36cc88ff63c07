"""Claim: float16 is more stable than bfloat16.

Runs one tiny Llama in both, as it is and with a first MLP whose activations are too large for float16.
"""

from __future__ import annotations

from typing import Any

import torch

from qlora_core.tiny import model, tokenizer


def loss(dtype: torch.dtype, scale: float) -> float:
    """The loss of one row with the first MLP's output multiplied by `scale`."""
    words = tokenizer("llama")
    built = model("llama", words)
    with torch.no_grad():
        built.model.layers[0].mlp.up_proj.weight.mul_(scale)
        built.model.layers[0].mlp.down_proj.weight.mul_(scale)
    built = built.to(dtype).eval()
    ids = words("A red cat sits on a blue chair", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return float(built(input_ids=ids, labels=ids).loss)


def measure() -> dict[str, Any]:
    """Range, fineness, and the losses."""
    half, brain = torch.finfo(torch.float16), torch.finfo(torch.bfloat16)
    return {
        "largest number: float16, bfloat16": [half.max, brain.max],
        "relative step: float16, bfloat16": [half.eps, brain.eps],
        "ordinary activations, loss: float32, float16, bfloat16": [
            loss(d, 1.0) for d in (torch.float32, torch.float16, torch.bfloat16)
        ],
        "large activations, loss: float32, float16, bfloat16": [
            loss(d, 3000.0) for d in (torch.float32, torch.float16, torch.bfloat16)
        ],
    }


if __name__ == "__main__":
    for case, seen in measure().items():
        print(f"{case}: {seen}")
