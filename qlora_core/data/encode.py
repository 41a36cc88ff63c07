"""From a row to tokens and labels: what the model reads, and which of it the model learns to say."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from qlora_core.data.labels import SKIP, token_span
from qlora_core.data.rows import Encoded, Image, Message, Row
from qlora_core.data.template import END, START, Span, choose_template
from qlora_core.data.turns import MARK, Dropped, Turns, stop_tokens
from qlora_core.data.vision import Pictures
from qlora_core.errors import RowProblem
from qlora_doctor.errors import UsageError
from qlora_doctor.families import BY_TYPE

TRAIN_ON = ("answers", "last", "all")
# So many rows go to the tokenizer at once: it works on them in parallel.
CHUNK = 1000


class Encoder(Protocol):
    """What `make_encoder` gives."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is told to the user: which template, and what was added to it."""

    def __call__(self, row: Row, *, pixels: bool = True) -> Encoded:
        """One row; without `pixels` the lengths are the same, but no image is decoded. Raises RowProblem."""

    def many(self, rows: Sequence[Row], *, keep_problems: bool = False) -> list[Any]:
        """Many rows, without pixels; with `keep_problems` a row that cannot be used is its RowProblem."""

    def prompt(self, row: Row) -> dict[str, Any]:
        """What `generate` gets for a row: the conversation up to its last answer, as it was in training."""


def make_encoder(
    processor: Any,
    config: Any,
    *,
    template: str | Path | None = None,
    enable_thinking: bool | None = None,
    train_on: str = "answers",
) -> Encoder:
    """The encoder for a model's processor (for text its tokenizer) and configuration.

    Args:
        template: a built-in name (template.BUILT_IN), a Jinja file or text; None takes the model's own.
        enable_thinking: handed to the template; None leaves it to the template.
        train_on: `answers` every answer, `last` the last one, `all` every token but the images.

    Raises:
        UsageError: no such template or `train_on`, or a template that drops the answer.
    """
    if train_on not in TRAIN_ON:
        raise UsageError(f"train_on={train_on!r}: one of {', '.join(TRAIN_ON)}")
    tokenizer = getattr(processor, "tokenizer", processor)
    family = BY_TYPE.get(str(getattr(config, "model_type", "")))
    if family is not None and family.layout.qformer:
        from qlora_core.data.blip import BlipEncoder

        turns = None if template is None else _turns(processor, tokenizer, template, enable_thinking, "")
        return BlipEncoder.make(processor, config, turns, train_on)
    pictures = Pictures.of(processor, family.placeholder if family else "")
    turns = _turns(processor, tokenizer, template, enable_thinking, pictures.placeholder if pictures else "")
    chosen = turns.template
    notes = [f"chat template: {chosen.name}"]
    if turns.adds_eos:
        notes.append(f"it ends an answer with no special token, so {turns.eos} is put after each answer")
    if enable_thinking is not None and "enable_thinking" not in chosen.source:
        notes.append("it knows no enable_thinking, so that changes nothing")
    return ChatEncoder(tokenizer, turns, train_on, pictures, _opening(tokenizer), tuple(notes))


