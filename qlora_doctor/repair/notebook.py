"""Notebooks as bytes: where each cell's source stands in the JSON, and a new source with all else untouched."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from typing import Any

from qlora_doctor.errors import RepairError

_DECODER = json.JSONDecoder(strict=False)
_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null|NaN|-?Infinity")


@dataclass(frozen=True, slots=True)
class Node:
    """One JSON value with its place in the text: `children` are the values of an object, or the items of an array."""

    start: int
    end: int
    value: Any = None
    children: dict[str, Node] | list[Node] | None = None

    def at(self, *path: str | int) -> Node | None:
        """The value under `path`, or None."""
        node: Node | None = self
        for key in path:
            children = node.children if node is not None else None
            if isinstance(children, dict) and isinstance(key, str):
                node = children.get(key)
            elif isinstance(children, list) and isinstance(key, int) and key < len(children):
                node = children[key]
            else:
                return None
        return node


def parse(text: str) -> Node:
    """The JSON value in `text`. Raises RepairError where there is none."""
    try:
        return _value(text, _skip(text, 0))
    except (ValueError, IndexError, AttributeError) as error:
        raise RepairError(f"it is not JSON: {error}") from None


def cell_source(data: bytes, cell: int) -> str:
    """The source of one cell (counted from 0, over all cells). Raises RepairError."""
    return _joined(_source(parse(_text(data)), cell))


def sources(data: bytes) -> list[str]:
    """The sources of all cells."""
    cells = parse(_text(data)).at("cells")
    nodes = cells.children if cells is not None and isinstance(cells.children, list) else []
    return [_joined(source) for node in nodes if (source := node.at("source")) is not None]


def with_cell_source(data: bytes, cell: int, new: str) -> bytes:
    """The notebook with another source in one cell; every other byte stays.

    Raises:
        RepairError: it is no notebook, or it has no such cell.
    """
    text = _text(data)
    node = _source(parse(text), cell)
    raw = not text.isascii() or "\\u" not in text
    if not isinstance(node.children, list):
        out = text[: node.start] + _string(new, raw) + text[node.end :]
    else:
        out = _spliced(text, node, node.children, new, raw)
    changed = out.encode("utf-8")
    if cell_source(changed, cell) != new:
        raise RepairError(f"cell {cell} could not be written")
    return (data[:3] if data.startswith(b"\xef\xbb\xbf") else b"") + changed


def _spliced(text: str, node: Node, items: list[Node], new: str, raw: bool) -> str:
    old = [item.value for item in items]
    lines = new.splitlines(keepends=True)
    if not items or not lines:
        body = ", ".join(_string(line, raw) for line in lines)
        return f"{text[: node.start]}[{body}]{text[node.end :]}"
    gap = text[items[0].end : items[1].start] if len(items) > 1 else ",\n    "
    out, at = [], 0
    for tag, i, j, k, m in difflib.SequenceMatcher(None, old, lines, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        fresh = gap.join(_string(line, raw) for line in lines[k:m])
        if tag == "insert":
            at_end = i == len(items)
            place = items[-1].end if at_end else items[i].start
            out += [text[at:place], gap + fresh if at_end else fresh + gap]
            at = place
        elif tag == "replace":
            out += [text[at : items[i].start], fresh]
            at = items[j - 1].end
        else:
            start = items[i].start if i == 0 else items[i - 1].end
            end = items[j].start if i == 0 and j < len(items) else items[j - 1].end
            out.append(text[at:start])
            at = end
    return "".join([*out, text[at:]])


def _string(value: str, raw: bool) -> str:
    return json.dumps(value, ensure_ascii=not raw)


def _joined(node: Node) -> str:
    if isinstance(node.children, list):
        return "".join(str(item.value) for item in node.children)
    return str(node.value)


def _source(root: Node, cell: int) -> Node:
    node = root.at("cells", cell, "source")
    if node is None or isinstance(node.children, dict):
        raise RepairError(f"it is no notebook with a cell {cell}")
    return node


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RepairError(f"it is not UTF-8: {error}") from None


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _value(text: str, at: int) -> Node:
    if text[at] == '"':
        value, end = _DECODER.raw_decode(text, at)
        return Node(at, end, value)
    if text[at] == "{":
        return _object(text, at)
    if text[at] == "[":
        return _array(text, at)
    match = _PLAIN.match(text, at)
    if match is None:
        raise ValueError(f"unexpected {text[at : at + 10]!r} at character {at}")
    return Node(at, match.end(), None)


def _object(text: str, start: int) -> Node:
    members: dict[str, Node] = {}
    at = _skip(text, start + 1)
    while text[at] != "}":
        key = _value(text, at)
        at = _skip(text, key.end)
        if text[at] != ":":
            raise ValueError(f"expected ':' at character {at}")
        member = _value(text, _skip(text, at + 1))
        members[str(key.value)] = member
        at = _skip(text, member.end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return Node(start, at + 1, children=members)


def _array(text: str, start: int) -> Node:
    items = []
    at = _skip(text, start + 1)
    while text[at] != "]":
        item = _value(text, at)
        items.append(item)
        at = _skip(text, item.end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return Node(start, at + 1, children=items)
