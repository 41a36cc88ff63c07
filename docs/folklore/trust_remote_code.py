"""Claim: `trust_remote_code=True` conflicts with a quantised load and should be removed there.

Loads a tiny LLaVA in NF4 with and without it and compares every tensor. Then asks the files whether there is any remote
code to trust.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

from qlora_core.tiny import build


def tensors(folder: Path, **arguments: Any) -> dict[str, Any]:
    """The parameters after a 4-bit load, packed as they lie in memory."""
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = LlavaForConditionalGeneration.from_pretrained(
        folder, quantization_config=four, dtype=torch.bfloat16, device_map="cpu", **arguments
    )
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def measure(work: Path) -> dict[str, Any]:
    """How many tensors there are, how many differ, and whether the repository has code at all."""
    folder = build("llava", work / "model")
    without, trusting = tensors(folder), tensors(folder, trust_remote_code=True)
    config = json.loads((folder / "config.json").read_text())
    return {
        "tensors": len(without),
        "tensors that differ": sum(not torch.equal(without[name], trusting[name]) for name in without),
        "the repository names code to run (auto_map)": "auto_map" in config,
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        print(measure(Path(work)))
