"""The bytes of a data file as text: UTF-8, with its mark or without, UTF-16, GBK; and which lines are none of these."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qlora_doctor.errors import UsageError

MAX_BYTES = 4 * 2**30
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
_NAMES = {"utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "utf-32-le": "UTF-32", "utf-32-be": "UTF-32"}
_MAGIC = (
    (b"version https://git-lfs", "it is a Git LFS pointer, not the data; run `git lfs pull` in its folder"),
    (b"\x1f\x8b", "it is compressed (gzip); unpack it first"),
    (b"PK\x03\x04", "it is a zip archive (or an .xlsx file); unpack it, or save the sheet as CSV in UTF-8"),
    (b"PAR1", "it is a Parquet file; name it .parquet"),
    (b"ARROW1", "it is an Arrow file; name it .arrow"),
    (b"<!DOCTYPE", "it is a web page, not data; download the raw file"),
    (b"<!doctype", "it is a web page, not data; download the raw file"),
    (b"<html", "it is a web page, not data; download the raw file"),
    (b"%PDF", "it is a PDF; only JSONL, JSON, CSV, Parquet and question-and-answer Markdown can be read"),
)


class BadFile(UsageError):
    """A data file of which nothing can be read. `reason` says what it is and what to do."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Decoded:
    """The text of a file. `encoding` is told to the user where it is not "". `damaged` are the lines, from 1, whose bytes
    are not text in it."""

    text: str
    encoding: str = ""
    damaged: frozenset[int] = frozenset()


def read_text(path: str) -> Decoded:
    """The text of a data file.

    Raises:
        BadFile: it cannot be opened, is empty, is of another kind, or in an encoding that nobody can tell.
    """
    try:
        size = Path(path).stat().st_size
        if size > MAX_BYTES:
            raise BadFile(path, f"it has {size / 2**30:.1f} GiB; split it, or save it as Parquet")
        data = Path(path).read_bytes()
    except OSError as error:
        raise BadFile(path, f"it cannot be read: {error.strerror or error}") from None
    return decode(data, path)


def decode(data: bytes, path: str = "") -> Decoded:
    """The text of these bytes. Raises BadFile where there is none to be had."""
    if not data.strip():
        raise BadFile(path, "it is empty")
    for magic, reason in _MAGIC:
        if data.lstrip()[: len(magic)] == magic:
            raise BadFile(path, reason)
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _marked(data[len(mark) :], encoding, path)
    if b"\x00" in data[:4096]:
        return _wide(data, path)
    try:
        return Decoded(data.decode("utf-8"))
    except UnicodeDecodeError:
        return _chinese(data) or _damaged(data, path)


def _marked(data: bytes, encoding: str, path: str) -> Decoded:
    if encoding == "utf-8":
        try:
            return Decoded(data.decode("utf-8"), "UTF-8 with a byte order mark")
        except UnicodeDecodeError:
            return _damaged(data, path)
    try:
        return Decoded(data.decode(encoding), _NAMES[encoding])
    except UnicodeDecodeError:
        raise BadFile(path, f"its first bytes say {_NAMES[encoding]}, but it is not; save it as UTF-8") from None


def _wide(data: bytes, path: str) -> Decoded:
    """Text with zero bytes and no mark: UTF-16 of mostly Latin text has them at every second place."""
    head = data[:4096]
    even, odd = head[::2].count(0), head[1::2].count(0)
    encoding = "utf-16-le" if odd > even else "utf-16-be"
    try:
        if max(even, odd) > len(head) // 8 and min(even, odd) * 8 < max(even, odd):
            text = data.decode(encoding)
            if not any(ord(c) < 32 and c not in "\t\n\r" for c in text[:2000]):
                return Decoded(text, "UTF-16 without a byte order mark")
    except UnicodeDecodeError:
        pass
    raise BadFile(path, "it holds zero bytes: it is binary, not text")


def _chinese(data: bytes) -> Decoded | None:
    """GBK or GB18030. Nearly any bytes decode as GB18030, so most of what is not ASCII must be of its common part."""
    try:
        text = data.decode("gb18030")
    except UnicodeDecodeError:
        return None
    foreign = [c for c in text[:200_000] if not c.isascii()]
    common = sum(1 for c in foreign if len(c.encode("gb2312", "ignore")) == 2)
    if common < 0.7 * len(foreign):
        return None
    try:
        text.encode("gbk")
    except UnicodeEncodeError:
        return Decoded(text, "GB18030")
    return Decoded(text, "GBK")


def _damaged(data: bytes, path: str) -> Decoded:
    """UTF-8 but for some lines; each of them is named."""
    lines = data.split(b"\n")
    bad = [n for n, line in enumerate(lines, 1) if not _is_utf8(line)]
    sound = len(lines) - len(bad)
    readable = sum(1 for line in lines if not line.isascii() and _is_utf8(line))
    if sound < 2 or (readable == 0 and len(bad) > 2 and len(bad) * 20 > len(lines)):
        raise BadFile(
            path,
            f"its text is neither UTF-8 nor GBK (line {bad[0]} is the first that is not); it may be Windows-1252, Big5 or "
            "Shift-JIS: save it as UTF-8, for example with `iconv -f BIG5 -t UTF-8`",
        )
    return Decoded(data.decode("utf-8", "replace"), "UTF-8 with damaged lines", frozenset(bad))


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
