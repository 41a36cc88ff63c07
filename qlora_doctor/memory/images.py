"""How many tokens the images of an example are worth, and how many patches the vision tower sees."""

from __future__ import annotations

import math

from qlora_doctor.memory.settings import Settings
from qlora_doctor.memory.shapes import Images, Shape

# What Qwen's processors take where nothing is said: up to 16384 patches of 28 x 28 after merging; a photo of a phone.
DEFAULT_SIDE = (1024, 768)
# LLaVA 1.6 cuts an image into up to four tiles, and adds the whole image.
TILES = 5


def image_tokens(shape: Shape, s: Settings) -> tuple[int, int]:
    """Tokens and vision patches of one example with `s.images` images (one, where not said)."""
    images = shape.images
    count = 1 if s.images is None else s.images
    if images is None or not count:
        return 0, 0
    if images.rule == "pixels":
        height, width = resized(images, s)
        patches = (height // images.patch) * (width // images.patch)
        return count * patches // images.merge**2, count * patches
    tiles = TILES if images.rule == "tiles" else 1
    # Each row of tiles ends in a newline token.
    rows = 2 * int(math.sqrt(images.tokens)) if tiles > 1 else 0
    return count * (tiles * images.tokens + rows), count * tiles * images.patches


def resized(images: Images, s: Settings) -> tuple[int, int]:
    """Height and width of an image after Qwen's resizing: multiples of patch x merge, at most `max_pixels`."""
    height, width = (s.height or DEFAULT_SIDE[1]), (s.width or DEFAULT_SIDE[0])
    unit = images.patch * images.merge
    most = s.max_pixels or 16384 * unit * unit
    high, wide = max(unit, round(height / unit) * unit), max(unit, round(width / unit) * unit)
    if high * wide > most:
        shrink = math.sqrt(height * width / most)
        high = max(unit, math.floor(height / shrink / unit) * unit)
        wide = max(unit, math.floor(width / shrink / unit) * unit)
    return high, wide
