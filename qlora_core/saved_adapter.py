"""A saved adapter folder: the base it names, its configuration, and the settings of the run that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_core.checkpoint import check_adapter
from qlora_core.tensors import read_json
from qlora_doctor.errors import UsageError

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True, slots=True)
class SavedAdapter:
    """`base` is "" where the folder names none; `settings` are those of `qlora-core train`, {} for another trainer."""

    folder: Path
    base: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_adapter(name: str) -> SavedAdapter:
    """An adapter folder.

    Raises:
        UsageError: there is no such folder, or it holds no adapter or no weights.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UsageError(f"adapter={name!r}: there is no such folder; give the folder that save_pretrained wrote")
    check_adapter(str(folder))
    if not any((folder / weights).is_file() for weights in WEIGHTS):
        raise UsageError(f"adapter={name!r} holds no {WEIGHTS[0]}; its training did not end, or it was copied in part")
    config = read_json(folder / "adapter_config.json")
    base = config.get("base_model_name_or_path")
    run = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
    settings = run.get("settings")
    return SavedAdapter(
        folder, base if isinstance(base, str) else "", config, settings if isinstance(settings, Mapping) else {}
    )
