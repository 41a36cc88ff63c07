"""What a run is refused for before its model is loaded: the adapter, the LoRA configuration, the disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_core.arguments import Course
from qlora_core.checkpoint import Checkpoint, check_adapter
from qlora_core.errors import show_size
from qlora_core.presets import MemoryPlan
from qlora_core.settings import Settings
from qlora_core.tensors import read_json
from qlora_doctor.errors import UsageError

_LORA = {"r": "lora_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}


def judge_lora(asked: Settings, lora: Any) -> None:
    """Raises UsageError for what is no LoRA configuration, or beside a saved adapter."""
    if lora is None:
        return
    if asked.adapter is not None:
        raise UsageError("lora= makes a new adapter and adapter= goes on with a saved one; give one of them")
    if not isinstance(lora, Mapping) and not hasattr(lora, "peft_type"):
        raise UsageError(f"lora is a {type(lora).__name__}; give a PEFT configuration or a dictionary for LoraConfig")


def with_lora(asked: Settings, lora: Any) -> Settings:
    """The settings with what a LoRA configuration of the user's own says of the same things."""
    if lora is None:
        return asked
    said = lora if isinstance(lora, Mapping) else {k: getattr(lora, k, None) for k in _LORA}
    return asked.but(**{ours: said[name] for name, ours in _LORA.items() if said.get(name) is not None})


def judge_adapter(asked: Settings, model: str, known: Checkpoint) -> None:
    """Refuses a saved adapter of another base before the base is loaded.

    Raises:
        UsageError: no adapter, or one of another model.
    """
    if asked.adapter is None:
        return
    check_adapter(asked.adapter)
    folder = Path(asked.adapter).expanduser()
    if not folder.is_dir():
        return
    base = str(read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "")
    other = Path(base).expanduser() / "config.json"
    differs = _difference(read_json(other), known.config) if base and other.is_file() else ""
    differs = differs or _wrong_width(folder, known)
    if differs:
        raise UsageError(
            f"adapter={asked.adapter!r} was made for another model than {model}: {differs}. Give the model that it was "
            "trained on"
        )


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first thing in which two configurations differ that an adapter cannot bridge."""
    for where, a, b in (("", one, other), ("text_config.", one.get("text_config"), other.get("text_config"))):
        if not isinstance(a, Mapping) or not isinstance(b, Mapping):
            continue
        for key in ("model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "d_model", "num_layers"):
            if a.get(key) != b.get(key):
                return f"{where}{key} is {a.get(key)} there and {b.get(key)} here"
    return ""


def _wrong_width(folder: Path, known: Checkpoint) -> str:
    """Whether an adapter's matrices are of widths that the model does not have."""
    from qlora_core.tensors import shapes

    text = known.config.get("text_config")
    places = [c for c in (known.config, text) if isinstance(c, Mapping)]
    hidden = {c[key] for c in places for key in ("hidden_size", "d_model") if key in c}
    for name, shape in shapes(folder, adapter=True).items():
        if name.endswith("q_proj.lora_A.weight") and "vision" not in name and hidden and shape[-1] not in hidden:
            return f"its matrices are {shape[-1]} wide and the model is {' or '.join(map(str, sorted(hidden)))}"
    return ""


def enough_disk(output: Path, plan: MemoryPlan, settings: Settings, run: Course) -> None:
    """Refuses a run whose checkpoints cannot all lie on the disk.

    Raises:
        UsageError: with the figures and what to set.
    """
    b = plan.breakdown
    if b is None:
        return
    adapter = b.trainable * 4
    each = adapter if settings.save_only_model else b.saved
    written = {"no": 0, "epoch": int(run.epochs / settings.save_epochs)}.get(settings.save_strategy)
    if written is None:
        every = settings.save_steps * run.steps if settings.save_steps < 1 else settings.save_steps
        written = int(run.steps / max(1, every))
    # One more than the limit: the oldest goes after the newest is written.
    count = min(written, (settings.save_total_limit or written) + 1)
    needed = count * each + 2 * adapter
    there = next(p for p in (output, *output.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UsageError(
            f"{output}: {count} checkpoints of {show_size(each)} and the adapter take {show_size(needed)}, and "
            f"{show_size(free)} are free there. Set save_total_limit=1, save less often, or name another disk"
        )
