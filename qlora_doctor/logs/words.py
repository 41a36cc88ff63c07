"""The words that a match of a pattern must contain, so that one look at a table says which patterns to try.

A word counts only where it stands whole in the pattern: between characters that end words, or at the pattern's own
edge (a pattern begins and ends at the edge of a word).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import product
from typing import Any

if sys.version_info >= (3, 11):
    from re import _constants as sre  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
else:  # the same two modules by their old names
    import sre_constants as sre
    import sre_parse as parser

FOREIGN = b"non-ascii"
EDGE, ANY = "\0", "\1"
MOST = 64
# Words that stand in nearly every line are no help where there are others.
COMMON = frozenset(
    [
        "the",
        "of",
        "a",
        "an",
        "in",
        "is",
        "to",
        "not",
        "no",
        "and",
        "or",
        "for",
        "with",
        "at",
        "on",
        "by",
        "be",
        "it",
        "this",
        "that",
        "was",
        "has",
        "have",
        "as",
        "from",
        "you",
    ]
)
_WORD = re.compile(r"[A-Za-z0-9_]+")
_LOWER = bytes(c if (c < 128 and chr(c).isalnum()) or c == 95 else 32 for c in bytes(range(256)).lower())


@cache
def words_of(pattern: str) -> frozenset[bytes] | None:
    """Words (lower case) one of which stands in every match of `pattern`; None where there is no such set."""
    found = set()
    for text in _spelled(parser.parse(pattern)):
        word = _telling(EDGE + text + EDGE)
        if word is None:
            return None
        found.add(word)
    return frozenset(found)


def _telling(text: str) -> bytes | None:
    """The most telling word that stands whole in one spelling."""
    if any(ord(c) > 127 for c in text):
        return FOREIGN
    words = [m[0].lower() for m in _WORD.finditer(text) if ANY not in (text[m.start() - 1], text[m.end()])]
    best = max(words, key=lambda w: (w not in COMMON and len(w) > 2, len(w)), default=None)
    return None if best is None else best.encode()


def _spelled(items: Iterable[Any]) -> list[str]:
    """The spellings of a sequence; what is not a letter is EDGE (it ends a word) or ANY (it may go on with one)."""
    parts: list[Sequence[str]] = []
    count = 1
    for operator, argument in items:
        part = _part(operator, argument)
        if count * len(part) > MOST:
            part = [ANY]
        count *= len(part)
        parts.append(part)
    return ["".join(choice) for choice in product(*parts)]


def _part(operator: Any, argument: Any) -> Sequence[str]:
    if operator is sre.LITERAL:
        return [chr(argument)]
    if operator is sre.AT:
        return [EDGE] if argument is not sre.AT_NON_BOUNDARY else [""]
    if operator in (sre.ASSERT, sre.ASSERT_NOT):
        return [""]
    if operator is sre.SUBPATTERN:
        return _spelled(argument[3])
    if operator is sre.BRANCH:
        return [text for branch in argument[1] for text in _spelled(branch)]
    if operator is sre.IN:
        return [EDGE] if all(_ends_word(*item) for item in argument) else [ANY]
    if operator in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        low, high, inner = argument
        texts = _spelled(inner)
        if (low, high) == (0, 1):
            return ["", *texts]
        if all(text and ANY not in text and not _WORD.search(text) for text in texts):
            return [EDGE] if low else ["", EDGE]
        return [text + ANY for text in texts] if low else [ANY]
    return [ANY]


def _ends_word(kind: Any, value: Any) -> bool:
    """Whether a member of a class is no part of a word: `\\s`, a bracket."""
    if kind is sre.LITERAL:
        return not _WORD.match(chr(value))
    return bool(kind is sre.CATEGORY and value is sre.CATEGORY_SPACE)


def tokens(data: bytes) -> set[bytes]:
    """The words of some text, in lower case, and FOREIGN where it is not all ASCII."""
    found = set(data.translate(_LOWER).split())
    if not data.isascii():
        found.add(FOREIGN)
    return found


def table(patterns: Iterable[str]) -> frozenset[bytes]:
    """All words of all patterns."""
    return frozenset(w for p in patterns for w in words_of(p) or ())
