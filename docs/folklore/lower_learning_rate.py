"""Claim: NaN from the second step on is cured by a lower learning rate, a smaller rank, clipping and warm-up.

Trains a tiny InstructBLIP's Q-Former with LoRA weights in float16 and in float32. In float16 AdamW's epsilon of 1e-8 is
zero, and the first gradient of every lora_A is exactly zero (lora_B starts at zero): 0 / (sqrt(0) + 0).
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from qlora_core.tiny import model, tokenizer

STEPS = 4


def row(words: Any) -> dict[str, Any]:
    """One row of text and picture; the tensors are made by hand."""
    picture = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    text = words("a red cat on a blue chair", return_tensors="pt")["input_ids"]
    ids = torch.cat([torch.full((1, 4), words.convert_tokens_to_ids("<image>")), text], 1)
    labels = ids.clone()
    labels[:, :4] = -100
    rest = {"qformer_input_ids": text, "qformer_attention_mask": torch.ones_like(text)}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": picture, **rest}


def losses(
    base: Any, rank: int = 4, dtype: str = "float32", learning_rate: float = 1e-4, eps: float = 1e-8
) -> list[float]:
    """The losses of a few steps, with gradients clipped to 0.1."""
    inputs = row(tokenizer("instructblip_vicuna"))
    inputs["pixel_values"] = inputs["pixel_values"].half()
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=r".*qformer.*\.(query|key|value)")
    adapted = get_peft_model(copy.deepcopy(base), lora)
    learned = [p for p in adapted.parameters() if p.requires_grad]
    for parameter in learned:
        parameter.data = parameter.data.to(getattr(torch, dtype))
    optimizer = torch.optim.AdamW(learned, lr=learning_rate, eps=eps)
    seen = []
    for _ in range(STEPS):
        loss = adapted(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 0.1)
        optimizer.step()
        optimizer.zero_grad()
        seen.append(round(float(loss.detach()), 4))
    return seen


def measure() -> dict[str, list[float]]:
    """The losses of each cure."""
    base = model("instructblip_vicuna", tokenizer("instructblip_vicuna")).half()
    return {
        "float16 adapter": losses(base, dtype="float16"),
        "float16 adapter, rate 5e-6 (a twentieth)": losses(base, dtype="float16", learning_rate=5e-6),
        "float16 adapter, rate 5e-9": losses(base, dtype="float16", learning_rate=5e-9),
        "float16 adapter, rank 1": losses(base, dtype="float16", rank=1),
        "float16 adapter, epsilon 1e-4": losses(base, dtype="float16", eps=1e-4),
        "float32 adapter": losses(base),
    }


if __name__ == "__main__":
    for case, seen in measure().items():
        print(f"{'NaN   ' if any(map(math.isnan, seen)) else 'finite'} {case}: {seen}")
