"""Images in a row: as many as the text has places for, each place as wide as the model makes the image."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from qlora_core.data.images import describe, open_source
from qlora_core.data.labels import SKIP
from qlora_core.data.rows import Encoded, Image, Row
from qlora_core.errors import RowProblem

# Given anew by the collator, or of no use to the models here.
TEXT_KEYS = ("input_ids", "attention_mask", "token_type_ids")
SIDEWAYS = (5, 6, 7, 8)
ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Pictures:
    """The image half of a processor. `placeholder` is what a template writes for an image, `token` the one token in it."""

    processor: Any
    placeholder: str
    token: str
    token_id: int

    @classmethod
    def of(cls, processor: Any, placeholder: str) -> Pictures | None:
        """That of a processor; None for a tokenizer, and where the processor names no token of its vocabulary for images."""
        token = str(getattr(processor, "image_token", placeholder))
        if not hasattr(processor, "image_processor") or token not in processor.tokenizer.get_vocab():
            return None
        return cls(processor, placeholder or token, token, int(processor.tokenizer.convert_tokens_to_ids(token)))

    def put(self, row: Row, text: str, encoded: Encoded, pixels: bool) -> Encoded:
        """The row with each image token as often as the model wants it, never learned; and the pixels, if asked for.

        Raises:
            RowProblem: another number of images than of places, an image that cannot be read, or a processor that
                makes other tokens of the text than its tokenizer.
        """
        places = sum(token == self.token_id for token in encoded.input_ids)
        if places != len(row.images):
            raise RowProblem(
                row.where,
                f"{places} image places ({self.token}) for {len(row.images)} images",
                f"Give as many images as the text has {self.token}; where the template drops images, give another",
            )
        if not row.images:
            return replace(encoded, extras={})
        counts = None if pixels else self._counts(row)
        if counts is not None:
            ids, labels = widen(encoded, self.token_id, counts)
            return Encoded(ids, labels, images=places)
        images = [open_image(image, row.where) for image in row.images]
        try:
            made = self.processor(text=[text], images=[images], return_tensors="pt")
        except ValueError as error:
            raise _refused(row, error) from error
        ids = array("i", made["input_ids"][0].tolist())
        words = [token for token in ids if token != self.token_id]
        if words != [token for token in encoded.input_ids if token != self.token_id]:
            raise RowProblem(
                row.where,
                "the processor makes other tokens of the text than its tokenizer",
                "Load the processor and the tokenizer of the same model",
            )
        learned = (
            label for token, label in zip(encoded.input_ids, encoded.labels, strict=True) if token != self.token_id
        )
        labels = array("i", (SKIP if token == self.token_id else next(learned) for token in ids))
        extras = {} if not pixels else {name: made[name] for name in made if name not in TEXT_KEYS}
        if "mm_token_type_ids" in extras:
            extras["mm_token_type_ids"] = extras["mm_token_type_ids"][0]
        return Encoded(ids, labels, extras, places)

    def _counts(self, row: Row) -> list[int] | None:
        """The tokens of each image, from its size; None where this transformers cannot tell."""
        count = getattr(self.processor, "_get_num_multimodal_tokens", None)
        if count is None:
            return None
        sizes = [image_size(image, row.where) for image in row.images]
        try:
            found = count(image_sizes=[(height, width) for width, height in sizes])["num_image_tokens"]
        except ValueError as error:
            raise _refused(row, error) from error
        return [int(one) for one in found]


def widen(encoded: Encoded, token_id: int, counts: Sequence[int]) -> tuple[array[int], array[int]]:
    """Ids and labels with the n-th image token `counts[n]` times, and never learned."""
    left: Iterator[int] = iter(counts)
    ids, labels = array("i"), array("i")
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        if token == token_id:
            count = next(left)
            ids.extend([token] * count)
            labels.extend([SKIP] * count)
        else:
            ids.append(token)
            labels.append(label)
    return ids, labels


def open_image(image: Image, where: str = "") -> Any:
    """The image as RGB, turned as its camera says.

    Raises:
        RowProblem: no such file, or no image.
    """
    from PIL import ImageOps

    with _opened(image, where) as opened:
        return (ImageOps.exif_transpose(opened) if _orientation(opened) else opened).convert("RGB")


def image_size(image: Image, where: str = "") -> tuple[int, int]:
    """Width and height, from the head of the file alone.

    Raises:
        RowProblem: no such file, or no image.
    """
    with _opened(image, where) as opened:
        width, height = opened.size
        return (height, width) if _orientation(opened) in SIDEWAYS else (width, height)


@contextmanager
def _opened(image: Image, where: str) -> Iterator[Any]:
    from PIL.Image import DecompressionBombError

    opened = None
    try:
        opened = open_source(image.source)
        yield opened
    except (OSError, ValueError, SyntaxError, DecompressionBombError) as error:
        raise _unreadable(image, where, error) from error
    finally:
        if opened is not None and opened is not image.source:
            opened.close()


def _orientation(opened: Any) -> int:
    """How the camera was held, as the head of the file says it; 0 where it does not."""
    from PIL import Image as Pictures

    # The method of the base class: that of PNG decodes the whole image to look behind it.
    found = Pictures.Image.getexif(opened).get(ORIENTATION)
    return found if isinstance(found, int) else 0


def _unreadable(image: Image, where: str, error: Exception) -> RowProblem:
    return RowProblem(
        where, f"image {describe(image)} cannot be read as an image ({error})", "Repair the file or drop the row"
    )


def _refused(row: Row, error: Exception) -> RowProblem:
    return RowProblem(row.where, f"the processor refuses an image of it ({error})", "Cut the image or drop the row")
