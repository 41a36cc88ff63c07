"""The text of a file as it lies on disk: its encoding, its byte offsets, and edits as byte ranges."""

from __future__ import annotations

import ast
import codecs
import difflib
import io
import re
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass

from qlora_doctor.errors import RepairError
from qlora_doctor.fix import Edit

NEWLINE = re.compile(r"\r\n?|\n")
# A magic may go on after a backslash at the end of its line.
_MAGICS = (
    re.compile(r"^([ \t]*)[!%?](?:[^\r\n]*\\\r?\n)*[^\r\n]*$", re.MULTILINE),
    re.compile(r"^([ \t]*[A-Za-z_][\w.]*[ \t]*=[ \t]*)[!%](?:[^\r\n]*\\\r?\n)*[^\r\n]*$", re.MULTILINE),
    re.compile(r"^([ \t]*)[A-Za-z_][\w.]*\?{1,2}[ \t]*$", re.MULTILINE),
)
_VISIBLE = re.compile(r"[^\r\n]")


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a file's characters become bytes; `bom` is what stands before them."""

    name: str = "utf-8"
    bom: bytes = b""

    def encode(self, text: str) -> bytes:
        """Raises RepairError where a character has no place in this encoding."""
        try:
            return text.encode(self.name)
        except UnicodeEncodeError as error:
            raise RepairError(
                f"the file is written in {self.name}, which has no {error.object[error.start]!r}"
            ) from None


def decode(data: bytes, name: str = "") -> tuple[str, Encoding]:
    """The text of a Python file and its encoding: the BOM, the coding comment, else `name`, else UTF-8.

    Raises:
        RepairError: the bytes are not text in that encoding.
    """
    bom = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
    try:
        found, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    except SyntaxError:
        found = name or "utf-8"
    if found in ("utf-8", "utf-8-sig") and name and not bom:
        found = name
    found = "utf-8" if found == "utf-8-sig" else found
    try:
        text = data[len(bom) :].decode(found)
    except (UnicodeDecodeError, LookupError) as error:
        raise RepairError(f"it cannot be read as {found}: {error}") from None
    encoding = Encoding(found, bom)
    # A stateful or lenient codec may not give the same bytes back; then byte offsets mean nothing.
    if bom + encoding.encode(text) != data:
        raise RepairError(f"its {found} text cannot be written back byte for byte")
    return text, encoding


def edits_between(old: str, new: str, encoding: Encoding, original: str = "") -> tuple[Edit, ...]:
    """The byte-range edits that turn `old` into `new`, as small as whole changed stretches of a line get.

    `original` has the same characters at the same places where `old` is a text with its magics blanked.
    """
    before, after = old.splitlines(keepends=True), new.splitlines(keepends=True)
    edits = []
    starts = _starts(before)
    for tag, i, j, k, m in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        gone, come = "".join(before[i:j]), "".join(after[k:m])
        head = _common(gone, come)
        tail = _common(gone[head:][::-1], come[head:][::-1])
        start, end = starts[i] + head, starts[j] - tail
        edits.append((start, end, come[head : len(come) - tail]))
    offset, base = len(encoding.bom), original or old
    return tuple(
        Edit(offset + len(encoding.encode(base[:start])), offset + len(encoding.encode(base[:end])), text)
        for start, end, text in edits
    )


def apply_edits(data: bytes, edits: Iterable[Edit], encoding: Encoding) -> bytes:
    """`data` with the edits carried out.

    Raises:
        RepairError: two of them overlap, or one lies outside the data.
    """
    out, at = [], 0
    for edit in sorted(edits, key=lambda e: (e.start, e.end)):
        if not at <= edit.start <= edit.end <= len(data):
            raise RepairError(f"the edit of bytes {edit.start} to {edit.end} overlaps another or lies outside the file")
        out += [data[at : edit.start], encoding.encode(edit.text)]
        at = edit.end
    return b"".join([*out, data[at:]])


def clash(one: Iterable[Edit], other: Iterable[Edit]) -> bool:
    """Whether two sets of edits replace the same bytes by different text, or bytes of which each has a part.

    Edits that lie within one another, or insert at one place, do not clash: they can be made one after the other.
    """
    others = list(other)
    return any(_clash(a, b) for a in one for b in others)


def _clash(a: Edit, b: Edit) -> bool:
    if (a.start, a.end) == (b.start, b.end):
        return a.start < a.end and a.text != b.text
    return a.start < b.start < a.end < b.end or b.start < a.start < b.end < a.end


def without_magics(text: str) -> str:
    """A cell with each `!command`, `%magic` and `name?` replaced by an expression of the same length and lines.

    Python without any, in a cell or in a script, comes back as it is.
    """
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        for pattern in _MAGICS:
            text = pattern.sub(lambda m: f"{m[1]}0{_VISIBLE.sub(' ', m[0][len(m[1]) + 1 :])}", text)
    return text


def _common(one: str, other: str) -> int:
    n = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        n += 1
    return n


def _starts(lines: list[str]) -> list[int]:
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    return starts
