"""InstructBLIP and BLIP-2: one image and a question before the answer; no chat template.

The language model is an encoder-decoder (T5: the labels are the decoder's, with their own length) or a decoder (Vicuna,
OPT: question and answer in one sequence, the question not learned). InstructBLIP's Q-Former reads the question as well.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qlora_core.data.encode import as_chat, check_row
from qlora_core.data.labels import SKIP, token_span
from qlora_core.data.rows import Encoded, Message, Row
from qlora_core.data.turns import Turns
from qlora_core.data.vision import image_size, open_image
from qlora_core.errors import RowProblem
from qlora_doctor.errors import UsageError


@dataclass(frozen=True, slots=True)
class BlipEncoder:
    """`queries`: image tokens of a row. `qformer_limit`: the longest text that the Q-Former has positions for."""

    processor: Any
    queries: int
    encoder_decoder: bool
    qformer_limit: int | None
    turns: Turns | None
    train_on: str
    notes: tuple[str, ...]

    @classmethod
    def make(cls, processor: Any, config: Any, turns: Turns | None, train_on: str) -> BlipEncoder:
        """From a processor and a model's configuration.

        Raises:
            UsageError: a tokenizer alone, which would drop the images without a word.
        """
        if not hasattr(processor, "image_processor"):
            raise UsageError("this is a tokenizer, which drops images; give the model's processor")
        decoder = not bool(getattr(config, "use_decoder_only_language_model", True))
        if decoder and train_on == "all":
            raise UsageError('train_on="all": an encoder-decoder (T5) learns its answers alone; use "answers"')
        qformer = getattr(processor, "qformer_tokenizer", None)
        limit = int(config.qformer_config.max_position_embeddings) if qformer is not None else None
        eos = processor.tokenizer.eos_token
        template = turns.template.name if turns else "none: the question as it is, then the answer"
        notes = (f"chat template: {template}", f"{eos} is put after each answer")
        return cls(processor, int(config.num_query_tokens), decoder, limit, turns, train_on, notes)

    def __call__(self, row: Row, *, pixels: bool = True) -> Encoded:
        check_row(row)
        self._check(row)
        question, answer = self._texts(row)
        ids, extras = self._question(row, question, pixels)
        if self.encoder_decoder:
            return Encoded(ids, self._said(answer), extras, 1)
        image, words = ids[: self.queries], ids[self.queries :]
        text, start = _joined(question, answer)
        batch = self.processor.tokenizer([text], add_special_tokens=False)
        tokens = list(batch["input_ids"][0])
        first = (
            0 if self.train_on == "all" else token_span(self.processor.tokenizer, batch, 0, text, (start, len(text)))[0]
        )
        first = first if answer else len(tokens)
        bos = self.processor.tokenizer.bos_token_id
        opening = [bos] if words and words[0] == bos else []
        end = [self.processor.tokenizer.eos_token_id]
        labels = [SKIP] * (len(image) + len(opening) + first) + tokens[first:] + end
        return Encoded(array("i", [*image, *opening, *tokens, *end]), array("i", labels), extras, 1)

    def many(self, rows: Sequence[Row], *, keep_problems: bool = False) -> list[Any]:
        out: list[Any] = []
        for row in rows:
            try:
                out.append(self(row, pixels=False))
            except RowProblem as problem:
                if not keep_problems:
                    raise
                out.append(problem)
        return out

    def prompt(self, row: Row) -> dict[str, Any]:
        """What `generate` gets; the answer of the row, if it has one, is left out."""
        from qlora_core.data.collate import collate

        last = row.messages[-1].role == "assistant" if row.messages else False
        asked = row if last else Row((*row.messages, Message("assistant", ("",))), row.file, row.number)
        self._check(asked)
        ids, extras = self._question(asked, self._texts(asked)[0], True)
        batch: dict[str, Any] = collate([Encoded(ids, ids, extras, 1)], pad=0)
        batch.pop("labels")
        return batch

    def _check(self, row: Row) -> None:
        if len(row.images) != 1:
            raise RowProblem(
                row.where,
                f"it has {len(row.images)} images; InstructBLIP and BLIP-2 take exactly one",
                "Give each row one image, or train LLaVA or Qwen-VL",
            )
        if row.messages[-1].role != "assistant":
            raise RowProblem(row.where, "its last turn is not the answer", "End the row with the assistant's turn")
        if not row.messages[-1].learn:
            raise RowProblem(
                row.where, "its last answer is not to be learned, and these models learn no other", "Drop the row"
            )

    def _texts(self, row: Row) -> tuple[str, str]:
        """The question with all that was said before it, and the answer."""
        before, answer = row.messages[:-1], row.messages[-1].text.strip()
        if self.turns is not None:
            chat = [as_chat(m, self.turns.in_parts, "") for m in before]
            return self.turns.render(chat, prompt=True), answer
        if any(m.role == "assistant" for m in before):
            said = {"assistant": "Answer: ", "user": "Question: "}
            return "\n".join(f"{said.get(m.role, '')}{m.text.strip()}" for m in before) + " Answer:", answer
        return "\n".join(m.text.strip() for m in before if m.text.strip()), answer

    def _question(self, row: Row, question: str, pixels: bool) -> tuple[array[int], dict[str, Any]]:
        """The ids that the processor makes of image and question, and the Q-Former's and the pixels."""
        (image,) = row.images
        if not pixels:
            image_size(image, row.where)
            ids = self.processor.tokenizer(question)["input_ids"]
            token = self.processor.tokenizer.convert_tokens_to_ids(str(self.processor.image_token))
            return array("i", [token] * self.queries + list(ids)), {}
        made = self.processor(text=question, images=open_image(image, row.where), return_tensors="pt")
        extras = {"pixel_values": made["pixel_values"]}
        for name in ("qformer_input_ids", "qformer_attention_mask"):
            if name in made:
                extras[name] = made[name][0][: self.qformer_limit]
        ids = array("i", made["input_ids"][0].tolist())
        token = self.processor.tokenizer.convert_tokens_to_ids(str(self.processor.image_token))
        if sum(one == token for one in ids) != self.queries:
            raise RowProblem(
                row.where,
                f"the processor makes {sum(one == token for one in ids)} image tokens, and the model has {self.queries} queries",
                "Set num_query_tokens of the processor to the model's",
            )
        return ids, extras

    def _said(self, answer: str) -> array[int]:
        """The answer as the labels of a decoder, with its end."""
        tokenizer = self.processor.tokenizer
        ids = list(tokenizer(text_target=answer, add_special_tokens=False)["input_ids"])
        return array("i", [*ids, tokenizer.eos_token_id])


def _joined(question: str, answer: str) -> tuple[str, int]:
    """Question and answer as one text, and where the answer begins, with the space before it."""
    if not question or question[-1].isspace():
        return question + answer, len(question)
    return f"{question} {answer}", len(question)
