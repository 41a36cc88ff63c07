"""Claim: a missing `torch_dtype` makes a 4-bit load crash (exit code 139), and giving it cures that.

Loads two tiny LLaVA checkpoints in NF4 on the CPU, with and without a dtype: one in the layout that transformers reads,
one in the layout of LLaVA's authors. What decides is the layout.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

from qlora_core.tiny import build


def authors_layout(good: Path, folder: Path) -> Path:
    """The same weights under the names that LLaVA's own code gives them: no vision tower, a renamed projector."""
    folder.mkdir()
    kept = {}
    for name, tensor in load_file(good / "model.safetensors").items():
        if "vision_tower" not in name:
            name = name.replace("language_model.", "").replace("multi_modal_projector.linear_1", "mm_projector.0")
            kept["model." + name.removeprefix("model.").replace("projector.linear_2", "projector.2")] = tensor
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((good / "config.json").read_text())
    config |= {"architectures": ["LlavaLlamaForCausalLM"], "mm_projector_type": "mlp2x_gelu"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def loaded(folder: Path, **arguments: Any) -> dict[str, Any]:
    """What a 4-bit load of this folder gives."""
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
    model, info = LlavaForConditionalGeneration.from_pretrained(
        folder, quantization_config=four, device_map="cpu", output_loading_info=True, **arguments
    )
    weights = [m.weight for m in model.modules() if type(m).__name__ == "Linear4bit"]
    return {
        "weights missing from the file": len(info["missing_keys"]),
        "linears really in 4 bit": sum(getattr(w, "quant_state", None) is not None for w in weights),
        "linears that should be": len(weights),
    }


def measure(work: Path) -> dict[str, dict[str, Any]]:
    """The four cases."""
    good = build("llava", work / "good", dtype="float16")
    other = authors_layout(good, work / "authors")
    return {
        "transformers' layout, dtype given": loaded(good, dtype=torch.float16),
        "transformers' layout, dtype missing": loaded(good),
        "the authors' layout, dtype given": loaded(other, dtype=torch.float16),
        "the authors' layout, dtype missing": loaded(other),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        for case, seen in measure(Path(work)).items():
            print(f"{case}: {seen}")
