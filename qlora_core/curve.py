"""The loss curve as a picture, drawn with Pillow: the train extra brings no plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 900, 480, 70, 46, 34, 24
TRAIN, EVAL, AXIS, GRID = (31, 119, 180), (214, 92, 20), (60, 60, 60), (225, 225, 225)
Points = Sequence[tuple[int, float]]


def draw_curve(losses: Points, evals: Points, path: Path, title: str = "loss") -> Path | None:
    """Writes a PNG of (step, loss) points, the eval losses beside them; None where there are fewer than two points."""
    train = [(s, v) for s, v in losses if math.isfinite(v)]
    judged = [(s, v) for s, v in evals if math.isfinite(v)]
    every = [*train, *judged]
    if len(train) < 2:
        return None
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    low, high = min(v for _, v in every), max(v for _, v in every)
    step = _round_step((high - low) or abs(high) or 1.0)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step or step
    if high == low:
        high = low + step
    first, last = min(s for s, _ in every), max(s for s, _ in every)

    def place(point: tuple[int, float]) -> tuple[float, float]:
        x = LEFT + (point[0] - first) / max(1, last - first) * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - (point[1] - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    for index in range(round((high - low) / step) + 1):
        _, y = place((first, low + index * step))
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], fill=GRID)
        draw.text((8, y - 6), f"{low + index * step:.4g}", fill=AXIS)
    draw.line([(LEFT, TOP), (LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)], fill=AXIS, width=2)
    for at in sorted({first, (first + last) // 2, last}):
        x, _ = place((at, low))
        draw.text((x - 8, HEIGHT - BOTTOM + 8), str(at), fill=AXIS)
    _series(draw, [place(p) for p in train], TRAIN)
    _series(draw, [place(p) for p in judged], EVAL, dots=True)
    # The picture's own font knows Latin letters only.
    draw.text((LEFT, 10), title.encode("latin-1", "replace").decode("latin-1"), fill=AXIS)
    draw.text((WIDTH - 170, 10), "train", fill=TRAIN)
    if judged:
        draw.text((WIDTH - 110, 10), "evaluation", fill=EVAL)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def _series(draw: Any, places: list[tuple[float, float]], colour: tuple[int, int, int], dots: bool = False) -> None:
    if len(places) > 1:
        draw.line(places, fill=colour, width=2)
    for x, y in places if dots else []:
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)


def _round_step(span: float) -> float:
    """1, 2 or 5 times a power of ten, so that about six lines cover `span`."""
    raw: float = span / 6
    power: float = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
