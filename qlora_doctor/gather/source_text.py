"""A file's bytes as text, and places in the text as places in the bytes.

`ast` counts columns in the UTF-8 bytes of a line; edits need offsets in the file as it lies on disk, whatever its
encoding and line ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

MAX_BYTES = 2**20
_LINE_END = re.compile(r"\r\n|\r|\n")
_COOKIE = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))


class Unreadable(Exception):
    """The file is not text that can be read; the message says what it is."""


@dataclass(slots=True)
class Text:
    """Text with the encoding it has on disk. `bom` is the number of bytes before its first character."""

    text: str
    encoding: str = "utf-8"
    bom: int = 0
    lines: list[str] = field(init=False)
    starts: list[int] = field(init=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.lines = []
        self.starts = []
        at, offset = 0, self.bom
        for match in _LINE_END.finditer(self.text):
            self._line(self.text[at : match.start()], offset)
            offset += self._bytes(self.text[at : match.end()])
            at = match.end()
        self._line(self.text[at:], offset)
        self.size = offset + self._bytes(self.text[at:])

    def _line(self, line: str, offset: int) -> None:
        self.lines.append(line)
        self.starts.append(offset)

    def _bytes(self, text: str) -> int:
        if text.isascii() and not self.encoding.startswith("utf-16"):
            return len(text)
        return len(text.encode(self.encoding))

    def offset(self, line: int, column: int) -> int:
        """The byte offset of a line (from 1) and a UTF-8 column (from 0), as `ast` gives them."""
        text = self.lines[line - 1]
        if self.encoding == "utf-8" or (text.isascii() and not self.encoding.startswith("utf-16")):
            return self.starts[line - 1] + column
        return self.starts[line - 1] + self._bytes(self._before(text, column))

    def column(self, line: int, column: int) -> int:
        """The column in characters, from 1."""
        text = self.lines[line - 1]
        return column + 1 if text.isascii() else len(self._before(text, column)) + 1

    def between(self, line: int, column: int, end_line: int, end_column: int) -> str:
        """The text between two places."""
        first = self.lines[line - 1].encode()
        if line == end_line:
            return first[column:end_column].decode()
        middle = self.lines[line : end_line - 1]
        last = self.lines[end_line - 1].encode()[:end_column].decode()
        return "\n".join([first[column:].decode(), *middle, last])

    def line_start(self, line: int) -> int:
        """The byte offset at which a line begins; the end of the file where there is no such line."""
        return self.starts[line - 1] if line <= len(self.starts) else self.size

    @staticmethod
    def _before(text: str, column: int) -> str:
        return text.encode()[:column].decode("utf-8", "ignore")


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a file. Raises Unreadable where it cannot be read, or is far larger than a script is."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise Unreadable(f"it is {size / 2**20:.1f} MB, far more than a training script; it was not read")
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(f"it cannot be read: {error.strerror or error}") from None


def decode(data: bytes) -> Text:
    """Source text by its byte order mark, its coding cookie, as UTF-8, or as GB18030, in this order.

    Raises:
        Unreadable: it is binary, or in an encoding that nobody can tell.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return _decoded(data[len(mark) :], encoding, len(mark))
    if b"\x00" in data:
        line = data[: data.index(b"\x00")].count(b"\n") + 1
        raise Unreadable(f"line {line} holds a null byte: this is not Python source")
    for first in data.split(b"\n", 2)[:2]:
        cookie = _COOKIE.match(first)
        if cookie:
            return _decoded(data, _known(cookie.group(1).decode("ascii", "replace")), 0)
    try:
        return Text(data.decode("utf-8"))
    except UnicodeDecodeError:
        pass
    try:
        text = Text(data.decode("gb18030"), "gb18030")
    except UnicodeDecodeError:
        raise Unreadable("it is neither UTF-8 nor GBK; add a coding line, or save it as UTF-8") from None
    if _is_binary(data):
        raise Unreadable("it is binary, not text")
    return text


def _is_binary(data: bytes) -> bool:
    head = data[:4096]
    control = sum(byte < 32 and byte not in (9, 10, 12, 13, 27) for byte in head)
    return control > len(head) // 50


def _known(name: str) -> str:
    import codecs

    try:
        found = codecs.lookup(name).name
    except LookupError:
        raise Unreadable(f"its coding line names {name!r}, which Python does not know") from None
    return {"gbk": "gb18030", "gb2312": "gb18030", "utf_8_sig": "utf-8", "utf-8-sig": "utf-8"}.get(found, found)


def _decoded(data: bytes, encoding: str, bom: int) -> Text:
    try:
        return Text(data.decode(encoding), encoding, bom)
    except (UnicodeDecodeError, LookupError) as error:
        reason = getattr(error, "reason", str(error))
        raise Unreadable(f"it says that it is {encoding}, but is not: {reason}") from None
