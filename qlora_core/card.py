"""The model card of an adapter: what it is, from what, how it was made, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def model_card(run: Mapping[str, Any]) -> str:
    """README.md for an adapter, from its run.json. Nothing of the data's text is quoted."""
    settings, result = run["settings"], run.get("result", {})
    base = str(run["model"]["name"])
    vision = bool(run["model"].get("vision"))
    head = {
        "base_model": base,
        "library_name": "peft",
        "pipeline_tag": "image-text-to-text" if vision else "text-generation",
        "tags": ["qlora", "lora", f"{settings['bits']}-bit"],
    }
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()), "---", ""]
    lines += [f"# Adapter for {base}", ""]
    lines.append(
        f"A LoRA adapter (rank {settings['lora_r']}) trained on {base} in {settings['bits']} bit with QLoRA Doctor "
        f"{run.get('qlora_doctor', '')}.".replace(" .", ".")
    )
    lines += ["", "## Use", "", "```python", "from qlora_core import load_quantized", ""]
    lines += [f"model, processor = load_quantized({json.dumps(base)}, adapter=ADAPTER)", "```", ""]
    lines += ["## Training", "", "| | |", "|---|---|"]
    rows = {
        "rows": run["data"].get("rows"),
        "format": run["data"].get("format"),
        "steps": result.get("steps"),
        "first and last loss": _losses(result),
        "eval loss": result.get("eval_loss"),
        "learning rate": settings["learning_rate"],
        "rows a step": result.get("rows_a_step"),
        "longest row": settings["max_length"],
        "trained part": settings["train"],
        "seed": settings["seed"],
        **(result.get("metrics") or {}),
    }
    lines += [f"| {name} | {_show(value)} |" for name, value in rows.items() if value not in (None, "")]
    lines += ["", "Versions: " + ", ".join(f"{k} {v}" for k, v in run.get("versions", {}).items()) + ".", ""]
    lines += ["`run.json` beside this file holds every setting, so that the run can be repeated.", ""]
    return "\n".join(lines)


def _losses(result: Mapping[str, Any]) -> str | None:
    first, last = result.get("first_loss"), result.get("last_loss")
    return None if first is None or last is None else f"{first:.4g}, {last:.4g}"


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
