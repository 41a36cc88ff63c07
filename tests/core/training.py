"""A tiny model, rows and a trainer for the tests of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def tiny_lora(folder: Path, dtype: str = "float32", **lora: Any) -> Any:
    """A loaded 4-bit model with rank-4 adapters; the same weights every time."""
    import torch

    from qlora_core import attach, load_quantized

    model, _ = load_quantized(folder, device="cpu", dtype=dtype, for_training=True, gate="off")
    torch.manual_seed(0)
    return attach(model, **{"r": 4, **lora})


def make_rows(count: int = 24, seed: int = 1) -> list[dict[str, list[int]]]:
    """Rows of 8 to 14 tokens, of which the second half is learned: each answer repeats its question."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        half = 4 + index % 4
        ids = torch.randint(100, 300, (half,), generator=draw).tolist()
        rows.append({"input_ids": ids + ids, "labels": [-100] * half + ids})
    return rows


def collate(rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
    import torch

    width = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, fill: int) -> Any:
        return torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in rows])

    mask = [[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r in rows]
    return {"input_ids": padded("input_ids", 3), "labels": padded("labels", -100), "attention_mask": torch.tensor(mask)}


def arguments(folder: Path, **settings: Any) -> Any:
    import transformers

    ours = {
        "max_steps": 8,
        "per_device_train_batch_size": 2,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "lr_scheduler_type": "constant",
    }
    return transformers.TrainingArguments(str(folder), **{**ours, **settings})


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
