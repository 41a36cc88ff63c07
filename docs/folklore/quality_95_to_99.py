"""Claim: QLoRA reaches 95 to 99 % of the quality of LoRA.

Of what? The share that NF4 loses depends on the weights and on what is measured. This quantises three kinds of weights
and gives the error of the weights and of a product. With `python quality_95_to_99.py DIR` it also takes a real model
(a folder) and measures the loss on a few sentences in 16 bit, NF4 and FP4.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch

SENTENCES = (
    "Water boils at one hundred degrees Celsius at sea level, and at a lower temperature on a mountain.",
    "The capital of France is Paris, which lies on the river Seine.",
    "To bake bread, mix flour, water, yeast and salt, let the dough rise, and bake it in a hot oven.",
    "A prime number is a natural number greater than one that is not a product of two smaller numbers.",
)


def error(weights: torch.Tensor, kind: str) -> float:
    """The relative error (root mean square) of weights after 4 bit and back."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weights, blocksize=64, quant_type=kind)
    return float((dequantize_4bit(packed, state) - weights).norm() / weights.norm())


def measure() -> dict[str, dict[str, float]]:
    """Relative errors of NF4 and FP4."""
    random = torch.Generator().manual_seed(0)
    normal = torch.randn(1024, 1024, generator=random)
    # Two of a thousand weights are twenty times as large.
    spiked = torch.where(torch.rand(1024, 1024, generator=random) < 0.002, 20 * normal, normal)
    flat = 2 * torch.rand(1024, 1024, generator=random) - 1
    kinds = {"normal weights": normal, "uniform weights": flat, "normal weights with outliers": spiked}
    return {name: {kind: round(error(w, kind), 4) for kind in ("nf4", "fp4")} for name, w in kinds.items()}


def losses(folder: str) -> dict[str, float]:
    """The mean loss of a real model on the sentences, in 16 bit, NF4 and FP4."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    words = AutoTokenizer.from_pretrained(folder)
    seen = {}
    for kind in ("16 bit", "nf4", "fp4"):
        four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind) if kind != "16 bit" else None
        arguments: dict[str, Any] = {"quantization_config": four} if four else {}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu", **arguments).eval()
        total = 0.0
        for sentence in SENTENCES:
            ids = words(sentence, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                total += float(model(input_ids=ids, labels=ids).loss) / len(SENTENCES)
        seen[kind] = round(total, 4)
    return seen


if __name__ == "__main__":
    for name, errors in measure().items():
        print(f"relative error, {name}: {errors}")
    for folder in sys.argv[1:]:
        seen = losses(folder)
        more = {k: f"{math.expm1(v - seen['16 bit']):+.1%} perplexity" for k, v in seen.items() if k != "16 bit"}
        print(f"{folder}: loss {seen}; {more}")
