"""The linears of a model and the bytes that they hold.

A 4-bit linear of n weights holds ceil(n/2) bytes of nibbles, one byte of scale for each block of 64, and a float32 for
each 256 of those; an 8-bit one holds n bytes and a float32 for each row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

NESTED_BLOCK = 256
ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}


def linears_4bit(model: Any) -> dict[str, Any]:
    """Every 4-bit linear by its name."""
    return {name: m for name, m in linears(model).items() if bits_of(m) == 4}


def linears(model: Any) -> dict[str, Any]:
    """Every linear of the base model, plain or quantised; LoRA's own are left out."""
    import torch

    found = {}
    for name, module in model.named_modules():
        inside = re.search(r"\.(lora_A|lora_B|lora_embedding_[AB])\.", f"{name}.")
        if isinstance(module, torch.nn.Linear) and not inside:
            found[name.replace(".base_layer", "").removeprefix("base_model.model.")] = module
    return found


def bits_of(module: Any) -> int:
    """4, 8, or 16 for one that is not quantised."""
    return {"Params4bit": 4, "Int8Params": 8}.get(type(module.weight).__name__, 16)


def scales(module: Any) -> Any:
    """The row scales of an 8-bit linear, which move from the weight to its state at the first forward."""
    own = getattr(module.weight, "SCB", None)
    return own if own is not None else module.state.SCB


def scale_tensors(state: Any) -> list[Any]:
    """The float scales of a 4-bit linear."""
    if state.nested:
        return [state.state2.absmax, state.offset.reshape(-1)]
    return [state.absmax]


def expected_4bit_bytes(weights: int, blocksize: int = 64, nested: bool = True) -> int:
    """Bytes of one 4-bit linear of so many weights: nibbles and scales, without the fixed tables."""
    blocks = math.ceil(weights / blocksize)
    scales = blocks + 4 * math.ceil(blocks / NESTED_BLOCK) if nested else 4 * blocks
    return math.ceil(weights / 2) + scales


def count(model: Any, found: Mapping[str, Any], plan: Mapping[str, str]) -> dict[str, int]:
    """Weights and bytes as they are and as the formula has them; `plan` is the dtype that each parameter must have."""
    counts = {"parameters": 0, "quantized_weights": 0, "bytes": 0, "expected": 0, "tables": 0, "repacked": 0}
    seen = set()
    for module in found.values():
        bits = bits_of(module)
        if bits == 16:
            continue
        weights = module.in_features * module.out_features
        seen.add(id(module.weight))
        counts["quantized_weights"] += weights
        counts["parameters"] += weights
        if bits == 8:
            rows = scales(module)
            counts["bytes"] += module.weight.nbytes + (0 if rows is None else rows.nbytes)
            counts["expected"] += weights + 4 * module.out_features
            continue
        state = module.weight.quant_state
        if state is None:
            counts["bytes"] += module.weight.nbytes
            counts["expected"] += expected_4bit_bytes(weights)
            continue
        if getattr(state, "packing_format_for_cpu", False):
            counts["repacked"] += 1
        counts["expected"] += expected_4bit_bytes(weights, state.blocksize, state.nested)
        counts["bytes"] += module.weight.nbytes + state.absmax.nbytes
        tables = [state.code]
        if state.nested:
            counts["bytes"] += state.state2.absmax.nbytes
            tables += [state.state2.code, state.offset]
        counts["tables"] += sum(t.nbytes for t in tables)
    for name, parameter in model.named_parameters():
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        counts["parameters"] += parameter.numel()
        counts["bytes"] += parameter.nbytes
        planned = ITEM[plan[name]] if name in plan else parameter.element_size()
        counts["expected"] += parameter.numel() * planned
    return counts
