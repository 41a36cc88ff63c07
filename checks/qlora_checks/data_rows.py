"""QD7: the rows of training data: what can be read, what has an answer, what a tokenizer makes of it."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_doctor.facts import DataFacts, Facts
from qlora_doctor.finding import Finding, Severity
from qlora_doctor.fix import Advice
from qlora_doctor.registry import Check, check

SHOWN = 5


def places(data: DataFacts, *kinds: str) -> str:
    """The first rows of these kinds, as a clause: `train.jsonl rows 3, 17; eval.jsonl row 2 and 40 more`."""
    found = data.of(*kinds)
    by_file: dict[str, list[str]] = {}
    for fault in found[:SHOWN]:
        by_file.setdefault(fault.file, []).append(str(fault.row))
    text = "; ".join(
        f"{file} row{'s' if len(rows) > 1 else ''} {', '.join(rows)}".strip() for file, rows in by_file.items()
    )
    more = data.count(*kinds) - min(SHOWN, len(found))
    return f"{text} and {more} more" if more > 0 else text


def rows_found(
    facts: Facts, kinds: tuple[str, ...], message: str, severity: Severity, advice: str, share: float = 0.0
) -> Iterator[Finding]:
    """One finding for each set of data in which more than `share` of the rows have a fault of these kinds."""
    for data in facts.data:
        count = data.count(*kinds)
        if count == 0 or count < share * data.rows:
            continue
        first = data.of(*kinds)
        yield Finding(
            message,
            {
                "count": count,
                "rows": data.rows,
                "of": f"{count} of {data.rows} rows",
                "where": places(data, *kinds),
                "first": f"{first[0].where}: {first[0].detail}" if first else "",
            },
            severity=severity,
            fixes=(Advice(advice),),
        )


@check("QD706", needs=["data"], since="0.2")
def data_that_cannot_be_read(facts: Facts) -> Iterator[Finding]:
    """A data file of which nothing can be read, or of which no format is known.

    A Git LFS pointer in the place of the file, a web page that was saved under its name, a zip archive, JSON that was cut
    off, text in an encoding that is neither UTF-8, UTF-16 nor GBK, an empty file, or rows with keys that no format has.
    Trainers end with a JSON or Arrow error here that names no file.

    It does not apply to single rows (QD707).

    Fix: what the message says of the file.

    Source: the files themselves; the formats are listed in `qlora_doctor/gather/data/formats.py`.
    """
    for data in facts.data:
        for fault in data.of("unreadable"):
            yield Finding(
                "{file} cannot be read as training data: {reason}",
                {"file": fault.file, "reason": fault.detail},
                severity="error",
                fixes=(Advice("Replace the file by one that holds the data"),),
            )
        if data.rows == 0 and not data.count("unreadable"):
            yield Finding(
                "{file} holds no row: nothing can be learned from it. Name the file that holds the data",
                {"file": ", ".join(data.files) or "the data"},
                severity="error",
                fixes=(Advice("Name the file that holds the data"),),
            )


@check("QD707", needs=["data"], since="0.2")
def malformed_rows(facts: Facts) -> Iterator[Finding]:
    """Rows that are no JSON, lack a field of their format, or hold a number where text is wanted.

    Trainers drop such rows without a word, stop in the middle of tokenising without a row number, or make text of what is
    none: `None` and `nan` become words that the model learns to say.

    Not counted here: rows of preferences (QD708), rows without an answer (QD710), images (QD713 to QD716).

    Fix: mend the rows, or take them out; `qlora-core data FILE` lists the first of each kind.

    Source: run on malformed files; `datasets` 5 reports `Failed to parse JSON` with no row.
    """
    yield from rows_found(
        facts,
        ("malformed", "not text"),
        "{of} cannot be used ({where}). The first, {first}. Mend them or take them out; nothing is dropped unsaid",
        "error",
        "Mend the rows or take them out",
    )


@check("QD708", needs=["data"], since="0.2")
def preference_data_in_fine_tuning(facts: Facts) -> Iterator[Finding]:
    """Rows of chosen and rejected answers: data for DPO, KTO or a reward model.

    Supervised fine-tuning has one answer to a question. Read as if it were such data, the rejected answer is lost or, worse,
    learned. QLoRA Doctor trains supervised only.

    Fix: keep the chosen answer as `output`, or use a preference trainer (TRL's DPOTrainer takes these columns).

    Source: the columns of TRL's preference formats (`chosen`, `rejected`; `completion` with a boolean `label`).
    """
    yield from rows_found(
        facts,
        ("preference",),
        "{of} are preferences (chosen and rejected answers): that is data for DPO, KTO or a reward model, and only "
        "supervised fine-tuning is done here. Keep the chosen answer as `output`, or use a preference trainer",
        "error",
        "Keep the chosen answers alone, or use TRL's DPOTrainer",
    )


@check("QD709", needs=["data"], since="0.2")
def empty_answers(facts: Facts) -> Iterator[Finding]:
    """Rows whose answer is empty or only white space.

    The model learns to end its turn at once. A few do little; many make a model that says nothing. An error where more than
    half of the answers are empty: then the answers stand in another column.

    It does not apply to an empty `input` of the Alpaca format, which is as it should be.

    Fix: take the rows out, or name the column that holds the answers.

    Source: the labels of such a row are the end token alone.
    """
    for data in facts.data:
        count = data.count("empty answer")
        if count:
            yield Finding(
                "{of} have an empty answer ({where}): the model learns to say nothing. Take them out, or look whether the "
                "answers stand in another field",
                {"of": f"{count} of {data.rows} rows", "where": places(data, "empty answer")},
                severity="error" if count > data.rows / 2 else "warning",
                fixes=(Advice("Take the rows with empty answers out"),),
            )


@check("QD710", needs=["data"], since="0.2")
def rows_without_an_answer(facts: Facts) -> Iterator[Finding]:
    """Conversations in which nobody answers: no turn of the assistant, or an empty list.

    Nothing can be learned from them. Usual causes: roles of other names, a prompt-only data set, an export that kept the
    questions.

    Fix: take them out, or give the assistant's turns the role `assistant` (ShareGPT: `gpt`).

    Source: only assistant turns carry labels.
    """
    yield from rows_found(
        facts,
        ("no answer",),
        "{of} have no answer ({where}): nothing can be learned from them. Add the assistant's turn, or take them out",
        "error",
        "Add the answers or take the rows out",
    )


@check("QD711", needs=["data"], since="0.2", requires=["QD706"])
def rows_of_which_nothing_is_learned(facts: Facts) -> Iterator[Finding]:
    """Rows whose labels are all -100 after encoding: the loss does not see them.

    With all rows like that the loss is 0.0 or nan and a night of training changes nothing. Usual causes: a chat template
    that leaves the answers out, response markers that the template does not write, answers marked `"weight": 0`.

    An error where it is so of every row that could be encoded; a warning where it is so of some (they are left out).

    Only where a tokenizer was at hand (`qlora-core data --model`, `train`), but for rows that say so themselves.

    Fix: another chat template (`--template`), or take the rows out.

    Source: the labels themselves, row by row.
    """
    for data in facts.data:
        count = data.count("masked")
        if not count:
            continue
        whole = data.kept == 0 and count >= data.count("too long", "cannot be encoded")
        if whole:
            yield Finding(
                "Nothing is learned from any of the {count} rows: every label is masked, and the loss would be 0. The chat "
                "template leaves the answers out, or they are marked as not to be learned; give another with --template",
                {"count": count},
                severity="error",
                fixes=(Advice("Give a chat template that writes out the answers"),),
            )
        else:
            yield Finding(
                "Nothing is learned from {of} ({where}): every label is masked. They are left out",
                {"of": f"{count} of {data.rows} rows", "where": places(data, "masked")},
                fixes=(Advice("Take the rows out, or see to it that they have an answer"),),
            )


@check("QD712", needs=["data"], since="0.2")
def rows_that_are_too_long(facts: Facts) -> Iterator[Finding]:
    """Rows of more tokens than `max_length`.

    They are left out, never cut: a cut on the right takes the answer, one on the left the question, and either may go
    through an image, after which the forward stops with `Image features and image tokens do not match`.

    An error where all are too long, or where long rows are to be refused (`too_long="refuse"`); a warning from 5 % of the
    rows on; information below that.

    Fix: a larger `max_length` (the length histogram shows which), smaller images, or shorter rows.

    Source: the token counts of the rows; cuts through images: LLaMA-Factory issue 6559 and TRL issue 4289.
    """
    for data in facts.data:
        count = data.count("too long")
        if not count or not data.max_length:
            continue
        share = count / max(1, data.rows)
        severity: Severity = (
            "error" if data.kept == 0 or data.too_long == "refuse" else "warning" if share >= 0.05 else "info"
        )
        yield Finding(
            "{of} are longer than max_length={limit} tokens ({where}) and are {fate}: rows are never cut. Raise max_length "
            "(the longest has up to {longest} tokens), shorten the rows, or leave them out",
            {
                "of": f"{count} of {data.rows} rows",
                "limit": data.max_length,
                "where": places(data, "too long"),
                "fate": "refused" if data.too_long == "refuse" else "left out",
                "longest": list(data.lengths)[-1] if data.lengths else "more",
            },
            severity=severity,
            fixes=(Advice("Raise max_length, or shorten the rows"),),
        )


@check("QD717", needs=["data"], since="0.2")
def rows_that_cannot_be_encoded(facts: Facts) -> Iterator[Finding]:
    """Rows that the model's chat template or processor refuses.

    Many templates refuse two turns of one role in a row, or an assistant who speaks first; a text model takes no image; a
    vision model takes as many images as there are places for them.

    An error where more than half of the rows are refused, a warning else: they are left out.

    Only where a tokenizer was at hand (`qlora-core data --model`, `train`).

    Fix: what the first row's message says; or another template.

    Source: the template's or the processor's own refusal.
    """
    for data in facts.data:
        count = data.count("cannot be encoded")
        if count:
            first = data.of("cannot be encoded")[0]
            yield Finding(
                "{of} cannot be encoded for this model ({where}) and are left out. The first, {first}",
                {
                    "of": f"{count} of {data.rows} rows",
                    "where": places(data, "cannot be encoded"),
                    "first": f"{first.where}: {first.detail}",
                },
                severity="error" if count > data.rows / 2 else "warning",
                fixes=(Advice("Put the turns in the order that the template asks for, or give another template"),),
            )


CHECKS: tuple[Check, ...] = (
    data_that_cannot_be_read,
    malformed_rows,
    preference_data_in_fine_tuning,
    empty_answers,
    rows_without_an_answer,
    rows_of_which_nothing_is_learned,
    rows_that_are_too_long,
    rows_that_cannot_be_encoded,
)
