"""QD7: what the rows say: repetition, leaks, damaged text, thoughts."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.data_rows import places, rows_found
from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice
from qlora_doctor.registry import Check, check


@check("QD719", needs=["data"], since="0.2")
def rows_that_repeat(facts: Facts) -> Iterator[Finding]:
    """The same row more than once.

    A repeated row is learned by heart that many times faster, and a split made afterwards puts one copy into the evaluation.
    A warning from a tenth of the rows on; information below that. Rows of one text and different images are different.

    Fix: take the copies out.

    Source: the rows compared as they are, word for word.
    """
    for data in facts.data:
        count = data.count("duplicate")
        if count:
            yield Finding(
                "{of} are there more than once ({where}). Take the copies out, before splitting off an evaluation",
                {"of": f"{count} of {data.rows} rows", "where": places(data, "duplicate")},
                severity="warning" if count >= data.rows / 10 else "info",
                fixes=(Advice("Take the repeated rows out"),),
            )


@check("QD720", needs=["data"], since="0.2")
def evaluation_rows_in_the_training(facts: Facts) -> Iterator[Finding]:
    """Rows of the evaluation data that are trained on too.

    The evaluation loss then falls for what was learned by heart, and early stopping stops too late. Compared word for word,
    and once more without case, spaces and punctuation.

    Only where evaluation data was named (`--eval`, `eval_data`).

    Fix: take the rows out of the training data.

    Source: the rows compared.
    """
    yield from rows_found(
        facts,
        ("leak", "near leak"),
        "{of} of the training data are in the evaluation too ({where}); the first, {first}. Take them out of the training "
        "data, or the evaluation says nothing",
        "warning",
        "Take the evaluation's rows out of the training data",
    )


@check("QD721", needs=["data"], since="0.2")
def text_damaged_by_an_encoding(facts: Facts) -> Iterator[Finding]:
    """Text with the traces of a wrong encoding: replacement characters, UTF-8 that was read as Latin-1, or as GBK and back.

    The model learns to write them. The bytes were lost when the file was made; reading it otherwise does not help.

    A warning from one row in a hundred on; information below that (a row may speak of such characters).

    Fix: make the file anew from its source, as UTF-8.

    Source: U+FFFD; the pairs that UTF-8's first bytes give in Windows-1252; the well-known results of GBK.
    """
    for data in facts.data:
        count = data.count("damaged text")
        if count:
            yield Finding(
                "{of} hold characters that a wrong encoding leaves behind ({where}), and the model would learn to write them. "
                "Make the file anew from its source, as UTF-8",
                {"of": f"{count} of {data.rows} rows", "where": places(data, "damaged text")},
                severity="warning" if count >= data.rows / 100 else "info",
                fixes=(Advice("Make the file anew from its source, as UTF-8"),),
            )


@check("QD722", needs=["data"], since="0.2")
def thoughts_that_the_template_does_not_know(facts: Facts) -> Iterator[Finding]:
    """`<think>` in the answers, and a chat template that does not know it; or thoughts in some of the rows only.

    Where the template knows thoughts (Qwen3, DeepSeek-R1 distills) the tags are tokens of their own; elsewhere they are
    spelled out and learned as text, which works but cannot be switched off later. With thoughts in some rows only, the
    model thinks at random, unless `enable_thinking` tells the two apart.

    Information for the mixture, a warning for a template that does not know them. Silent where all rows think and the
    template knows it.

    Fix: a model that thinks, or the thoughts taken out.

    Source: the chat templates of Qwen3 and of Llama 3.
    """
    for data in facts.data:
        count = data.count("thinking")
        if not count:
            continue
        if data.template_thinks is False:
            yield Finding(
                "{of} hold <think>, which this model's chat template does not know: the tags are learned as text and cannot be "
                "switched off. Take a model that thinks (Qwen3), or take the thoughts out",
                {"of": f"{count} of {data.rows} rows"},
                severity="warning",
                fixes=(Advice("Take a model whose template knows <think>, or take the thoughts out"),),
            )
        elif count < data.rows:
            yield Finding(
                "{of} hold <think> and the others do not, so the model learns to think at random. Make it all or none, or "
                "train the two apart",
                {"of": f"{count} of {data.rows} rows"},
                severity="info",
                fixes=(Advice("Give all rows thoughts, or none"),),
            )


@check("QD723", needs=["data"], since="0.2")
def one_question_with_several_answers(facts: Facts) -> Iterator[Finding]:
    """The same question, word for word, with different answers.

    The model learns a mixture; facts become a matter of chance. It is as it should be where a task has many right answers
    (stories, captions of one image). A warning from a fifth of the rows on, where the question is likely the instruction
    alone and the input stands in a field that is not used; else information.

    Fix: look whether a field with the input is left out; keep one answer.

    Source: the rows compared.
    """
    for data in facts.data:
        count = data.count("contradiction")
        if count:
            yield Finding(
                "{of} repeat a question with another answer ({where}). Look whether a field with the input is left out, and keep "
                "one answer where only one is right",
                {"of": f"{count} of {data.rows} rows", "where": places(data, "contradiction")},
                severity="warning" if count >= data.rows / 5 and data.format != "caption" else "info",
                fixes=(Advice("Keep one answer for each question"),),
            )


@check("QD724", needs=["data"], since="0.2")
def turns_in_another_order(facts: Facts) -> Iterator[Finding]:
    """Conversations that do not go question, answer, question, answer.

    Two turns of one role in a row, an assistant who speaks first, a question at the end without an answer. Many chat
    templates raise `Conversation roles must alternate` on them (Llama 2, Mistral, Gemma); others join or drop turns. What the
    template of this model refuses is QD717.

    A warning from a twentieth of the rows on; information below that.

    Fix: put the turns in order, or take the rows out.

    Source: the `raise_exception` lines of the chat templates of Llama 2, Mistral and Gemma.
    """
    for data in facts.data:
        count = data.count("turn order")
        if count:
            yield Finding(
                "{of} do not go from question to answer in turn ({where}); the first, {first}. Put the turns in order",
                {
                    "of": f"{count} of {data.rows} rows",
                    "where": places(data, "turn order"),
                    "first": data.of("turn order")[0].detail,
                },
                severity="warning" if count >= data.rows / 20 else "info",
                fixes=(Advice("Put the turns in order"),),
            )


@check("QD725", needs=["data"], since="0.2")
def empty_questions(facts: Facts) -> Iterator[Finding]:
    """Rows whose question is empty.

    The model learns to say the answers to nothing, at random. Image captions without a prompt are not counted.

    Fix: look whether the question stands in another field; else take the rows out.

    Source: the rows.
    """
    yield from rows_found(
        facts,
        ("empty question",),
        "{of} have an empty question ({where}). Look whether it stands in another field, or take them out",
        "warning",
        "Take the rows with empty questions out",
    )


@check("QD726", needs=["data"], since="0.2")
def data_in_another_encoding(facts: Facts) -> Iterator[Finding]:
    """A data file that is not plain UTF-8: GBK, GB18030, UTF-16, UTF-8 with a byte order mark.

    QLoRA Doctor reads them as what they are. Other tools do not: `datasets` and `open()` stop with a UnicodeDecodeError, and
    with a mark the first key of the first row is another one.

    Information.

    Fix: save it as UTF-8, for example `iconv -f GBK -t UTF-8`.

    Source: the bytes of the file.
    """
    for data in facts.data:
        for file, encoding in data.encodings.items():
            yield Finding(
                "{file} is {encoding}; it was read as that. Save it as UTF-8 for other tools",
                {"file": file, "encoding": encoding},
                severity="info",
                fixes=(Advice("Save the file as UTF-8"),),
            )


CHECKS: tuple[Check, ...] = (
    rows_that_repeat,
    evaluation_rows_in_the_training,
    text_damaged_by_an_encoding,
    thoughts_that_the_template_does_not_know,
    one_question_with_several_answers,
    turns_in_another_order,
    empty_questions,
    data_in_another_encoding,
)
