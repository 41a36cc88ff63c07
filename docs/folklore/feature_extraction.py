"""Claim: task_type=FEATURE_EXTRACTION keeps LoRA to the Q-Former and halves the memory.

Adapts a tiny InstructBLIP with and without it, and counts the adapted linears, the trainable weights and the bytes that
one step keeps for its backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from qlora_core.tiny import model, tokenizer


def kept_bytes(adapted: Any, inputs: dict[str, Any]) -> int:
    """The bytes that autograd keeps from the forward pass for the backward pass; each storage once."""
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = adapted(**inputs).loss
    loss.backward()
    return sum(storages.values())


def adapted_by(task_type: str | None, targets: Any) -> dict[str, int]:
    """What one configuration gives."""
    words = tokenizer("instructblip_vicuna")
    lora = LoraConfig(r=4, target_modules=targets, task_type=task_type)
    adapted = get_peft_model(model("instructblip_vicuna", words), lora).train()
    text = words("a red cat on a blue chair", return_tensors="pt")["input_ids"].repeat(4, 8)
    ids = torch.cat([torch.full((4, 4), words.convert_tokens_to_ids("<image>")), text], 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    inputs |= {"qformer_input_ids": text, "qformer_attention_mask": torch.ones_like(text)}
    inputs["pixel_values"] = torch.rand(4, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    return {
        "adapted linears": sum(name.endswith("lora_A.default") for name, _ in adapted.named_modules()),
        "trainable weights": sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        "bytes kept for the backward pass": kept_bytes(adapted, inputs),
    }


def measure() -> dict[str, dict[str, int]]:
    """Without and with the task type; and with adapters on the language model as well."""
    names = ["query", "key", "value", "dense"]
    return {
        "no task_type": adapted_by(None, names),
        "FEATURE_EXTRACTION": adapted_by("FEATURE_EXTRACTION", names),
        "no task_type, language model adapted too": adapted_by(None, [*names, "q_proj", "k_proj", "v_proj", "o_proj"]),
    }


if __name__ == "__main__":
    for case, seen in measure().items():
        print(f"{case}: {seen}")
