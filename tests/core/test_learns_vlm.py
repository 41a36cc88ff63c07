"""The proof that a vision model learns from what it sees: sixteen squares whose colour is the answer to one question.

Fails where images are dropped, labels are shifted, or image tokens and images do not match: what can be learned without
the image is one answer for all, and that is right four times in sixteen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from qlora_core.data.rows import Image, Message, Row

COLOURS = {"red": (230, 20, 20), "green": (20, 200, 20), "blue": (30, 30, 230), "white": (245, 245, 245)}
QUESTION = "what colour is it?"
# How fast each tiny model learns, and by how much its random eyes are sharpened.
MODELS = {
    "llava": (1e-2, 80, 1.0),
    "qwen2_vl": (1e-2, 60, 1.0),
    "instructblip_vicuna": (5e-3, 160, 10.0),
    "instructblip_t5": (5e-3, 60, 10.0),
}


def square(colour: tuple[int, int, int], place: int) -> Any:
    """A square of one of four sizes in another corner each, on black."""
    from PIL import Image as pil

    side = 12 + 4 * place
    picture = pil.new("RGB", (28, 28))
    picture.paste(colour, (place, 2 * place // 3, place + side, place + side))
    return picture


def made_data(folder: Path) -> Path:
    """`squares.jsonl` with its sixteen pictures beside it."""
    lines = []
    for place in range(4):
        for name, colour in COLOURS.items():
            square(colour, place).save(folder / f"{name}{place}.png")
            lines.append(json.dumps({"image": f"{name}{place}.png", "question": QUESTION, "answer": name}))
    path = folder / "squares.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def seen(rows: Sequence[Row], picture: Callable[[Row], Any]) -> list[Row]:
    """The same questions with other pictures."""
    return [
        Row(
            (Message("user", (Image(picture(row)), QUESTION)), Message("assistant", (row.answer,))),
            row.file,
            row.number,
        )
        for row in rows
    ]


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_a_model_learns_the_colour_that_only_the_picture_tells(kind: str, tmp_path: Path) -> None:
    from PIL import Image as pil

    from qlora_core import tiny
    from qlora_core.answers import answer
    from qlora_core.data.read import read
    from qlora_core.train import train

    rate, steps, contrast = MODELS[kind]
    model = tiny.build(kind, tmp_path / "model", contrast=contrast)
    data = made_data(tmp_path)
    result = train(
        model, data, tmp_path / "out",
        learning_rate=rate, max_steps=steps, per_device_train_batch_size=16, gradient_accumulation_steps=1,
        lora_r=16, lr_scheduler_type="constant", optim="adamw_torch", gradient_checkpointing=False,
        save_strategy="no", samples=0, report_to="none", progress=False, device="cpu", seed=1,
    )  # fmt: skip
    assert result.report is not None and result.report.verification is not None

    def right(rows: Sequence[Row]) -> int:
        said = answer(result.model, result.prepared.encoder, result.processor, rows, max_new_tokens=6)
        return sum(word == row.answer for word, row in zip(said, rows, strict=True))

    rows = list(read(data))
    names = list(COLOURS)
    other = {name: names[(place + 1) % 4] for place, name in enumerate(names)}
    assert right(rows) == 16
    assert right(seen(rows, lambda row: pil.new("RGB", (28, 28)))) <= 4
    assert right(seen(rows, lambda row: square(COLOURS[other[row.answer]], (row.number - 1) // 4))) == 0
