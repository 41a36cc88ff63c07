"""The audit: every row encoded as the model will get it, before the model is loaded, and what that shows.

Only the tokenizer and the processor are needed. Of images the header is read, and whether the file is whole.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from qlora_core.data.images import look_at_images
from qlora_core.data.rows import Encoded, Row, Rows
from qlora_core.errors import RowProblem
from qlora_doctor.errors import UsageError
from qlora_doctor.facts import DataFacts, Facts, RowFault
from qlora_doctor.finding import Finding
from qlora_doctor.gather.data.survey import facts_of, survey

CHUNK = 1000
SKIP = -100
Progress = Callable[[int, int], None]
_UNUSABLE = ("image missing", "image broken")


@dataclass(frozen=True, slots=True)
class TrainData(Sequence[Encoded]):
    """The rows that are kept, for a Trainer: text as it was encoded, rows with images encoded anew each time, with pixels.

    `lengths` are in tokens; `modalities` say of each row whether it has an image. Both are for grouping batches.
    """

    rows: tuple[Row, ...]
    made: tuple[Encoded, ...]
    encode: Any

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return TrainData(self.rows[index], self.made[index], self.encode)
        made = self.made[index]
        return self.encode(self.rows[index], pixels=True) if made.images or self.rows[index].images else made

    def __iter__(self) -> Iterator[Encoded]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> list[int]:
        return [len(made.input_ids) for made in self.made]

    @property
    def modalities(self) -> list[str]:
        """`image` or `text` for each row."""
        return ["image" if row.images else "text" for row in self.rows]


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found. `encoded` are the rows to train on, `kept` their places in `rows` (from 0).

    `dropped` says of every other row why it was left out, `facts` is what the QD7 checks judge.
    """

    rows: Rows
    encoded: TrainData
    kept: tuple[int, ...]
    dropped: tuple[RowFault, ...]
    facts: DataFacts
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        from qlora_core.data.show import show_audit

        return show_audit(self)


def audit(
    rows: Rows,
    encode: Any,
    *,
    max_length: int | None,
    too_long: Literal["drop", "refuse"] = "drop",
    eval_rows: Rows | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Encodes every row with `encode` (of `make_encoder`) and counts what is wrong.

    Rows longer than `max_length` tokens are left out, never cut: a cut goes through an answer or an image. With `refuse`
    they are left out as well, and the checks make an error of them. Rows of which nothing is learned, and rows that cannot
    be encoded, are left out and counted. `progress` is told the rows done and all.

    Raises:
        UsageError: a `max_length` or `too_long` that means nothing.
    """
    if max_length is not None and (isinstance(max_length, bool) or max_length < 1):
        raise UsageError(f"max_length={max_length!r}; give a number of tokens, or None for no limit")
    if too_long not in ("drop", "refuse"):
        raise UsageError(f"too_long={too_long!r}: drop or refuse")
    facts = survey(rows, eval_rows, look_at_images=False)
    pictures = look_at_images([row for row in rows if row.images])
    spoiled = {(f.file, f.row): f for f in pictures if f.kind in _UNUSABLE}
    made: list[Encoded] = []
    kept: list[int] = []
    dropped: list[RowFault] = []
    lengths: list[int] = []
    for place, result in enumerate(_encoded(rows, encode, spoiled, progress)):
        row = rows[place]
        fault = result if isinstance(result, RowFault) else _fault(row, result, max_length)
        if isinstance(result, Encoded):
            lengths.append(len(result.input_ids))
        if fault is None:
            made.append(result)
            kept.append(place)
        else:
            dropped.append(fault)
    told = {(f.kind, f.file, f.row) for f in rows.faults}
    new = [f for f in dropped if f.kind not in _UNUSABLE and (f.kind, f.file, f.row) not in told]
    facts = facts_of([*pictures, *new], facts)
    facts = replace(
        facts,
        max_length=max_length or 0,
        too_long=too_long,
        kept=len(kept),
        tokens=sum(len(one.input_ids) for one in made),
        supervised=sum(one.supervised for one in made),
        lengths=histogram(lengths),
        template_thinks=_thinks(encode),
    )
    data = TrainData(tuple(rows[place] for place in kept), tuple(made), encode)
    return Audit(rows, data, tuple(kept), tuple(dropped), facts, tuple(getattr(encode, "notes", ())))


def _encoded(
    rows: Rows, encode: Any, spoiled: dict[tuple[str, int], RowFault], progress: Progress | None
) -> Iterator[Any]:
    """For each row an Encoded, or the RowFault that says why there is none."""
    many = getattr(encode, "many", None)
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        good = [row for row in chunk if (row.file, row.number) not in spoiled]
        results = iter(many(good, keep_problems=True) if many is not None else [_one(encode, row) for row in good])
        for row in chunk:
            fault = spoiled.get((row.file, row.number))
            result = fault if fault is not None else next(results)
            yield _problem(row, result) if isinstance(result, RowProblem) else _compact(result)
        if progress is not None:
            progress(min(start + CHUNK, len(rows)), len(rows))


def _one(encode: Any, row: Row) -> Any:
    try:
        return encode(row, pixels=False)
    except RowProblem as problem:
        return problem


def _problem(row: Row, problem: RowProblem) -> RowFault:
    return RowFault("cannot be encoded", row.file, row.number, "", f"{problem.reason}. {problem.remedy}")


def _compact(result: Any) -> Any:
    """The same in four bytes a token: a list of numbers takes up to thirty-six."""
    if not isinstance(result, Encoded) or isinstance(result.input_ids, array):
        return result
    return replace(result, input_ids=array("i", result.input_ids), labels=array("i", result.labels))


def _fault(row: Row, made: Encoded, max_length: int | None) -> RowFault | None:
    length = max(len(made.input_ids), len(made.labels))
    if max_length is not None and length > max_length:
        images = f", of which its {made.images} images take a part" if made.images else ""
        return RowFault("too long", row.file, row.number, "", f"{length} tokens{images}; the limit is {max_length}")
    if made.supervised == 0:
        return RowFault("masked", row.file, row.number, "", "not one of its tokens is learned")
    return None


def histogram(lengths: Sequence[int]) -> dict[str, int]:
    """How many rows have up to 64, 128, 256, ... tokens, from the shortest to the longest there are."""
    if not lengths:
        return {}
    edges = [64]
    while edges[-1] < max(lengths):
        edges.append(edges[-1] * 2)
    counts = dict.fromkeys(edges, 0)
    for length in lengths:
        counts[max(64, 1 << (length - 1).bit_length())] += 1
    first = next(edge for edge in edges if counts[edge])
    return {str(edge): count for edge, count in counts.items() if edge >= first}


def _thinks(encode: Any) -> bool | None:
    """Whether the chat template knows `<think>`; None where it cannot be seen."""
    template = getattr(getattr(encode, "turns", None), "template", None)
    source = getattr(template, "source", None)
    return None if source is None else "<think>" in source or "</think>" in source


def findings_of(facts: DataFacts) -> tuple[Finding, ...]:
    """What the checks of data (QD7) say of these facts, gravest first."""
    from qlora_doctor.judge import judge
    from qlora_doctor.registry import installed_checks

    checks = [check for check in installed_checks().checks if check.needs == ("data",)]
    return judge(checks, Facts(data=(facts,))).findings
