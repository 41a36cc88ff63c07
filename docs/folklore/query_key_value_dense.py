"""Claim: target_modules=["query", "key", "value", "dense"] on InstructBLIP also hits the language model.

Counts where the adapters land, for both language models that InstructBLIP comes with.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from peft import LoraConfig, get_peft_model

from qlora_core.tiny import model, tokenizer

PARTS = ("qformer", "vision_model", "language_model", "language_projection")


def landed(kind: str, targets: Any) -> dict[str, int]:
    """Adapted linears by part of the model."""
    adapted = get_peft_model(model(kind, tokenizer(kind)), LoraConfig(r=4, target_modules=targets))
    names = [name for name, _ in adapted.named_modules() if name.endswith("lora_A.default")]
    return dict(Counter(next(part for part in PARTS if part in name) for name in names))


def measure() -> dict[str, dict[str, int]]:
    """The guide's names, and for comparison what does hit the language model."""
    seen = {}
    for kind in ("instructblip_t5", "instructblip_vicuna"):
        seen[f"{kind}, query/key/value/dense"] = landed(kind, ["query", "key", "value", "dense"])
        seen[f"{kind}, all-linear"] = landed(kind, "all-linear")
    return seen


if __name__ == "__main__":
    for case, seen in measure().items():
        print(f"{case}: {seen}")
