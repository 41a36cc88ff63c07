"""Which tokens a span of characters is: the labels of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qlora_core.data.template import Span

# The label of a token that is read and not learned.
SKIP = -100


def token_span(tokenizer: Any, batch: Any, place: int, text: str, span: Span) -> tuple[int, int]:
    """The tokens of `text` that overlap a span of characters, as a slice."""
    start, end = span
    if start >= end:
        return 0, 0
    if not getattr(tokenizer, "is_fast", False):
        return _by_prefix(tokenizer, batch["input_ids"][place], text, span)
    encoding = batch.encodings[place]
    first = next((t for c in range(start, end) if (t := encoding.char_to_token(c)) is not None), None)
    if first is None:
        return 0, 0
    last = next(t for c in range(end - 1, start - 1, -1) if (t := encoding.char_to_token(c)) is not None)
    # A letter of several bytes can be several tokens, of which char_to_token names the first.
    while last + 1 < len(encoding) and (chars := encoding.token_to_chars(last + 1)) is not None and chars[0] < end:
        if chars[0] == chars[1]:
            break
        last += 1
    return first, last + 1


def _by_prefix(tokenizer: Any, ids: Sequence[int], text: str, span: Span) -> tuple[int, int]:
    """The same for a tokenizer without offsets: how many tokens the text before and the text up to the end share."""
    places = []
    for end in span:
        part = tokenizer(text[:end], add_special_tokens=False)["input_ids"]
        same = next((i for i, (a, b) in enumerate(zip(part, ids, strict=False)) if a != b), min(len(part), len(ids)))
        places.append(len(ids) if end == len(text) else same)
    return places[0], places[1]
