"""A batch: padding changes nothing for a row, images go to their rows, and the model takes it as it is."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_core.data.rows import Image, Message, Row

KINDS = ("llama", "llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "instructblip_vicuna", "instructblip_t5")
CACHE: dict[str, Any] = {}


def made(kind: str) -> tuple[Any, Any, Any, Any]:
    """Tokenizer, model, encoder and collator of a tiny model."""
    if kind not in CACHE:
        from qlora_core import tiny
        from qlora_core.data.collate import make_collator
        from qlora_core.data.encode import make_encoder

        words = tiny.tokenizer(kind)
        # In double precision, so that a difference is a mistake and not rounding.
        model = tiny.model(kind, words, contrast=10.0).double().eval()
        processor = tiny.make_processor(kind, model.config, words) or words
        CACHE[kind] = words, model, make_encoder(processor, model.config), make_collator(processor, model.config)
    return CACHE[kind]


def picture(colour: str, size: tuple[int, int]) -> Image:
    from PIL import Image as pil

    return Image(pil.new("RGB", size, colour))


def row(answer: str, *parts: Any) -> Row:
    return Row((Message("user", parts), Message("assistant", (answer,))))


def rows_for(kind: str) -> list[Row]:
    """Rows of different lengths: without an image, with one, with two of other shapes, as far as the model takes them."""
    texts = [row("yes", "short?"), row("a long answer that goes on and on", "and a longer question")]
    if kind == "llama":
        return texts
    one = row("red", picture("red", (40, 30)), "what colour is this square?")
    wide = row("blue and much more than that", picture("blue", (90, 20)), "what?")
    if "blip" in kind:
        return [one, wide]
    two = row("both", picture("green", (28, 28)), "this and ", picture("white", (20, 90)), "that?")
    return [texts[0], one, wide, texts[1], two]


def loss_of(model: Any, batch: dict[str, Any]) -> float:
    import torch

    with torch.no_grad():
        return float(model(**batch).loss)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_has_the_loss_of_its_rows(kind: str) -> None:
    _, model, encoder, collator = made(kind)
    encoded = [encoder(one) for one in rows_for(kind)]
    # A decoder predicts each label from the one before; the first of a row is never one to learn.
    alone = sum(loss_of(model, collator([one])) * one.supervised for one in encoded)
    together = loss_of(model, collator(encoded)) * sum(one.supervised for one in encoded)
    assert together == pytest.approx(alone, rel=3e-7)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_another_image_gives_another_loss(kind: str) -> None:
    _, model, encoder, collator = made(kind)
    losses = {
        loss_of(model, collator([encoder(row("it is red", picture(colour, (28, 28)), "what?"))]))
        for colour in ("red", "blue", "white")
    }
    assert len(losses) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_pads_are_on_the_right_and_neither_read_nor_learned(kind: str) -> None:
    words, _, encoder, collator = made(kind)
    encoded = [encoder(one) for one in rows_for(kind)]
    batch = collator(encoded)
    for place, one in enumerate(encoded):
        length = len(one.input_ids)
        assert batch["input_ids"][place, :length].tolist() == list(one.input_ids)
        assert set(batch["input_ids"][place, length:].tolist()) <= {words.pad_token_id}
        assert batch["attention_mask"][place].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
        assert batch["labels"][place, : len(one.labels)].tolist() == list(one.labels)
        assert set(batch["labels"][place, len(one.labels) :].tolist()) <= {-100}


def test_a_row_of_text_among_images_gets_token_types_of_text() -> None:
    _, _, encoder, collator = made("qwen2_vl")
    encoded = [encoder(one) for one in rows_for("qwen2_vl")]
    types = collator(encoded)["mm_token_type_ids"]
    assert int(types[0].sum()) == 0
    image_token = 5
    assert all(
        [t == 1 for t in types[place, : len(one.input_ids)].tolist()] == [i == image_token for i in one.input_ids]
        for place, one in enumerate(encoded)
    )


def test_a_batch_of_text_alone_asks_for_no_image() -> None:
    _, model, encoder, collator = made("llava")
    batch = collator([encoder(row("yes", "short?"))])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert loss_of(model, batch) > 0


def test_the_labels_of_an_encoder_decoder_have_their_own_length() -> None:
    _, _, encoder, collator = made("instructblip_t5")
    encoded = [encoder(one) for one in rows_for("instructblip_t5")]
    assert collator(encoded)["labels"].shape == (2, max(len(one.labels) for one in encoded))


def test_the_qformer_gets_its_own_padding() -> None:
    _, _, encoder, collator = made("instructblip_vicuna")
    batch = collator([encoder(one) for one in rows_for("instructblip_vicuna")])
    mask = batch["qformer_attention_mask"]
    assert mask.shape == batch["qformer_input_ids"].shape
    assert mask[0].sum() > mask[1].sum() and mask[1, -1] == 0
