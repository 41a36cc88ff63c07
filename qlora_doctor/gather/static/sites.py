"""Where calls and their arguments stand, in bytes."""

from __future__ import annotations

import ast
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qlora_doctor.gather.source_text import Text
from qlora_doctor.gather.static.values import Entry, Span, V
from qlora_doctor.source import Site

_GAP = re.compile(r"(?:[\s)]|\\\r?\n|#[^\r\n]*)*\(")


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of lines: a whole script (cell None), or one cell of a notebook. `first` is its first line."""

    first: int
    text: Text
    cell: int | None = None


@dataclass(frozen=True, slots=True)
class Places:
    """Turns positions in the joined source into sites."""

    path: str
    sha256: str
    parts: Sequence[Part]
    wholes: Mapping[tuple[int, int], Span] = field(default_factory=dict)

    def part(self, line: int) -> Part:
        index = bisect_right([p.first for p in self.parts], line) - 1 if len(self.parts) > 1 else 0
        return self.parts[max(index, 0)]

    def range(self, span: Span) -> tuple[int, int]:
        """The byte range of a span in its file or cell."""
        part = self.part(span[0])
        shift = part.first - 1
        return part.text.offset(span[0] - shift, span[1]), part.text.offset(span[2] - shift, span[3])

    def at(self, span: Span, spans: Mapping[str, tuple[int, int]] | None = None) -> Site:
        """The site of a span."""
        part = self.part(span[0])
        shift = part.first - 1
        start, end = self.range(span)
        return Site(
            self.path,
            span[0] - shift,
            part.text.column(span[0] - shift, span[1]),
            span[2] - shift,
            start,
            end,
            part.cell,
            self.sha256,
            spans or {},
        )

    def node(self, node: ast.AST, arguments: Mapping[str, V] | None = None) -> Site:
        """The site of a node; of a call with the ranges of its arguments."""
        span: Span = (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]
        if not isinstance(node, ast.Call):
            return self.at(span)
        return self.at(span, self._spans(node, span, arguments or {}))

    def _spans(self, node: ast.Call, span: Span, arguments: Mapping[str, V]) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        here = self.part(span[0])
        for name, entry in arguments.items():
            if not isinstance(entry, Entry):
                continue
            if entry.part is not None and self.part(entry.part[0]) is here:
                found[f"{name}:value"] = self.range(entry.part)
            if entry.whole is not None and not name.startswith("#") and self.part(entry.whole[0]) is here:
                found[name] = self.range(entry.whole)
        for index, arg in enumerate(node.args):
            if not isinstance(arg, ast.Starred):
                found[f"#{index}"] = self.range(_span(arg))
        for kw in node.keywords:
            if kw.arg is None:
                found["**"] = self.range(_span(kw))
        whole = self.wholes.get((node.lineno, node.col_offset))
        if whole is not None and self.part(whole[2]) is here:
            found["statement"] = self.range(whole)
        inside = self._inside(node, here)
        if inside is not None:
            found["()"] = inside
        return found

    def _inside(self, node: ast.Call, part: Part) -> tuple[int, int] | None:
        shift = part.first - 1
        end = part.text.offset(node.end_lineno - shift, node.end_col_offset)  # type: ignore[operator,arg-type]
        func = _span(node.func)
        line, column = func[2] - shift, func[3]
        text = part.text.between(line, column, span_end(node)[0] - shift, span_end(node)[1])
        match = _GAP.match(text)
        if match is None:
            return None
        taken = text[: match.end()]
        newlines = taken.count("\n")
        if newlines:
            start = part.text.offset(line + newlines, len(taken.rpartition("\n")[2].encode()))
        else:
            start = part.text.offset(line, column + len(taken.encode()))
        width = len(")".encode(part.text.encoding))
        return start, end - width


def _span(node: ast.AST) -> Span:
    return (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]


def span_end(node: ast.AST) -> tuple[int, int]:
    """The line and column where a node ends."""
    return node.end_lineno, node.end_col_offset  # type: ignore[attr-defined]
