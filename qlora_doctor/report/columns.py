"""Text in columns where a Chinese character takes two: its width, padding, and wrapping."""

from __future__ import annotations

import re
import unicodedata

from qlora_doctor.i18n import said

_WIDE = r"\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60\uffe0-\uffe6"
# A run of Latin text is one piece; each wide character may end a line, as Chinese has no spaces.
_PIECES = rf"\s+|[{_WIDE}]|[^\s{_WIDE}]+"
_CLOSING = "，。、；：！？）》」』】"


def width(text: str) -> int:
    """How many terminal columns `text` takes."""
    if text.isascii():
        return len(text)
    total = 0
    for char in text:
        if unicodedata.combining(char):
            continue
        total += 2 if unicodedata.east_asian_width(char) in "WF" else 1
    return total


def pad(text: str, columns: int) -> str:
    """`text` with spaces after it, up to `columns`."""
    return text + " " * (columns - width(text))


def cut(text: str, columns: int | None) -> str:
    """`text` in at most `columns`, with an ellipsis where something is left out. None: all of it."""
    if columns is None or width(text) <= columns:
        return text
    kept = 0
    for index, char in enumerate(text):
        kept += width(char)
        if kept > columns - 1:
            return text[:index] + "…"
    return text


def wrap(text: str, columns: int | None) -> list[str]:
    """`text`, in the reader's language, in lines of at most `columns`; a longer word stays whole. None: one line."""
    text = said(text)
    if columns is None:
        return [" ".join(text.split())]
    lines, line = [], ""
    for piece in re.findall(_PIECES, text):
        if piece.isspace():
            line += " " if line else ""
        elif line.strip() and width(line) + width(piece) > columns and piece not in _CLOSING:
            lines.append(line.rstrip())
            line = piece
        else:
            line += piece
    return [*lines, line.rstrip()] if line.strip() or not lines else lines


def table(rows: list[list[str]], gap: int = 2) -> list[str]:
    """Rows as lines in the reader's language, each column as wide as its widest cell."""
    rows = [[said(cell) for cell in row] for row in rows]
    widths = [max(width(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return [(" " * gap).join(pad(cell, w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
