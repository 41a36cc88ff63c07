"""How many bytes a solution downloads: pip's report does not say, so each file's server is asked, briefly."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from qlora_doctor.install.choose import size_of

LIMIT = 4.0
"""Seconds for all files together; what has not answered by then is unknown."""


def sizes_of(urls: Mapping[str, str]) -> dict[str, int | None]:
    """Bytes for each name; None where nobody says."""
    from threading import Thread
    from time import monotonic

    found: dict[str, int | None] = dict.fromkeys(urls)

    def ask(name: str, url: str) -> None:
        found[name] = _size(url)

    threads = [Thread(target=ask, args=item, daemon=True) for item in urls.items()]
    for thread in threads:
        thread.start()
    end = monotonic() + LIMIT
    for thread in threads:
        thread.join(max(0.0, end - monotonic()))
    return dict(found)


def _size(url: str) -> int | None:
    parts = urlsplit(url)
    if parts.scheme == "file":
        path = unquote(parts.path)
        return os.path.getsize(path) if os.path.isfile(path) else None
    if parts.scheme not in ("http", "https") or parts.username:
        return None
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(url, method="HEAD"), timeout=LIMIT) as answer:
            length = answer.headers.get("Content-Length")
    except (OSError, ValueError):
        return None
    return int(length) if length and length.isdigit() else None


def about(name: str) -> int | None:
    """The rough size of a package by the table, where its server did not say; None where the table has none."""
    return size_of(name, "cuda" if name == "torch" else "")


def shown(size: int | None) -> str:
    """`60.7 MB`, as package indexes count; `size unknown` for None."""
    if size is None:
        return "size unknown"
    if size < 100_000:
        return f"{size / 1000:.0f} kB"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
