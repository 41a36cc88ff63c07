"""What was read once and need not be read again, as small JSON files in the user's cache folder.

Nothing depends on it: a cache that is damaged, stale or cannot be written costs time and nothing else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from qlora_doctor import __version__

FORMAT = f"1 of {__version__}"
LARGEST = 16 << 20


def folder() -> str:
    """The doctor's folder in the user's cache directory; `QLORA_DOCTOR_CACHE` names another."""
    chosen = os.environ.get("QLORA_DOCTOR_CACHE")
    if chosen:
        return os.path.expanduser(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.join("~", "AppData", "Local")
    elif sys.platform == "darwin":
        base = os.path.join("~", "Library", "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return os.path.join(os.path.expanduser(base), "qlora-doctor")


def load(kind: str, key: str) -> dict[str, Any] | None:
    """The entry for `key`, where there is one and the files that it was read from have not changed since."""
    import json

    try:
        with open(_path(kind, key), "rb") as file:
            raw = file.read(LARGEST + 1)
        entry = json.loads(raw) if len(raw) <= LARGEST else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or entry.get("format") != FORMAT or entry.get("key") != key:
        return None
    stamps, data = entry.get("stamps"), entry.get("data")
    if not isinstance(stamps, dict) or not isinstance(data, dict):
        return None
    return data if all(stamp(path) == known for path, known in stamps.items()) else None


def store(kind: str, key: str, data: Mapping[str, Any], stamps: Mapping[str, Any]) -> None:
    """Keeps an entry, where it can be kept."""
    import json

    path = _path(kind, key)
    temporary = f"{path}.{os.getpid()}"
    text = json.dumps({"format": FORMAT, "key": key, "stamps": stamps, "data": data}, separators=(",", ":"))
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(temporary, "w", encoding="ascii") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        try:
            os.unlink(temporary)
        except OSError:
            pass


def stamp(path: str) -> list[int] | None:
    """Size and modification time of a file, None where it is gone."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    return [info.st_size, info.st_mtime_ns]


def _path(kind: str, key: str) -> str:
    from binascii import crc32

    name = "".join(c if c.isalnum() else "-" for c in os.path.basename(key.rstrip("/\\")))[:40]
    return os.path.join(folder(), kind, f"{name}-{crc32(key.encode('utf-8', 'replace')):08x}.json")
