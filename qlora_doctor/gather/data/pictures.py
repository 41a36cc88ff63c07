"""The pictures of a record: paths under the data's folder, bytes, `data:` addresses. Nothing is fetched."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_doctor.gather.data.formats import kind_of
from qlora_doctor.gather.data.rows import Image


class BadRow(Exception):
    """One record that cannot be used. `kind` is a word of `DataFacts.counts`."""

    def __init__(self, kind: str, field: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.field = field
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Folder:
    """Where the images of a data file lie. `absolute`: whether the data may name files elsewhere by their whole path.

    Files that the user has here may; data from the Hub may not, or it could name any file of this machine.
    """

    path: str
    absolute: bool = True

    def picture(self, value: Any, where: str) -> Image:
        """One picture. Raises BadRow for an address on the network, or a path that leaves the folder."""
        if isinstance(value, Mapping):
            value = value["bytes"] if value.get("bytes") else value.get("path") or value.get("url")
        if isinstance(value, (bytes, bytearray)):
            return Image(bytes(value))
        if isinstance(value, str) and value:
            return self._by_name(value, where)
        if hasattr(value, "read") or hasattr(value, "convert"):  # a file of a dataset, a PIL image
            return Image(value)
        raise BadRow("malformed", where, f"it is {kind_of(value)}; an image is a path, under the folder of the data")

    def _by_name(self, value: str, where: str) -> Image:
        if value.startswith("data:"):
            return Image(_inline(value, where))
        if value.startswith("file://"):
            from urllib.parse import unquote, urlsplit

            value = unquote(urlsplit(value).path)
        elif "://" in value[:12]:
            raise BadRow(
                "image address", where, "it is an address on the network; download the images and name their files"
            )
        if os.path.isabs(value) or value.startswith("~"):
            if not self.absolute:
                raise BadRow("image outside", where, "it is a whole path, which data from elsewhere may not name")
            return Image(os.path.expanduser(value))
        path = os.path.normpath(value.replace("\\", "/") if os.sep == "/" and "/" not in value else value)
        if path == ".." or path.startswith(".." + os.sep):
            raise BadRow(
                "image outside", where, "it leaves the folder of the images; name the folder above it with --images"
            )
        return Image(os.path.join(self.path, path))


def _inline(value: str, where: str) -> bytes:
    import base64
    import binascii

    head, _, body = value.partition(",")
    try:
        if not head.endswith(";base64"):
            raise binascii.Error
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise BadRow("image broken", where, "its data: address is not base64") from None


def pictures(record: Mapping[str, Any], key: str, folder: Folder) -> tuple[Image, ...]:
    """The images that a record names in its own field (`image`, `images`)."""
    value = record.get(key) if key else None
    if value is None or value == "" or value == [] or value == ():
        return ()
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return tuple(folder.picture(v, f"{key}[{n}]") for n, v in enumerate(value))
    return (folder.picture(value, key),)
