"""Images of rows: opened when they are wanted, and looked at before: there, whole, of a sensible size."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from qlora_core.data.rows import Image, Row
from qlora_doctor.facts import RowFault

# Above this, decoding takes more than 150 MB and most of a second, and the processor shrinks it all the same.
HUGE = 50_000_000


@dataclass(frozen=True, slots=True)
class Stored:
    """One picture of a `datasets` column, read when it is wanted. `place` is its index where the column holds lists."""

    column: Any
    index: int
    place: int | None = None

    @property
    def key(self) -> tuple[int, int, int | None]:
        return id(self.column), self.index, self.place

    def read(self) -> bytes:
        """The bytes of the image file."""
        value = self.column[self.index]
        value = value if self.place is None else value[self.place]
        if value.get("bytes"):
            return bytes(value["bytes"])
        with open(value["path"], "rb") as file:
            return file.read()


class _Column:
    """A column of a dataset, by row; survives pickling to a DataLoader's workers."""

    def __init__(self, data: Any, name: str) -> None:
        self.data, self.name = data, name

    def __getitem__(self, index: int) -> Any:
        return self.data[index][self.name]


def picture_columns(data: Any) -> Mapping[str, _Column]:
    """The columns of a `datasets.Dataset` that hold images, not decoded."""
    import datasets

    found = {}
    for name, feature in data.features.items():
        inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else None)
        plain: Any
        if isinstance(feature, datasets.Image):
            plain = datasets.Image(decode=False)
        elif isinstance(inner, datasets.Image):
            plain = (
                type(feature)(datasets.Image(decode=False))
                if not isinstance(feature, list)
                else [datasets.Image(decode=False)]
            )
        else:
            continue
        found[name] = _Column(data.cast_column(name, plain).select_columns([name]), name)
    return found


def stored(column: _Column, index: int) -> Any:
    """What a record holds in the place of its images: one `Stored`, a list of them, or None."""
    value = column[index]
    if isinstance(value, list):
        return [Stored(column, index, place) for place in range(len(value))]
    return None if value is None else Stored(column, index)


def describe(image: Image) -> str:
    """What an image is called in a message: its path, or that it lies in the data."""
    return image.source if isinstance(image.source, str) else "inside the data"


def open_source(source: Any) -> Any:
    """The PIL image of an `Image.source`; not decoded yet. Raises what Pillow raises."""
    from PIL import Image as Pictures

    if isinstance(source, Stored):
        source = source.read()
    if isinstance(source, (bytes, bytearray)):
        return Pictures.open(io.BytesIO(source))
    return Pictures.open(source) if isinstance(source, (str, os.PathLike)) else source


def look_at_images(rows: Sequence[Row], threads: int | None = None) -> list[RowFault]:
    """What is wrong with the images of these rows: missing, broken, huge. Each file is looked at once, several at a time."""
    sources: dict[Any, Image] = {}
    for image in _images(rows):
        sources.setdefault(_key(image), image)
    with ThreadPoolExecutor(threads or min(8, (os.cpu_count() or 1) * 2)) as pool:
        problems = dict(zip(sources, pool.map(_problem, sources.values()), strict=True))
    faults = []
    for row in rows:
        for image in row.images:
            kind, detail = problems[_key(image)]
            if kind:
                faults.append(RowFault(kind, row.file, row.number, "", f"{describe(image)}: {detail}"))
    return faults


def _images(rows: Iterable[Row]) -> Iterable[Image]:
    return (image for row in rows for image in row.images)


def _key(image: Image) -> Any:
    return image.source if isinstance(image.source, str) else getattr(image.source, "key", id(image.source))


def _problem(image: Image) -> tuple[str, str]:
    import warnings

    source = image.source
    if isinstance(source, str) and not os.path.isfile(source):
        return "image missing", "it is a folder" if os.path.isdir(source) else "there is no such file"
    found: Any = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a decompression bomb is told below as huge
            found = open_source(source)
            width, height = found.size
            if width * height > HUGE:
                return "image huge", f"{width} x {height} pixels; make it smaller"
            if min(width, height) < 2:
                return "image broken", f"{width} x {height} pixels; there is nothing to see"
            if found.format == "JPEG" and not _ends(source):
                return "image broken", "the file ends before the image does; fetch it again"
            if found.format in ("PNG", "GIF", "WEBP"):
                found.verify()
    except Exception as error:  # noqa: BLE001 - Pillow's plug-ins raise what they like on a damaged file; it is told by row
        if type(error).__name__ == "DecompressionBombError":
            return "image huge", "more pixels than Pillow is willing to open"
        return "image broken", _reason(error)
    finally:
        if found is not None and found is not source:
            found.close()
    return "", ""


def _ends(source: Any) -> bool:
    """Whether a JPEG has its end mark. Cameras put more behind it, so the last stretch is searched."""
    if isinstance(source, str):
        with open(source, "rb") as file:
            file.seek(max(0, os.path.getsize(source) - 65536))
            return b"\xff\xd9" in file.read()
    if isinstance(source, (bytes, bytearray)):
        return b"\xff\xd9" in source[-65536:]
    return True


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if type(error).__name__ == "UnidentifiedImageError":
        return "it is no image"
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