@dataclass(frozen=True, slots=True)
class ChatEncoder:
    """Text models, LLaVA and Qwen-VL: one sequence, rendered by a chat template."""

    tokenizer: Any
    turns: Turns
    train_on: str
    pictures: Pictures | None
    opening: tuple[int, ...]
    notes: tuple[str, ...]

    def __call__(self, row: Row, *, pixels: bool = True) -> Encoded:
        text, spans = self._text(row)
        (encoded,) = self._tokens([text], [spans], [self._before(row)])
        return self._with_pictures(row, text, encoded, pixels)

    def many(self, rows: Sequence[Row], *, keep_problems: bool = False) -> list[Any]:
        out: list[Any] = []
        todo = iter(rows)
        while chunk := list(islice(todo, CHUNK)):
            out += self._chunk(chunk, keep_problems)
        return out

    def prompt(self, row: Row) -> dict[str, Any]:
        messages = row.messages[:-1] if row.messages and row.messages[-1].role == "assistant" else row.messages
        asked = Row(messages, row.file, row.number)
        text = self.turns.render(self._chat(asked), prompt=True)
        (encoded,) = self._tokens([text], [()], [self._before(row)])
        made = self._with_pictures(asked, text, encoded, True)
        from qlora_core.data.collate import collate

        batch: dict[str, Any] = collate([made], pad=0)
        batch.pop("labels")
        return batch

    def _chunk(self, rows: Sequence[Row], keep_problems: bool) -> list[Any]:
        out: list[Any] = []
        for row in rows:
            try:
                out.append(self._text(row))
            except RowProblem as problem:
                if not keep_problems:
                    raise
                out.append(problem)
        good = [place for place, made in enumerate(out) if not isinstance(made, RowProblem)]
        texts = [out[place][0] for place in good]
        made = self._tokens(texts, [out[p][1] for p in good], [self._before(rows[p]) for p in good])
        for place, text, encoded in zip(good, texts, made, strict=True):
            try:
                out[place] = self._with_pictures(rows[place], text, encoded, False)
            except RowProblem as problem:
                if not keep_problems:
                    raise
                out[place] = problem
        return out

    def _text(self, row: Row) -> tuple[str, Sequence[Span]]:
        """The text of a row and what of it is learned."""
        import jinja2

        check_row(row)
        if row.messages[0].role == "text":
            text = row.messages[0].text + self.turns.eos
            return text, [(0, len(text))]
        if "</think>" in row.answer and self.turns.thinking_is_over:
            raise RowProblem(
                row.where,
                "its answer holds a thought (<think>), and with enable_thinking=False the model is told not to think",
                "Leave enable_thinking out, or remove the thought",
            )
        try:
            text, spans = self.turns.answers(self._chat(row), [m.learn for m in row.messages])
        except Dropped as dropped:
            raise RowProblem(
                row.where,
                f"{self.turns.template.name} leaves out the answer of turn {dropped.turn}",
                "Give another template",
            ) from dropped
        except (jinja2.TemplateError, TypeError) as error:
            raise RowProblem(
                row.where,
                f"{self.turns.template.name} refuses it ({error})",
                "Put the turns in the order that the template asks for, or give another template",
            ) from error
        if self.train_on == "all":
            return text, [(0, len(text))]
        return text, spans[-1:] if self.train_on == "last" else spans

    def _chat(self, row: Row) -> list[dict[str, Any]]:
        if row.images and self.pictures is None:
            raise RowProblem(
                row.where,
                "it holds an image, and the model takes text alone (or its processor files are missing)",
                "Train a vision model with its processor, or drop the image",
            )
        return [
            as_chat(m, self.turns.in_parts, self.pictures.placeholder if self.pictures else "") for m in row.messages
        ]

    def _before(self, row: Row) -> tuple[int, ...]:
        """The tokens before the text: a chat template of a text model writes them itself, running text never does."""
        own = self.turns.template.own and self.pictures is None
        running = bool(row.messages) and row.messages[0].role == "text"
        return () if own and not running else self.opening

    def _tokens(
        self, texts: Sequence[str], spans: Sequence[Sequence[Span]], openings: Sequence[tuple[int, ...]]
    ) -> list[Encoded]:
        if not texts:
            return []
        made = []
        batch = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
        for place, (text, learned) in enumerate(zip(texts, spans, strict=True)):
            ids = batch["input_ids"][place]
            labels = array("i", [SKIP]) * len(ids)
            for span in learned:
                first, last = token_span(self.tokenizer, batch, place, text, span)
                labels[first:last] = array("i", ids[first:last])
            before = () if _begins(ids, openings[place]) else openings[place]
            made.append(Encoded(array("i", [*before, *ids]), array("i", [SKIP]) * len(before) + labels))
        return made

    def _with_pictures(self, row: Row, text: str, encoded: Encoded, pixels: bool) -> Encoded:
        if self.pictures is None:
            return encoded
        return self.pictures.put(row, text, encoded, pixels)


def check_row(row: Row) -> None:
    """Refuses a row from which nothing can be learned, whatever the model.

    Raises:
        RowProblem: it is empty, has no answer, or holds characters that no text may hold.
    """
    roles = [m.role for m in row.messages]
    if not roles:
        raise RowProblem(row.where, "it has no messages", "Drop it")
    if "assistant" not in roles and roles != ["text"]:
        raise RowProblem(
            row.where, "it has no answer, so there is nothing to learn", "Add an assistant turn or drop it"
        )
    if any(mark in message.text for message in row.messages for mark in (START, END, MARK)):
        raise RowProblem(row.where, "it holds U+FDD0, U+FDD1 or U+FDD2, which are no characters", "Remove them")


def as_chat(message: Message, in_parts: bool, placeholder: str) -> dict[str, Any]:
    """A message as a chat template takes it. A turn with `input` gives it and `instruction` too."""
    more = {}
    if message.input:
        first = next((part for part in message.parts if isinstance(part, str)), "")
        more = {"instruction": first.strip(), "input": message.input}
    if not in_parts:
        words = "".join(placeholder if isinstance(part, Image) else part for part in message.parts)
        return {"role": message.role, "content": words, **more}
    if message.role != "user" and not message.images:
        # Some templates read the first text of an answer only.
        return {"role": message.role, "content": [{"type": "text", "text": message.text}]}
    parts = [{"type": "image"} if isinstance(part, Image) else {"type": "text", "text": part} for part in message.parts]
    return {"role": message.role, "content": parts, **more}


def _turns(
    processor: Any, tokenizer: Any, template: str | Path | None, enable_thinking: bool | None, placeholder: str
) -> Turns:
    import jinja2

    chosen = choose_template(template, processor, tokenizer, placeholder)
    variables: dict[str, Any] = {**tokenizer.special_tokens_map, "image_token": placeholder}
    if enable_thinking is not None:
        variables["enable_thinking"] = enable_thinking
    problem: Exception | None = None
    # A vision template takes a list of parts, a text template a string; some take one alone.
    for in_parts in (True, False) if placeholder else (False, True):
        turns = Turns(chosen, variables, stop_tokens(tokenizer), str(tokenizer.eos_token or ""), in_parts)
        ask = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Aq1"}]}
        asked = ask if in_parts and placeholder else turns.message("user", "Aq1")
        try:
            text = turns.render([asked, turns.message("assistant", "Bq2")])
            if text.count("Aq1") == text.count("Bq2") == 1:
                return turns.learned()
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            problem = error
    raise UsageError(
        f"{chosen.name} does not write out a question and its answer{f' ({problem})' if problem else ''}; "
        "give another with template="
    )


def _opening(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that a tokenizer puts before a text by itself: bos, or none."""
    ids = tokenizer("")["input_ids"]
    return (ids[0],) if ids and ids[0] == tokenizer.bos_token_id else ()


def _begins(ids: Sequence[int], opening: Sequence[int]) -> bool:
    return tuple(ids[: len(opening)]) == tuple(opening)
