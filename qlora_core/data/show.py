"""The audit in words, and a row as the model gets it, with what is learned in colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from qlora_core.data.rows import Encoded, Rows
from qlora_doctor.facts import DataFacts
from qlora_doctor.gather.data.formats import FORMATS
from qlora_doctor.i18n import said

if TYPE_CHECKING:
    from qlora_core.data.audit import Audit

GREEN, DIM, PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[0m"
BAR = 30
LONG = 600
SKIP = -100


def show_audit(audit: Audit, *, rows: int = 1, colour: bool = False) -> str:
    """The whole audit as text, with the first `rows` rows decoded."""
    lines = [*show_data(audit.facts), *(said(f"  note        {note}") for note in audit.notes)]
    return "\n".join([*lines, *_samples(audit, rows, colour)])


def show_data(facts: DataFacts) -> list[str]:
    """The facts of data, a line for each thing that can be counted."""
    names = [FORMATS.get(word, word) for word in facts.format.split(" + ")] if facts.format else ["not recognised"]
    files = ", ".join(_short(file) for file in facts.files[:4]) + (
        f" and {len(facts.files) - 4} more" if len(facts.files) > 4 else ""
    )
    head = said(f"data          {files}: {facts.rows:,} rows")
    lines = [head + (said(f", {facts.images:,} images") if facts.images else "")]
    lines.append(f"  format      {'; '.join(names)}")
    lines += [f"  encoding    {file}: {encoding}" for file, encoding in facts.encodings.items()]
    if facts.tokens is not None and facts.kept is not None:
        share = 100 * (facts.supervised or 0) / facts.tokens if facts.tokens else 0
        lines.append(f"  tokens      {facts.tokens:,} in {facts.kept:,} rows; {share:.1f} % are learned")
        lines += [f"  {line}" for line in show_lengths(facts)]
    left = facts.rows - facts.kept if facts.kept is not None else 0
    if left:
        lines.append(f"  left out    {left:,} of {facts.rows:,} rows")
    lines += [f"  note        {note}" for note in facts.notes]
    for kind, count in sorted(facts.counts.items(), key=lambda item: -item[1]):
        first = next((f for f in facts.faults if f.kind == kind), None)
        lines.append(f"  {kind:<20}{count:>7,}  " + (f"{first.where}: {first.detail}" if first else ""))
    return [said(line) for line in lines]


def show_lengths(facts: DataFacts) -> Iterator[str]:
    """The histogram of lengths."""
    most = max(facts.lengths.values(), default=0)
    for number, (edge, count) in enumerate(facts.lengths.items()):
        over = said(" (over the limit)") if facts.max_length and int(edge) // 2 >= facts.max_length else ""
        head = "lengths" if number == 0 else ""
        bar = "#" * max(1 if count else 0, round(BAR * count / most))
        yield f"{head:<10}  <= {int(edge):>6} {bar:<{BAR}} {count:,}{over}"


def _samples(audit: Audit, rows: int, colour: bool) -> Iterator[str]:
    encode = audit.encoded.encode
    tokenizer = getattr(encode, "tokenizer", None) or getattr(getattr(encode, "processor", None), "tokenizer", None)
    for row, made in list(zip(audit.encoded.rows, audit.encoded.made, strict=True))[:rows]:
        if tokenizer is None:
            return
        head = said(f"row           {row.where}: {len(made.input_ids)} tokens, {made.supervised} learned")
        yield head + ("" if colour else said(" (between [[ and ]])"))
        yield show_row(made, tokenizer, colour=colour)


def show_row(made: Encoded, tokenizer: Any, *, colour: bool = False) -> str:
    """A row decoded. What is learned is green, or between `[[` and `]]`; a run of one image token is written once."""
    if len(made.labels) != len(made.input_ids) or any(
        label not in (SKIP, token) for token, label in zip(made.input_ids, made.labels, strict=True)
    ):
        # An encoder-decoder: the answer is a sequence of its own.
        answer = [label for label in made.labels if label != SKIP]
        parts = [(False, list(made.input_ids)), (True, answer)]
    else:
        marked = zip(made.input_ids, made.labels, strict=True)
        parts = [
            (learned, [token for token, _ in run]) for learned, run in groupby(marked, key=lambda pair: pair[1] != SKIP)
        ]
    out = []
    for learned, tokens in parts:
        text = _shortened("".join(_decoded(tokens, tokenizer)))
        before, after = (GREEN, PLAIN) if learned else (DIM, PLAIN)
        if not colour:
            before, after = ("[[", "]]") if learned else ("", "")
        out.append(f"{before}{text}{after}")
    return "".join(out)


def _decoded(tokens: Sequence[int], tokenizer: Any) -> Iterator[str]:
    """Text, with a token that stands more than eight times in a row written once and counted."""
    run: list[int] = []
    for token, same in groupby(tokens):
        count = sum(1 for _ in same)
        if count <= 8:
            run += [token] * count
            continue
        if run:
            yield tokenizer.decode(run, skip_special_tokens=False)
            run = []
        yield f"{tokenizer.decode([token], skip_special_tokens=False)} x {count}"
    if run:
        yield tokenizer.decode(run, skip_special_tokens=False)


def _shortened(text: str) -> str:
    if len(text) <= LONG:
        return _printable(text)
    return f"{_printable(text[: LONG // 2])} ... {_printable(text[-LONG // 2 :])}"


def _printable(text: str) -> str:
    """Control characters made visible: a row of data must not steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def _short(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2] or path


def show_read(rows: Rows, count: int) -> Iterator[str]:
    """The first rows as they were read, without a tokenizer."""
    for row in rows.rows[:count]:
        yield said(f"row           {row.where}")
        for message in row.messages:
            text = _shortened("".join(p if isinstance(p, str) else "<image>" for p in message.parts))
            yield f"  {message.role:<10}  {text}" + ("" if message.learn else said("  (not learned)"))
