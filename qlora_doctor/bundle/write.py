"""Writes a bug report as a folder or as an archive: the same contents give the same bytes."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

from qlora_doctor.errors import UsageError

_TIME = (1980, 1, 1, 0, 0, 0)
FRONT = "README.md"


def archive(files: Mapping[str, str]) -> bytes:
    """The files as a ZIP, in the order of their names, without times."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in sorted(files.items()):
            info = zipfile.ZipInfo(name, _TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            info.create_system = 3
            packed.writestr(info, text.encode("utf-8", "backslashreplace"))
    return buffer.getvalue()


def write(files: Mapping[str, str], output: str) -> str:
    """Writes to `output`: an archive where it ends in .zip, else a folder. Gives the path.

    Raises:
        UsageError: it cannot be written, or holds something else.
    """
    try:
        if output.endswith(".zip"):
            temporary = f"{output}.{os.getpid()}"
            Path(temporary).write_bytes(archive(files))
            os.replace(temporary, output)
            return output
        folder = Path(output)
        if folder.is_dir() and any(folder.iterdir()) and not (folder / FRONT).is_file():
            raise UsageError(
                f"--output {output}: the folder holds other files; name a new one, or one that ends in .zip"
            )
        for name, text in sorted(files.items()):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UsageError(f"--output {output}: {error.strerror or error}") from None
    return output
