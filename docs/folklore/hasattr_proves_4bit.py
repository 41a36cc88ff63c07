"""Claim: `hasattr(model.config, "quantization_config")` proves that the model is in 4 bit.

Loads a tiny Llama whose every layer is on the skip list, asks the attribute, and then the weights.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from qlora_core.tiny import build


def asked(folder: Path, skip: list[str]) -> dict[str, Any]:
    """The guide's question and the real one."""
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=skip)
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=four, dtype=torch.bfloat16, device_map="cpu"
    )
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    return {
        "hasattr(config, 'quantization_config')": hasattr(model.config, "quantization_config"),
        "linears in 4 bit": sum(getattr(m.weight, "quant_state", None) is not None for m in linears),
        "linears": len(linears),
    }


def measure(work: Path) -> dict[str, dict[str, Any]]:
    """An ordinary load, and one that quantises nothing."""
    folder = build("llama", work / "model")
    return {"ordinary": asked(folder, ["lm_head"]), "everything skipped": asked(folder, ["model", "lm_head"])}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        for case, seen in measure(Path(work)).items():
            print(f"{case}: {seen}")
