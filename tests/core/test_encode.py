"""Rows to tokens and labels: images as wide as the model wants them, questions never learned, bad rows named."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_core.data.rows import Image, Message, Row

VISION = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
BLIP = ("instructblip_vicuna", "instructblip_t5", "blip2_opt", "blip2_t5")
SIZES = ((28, 28), (90, 20), (15, 200), (56, 57))
CACHE: dict[str, Any] = {}


def made(kind: str) -> tuple[Any, Any, Any]:
    """Processor (a tokenizer for text), model and encoder of a tiny model."""
    if kind not in CACHE:
        from qlora_core import tiny
        from qlora_core.data.encode import make_encoder

        words = tiny.tokenizer(kind)
        model = tiny.model(kind, words).eval()
        processor = tiny.make_processor(kind, model.config, words) or words
        CACHE[kind] = processor, model, make_encoder(processor, model.config)
    return CACHE[kind]


def picture(size: tuple[int, int] = (40, 30), colour: str = "red") -> Image:
    from PIL import Image as pil

    return Image(pil.new("RGB", size, colour))


def png(width: int = 40, height: int = 30) -> Image:
    """A red picture as the bytes of its file, made without Pillow: the tables below are read where it is not installed."""
    lines = (b"\0" + b"\xff\0\0" * width) * height

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    whole = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return Image(b"\x89PNG\r\n\x1a\n" + whole)


def asked(*parts: Any, answer: str = "a red cat") -> Row:
    return Row((Message("user", parts), Message("assistant", (answer,))), "made.jsonl", 3)


def words_of(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)


def learned(processor: Any, encoded: Any) -> str:
    text: str = words_of(processor).decode([label for label in encoded.labels if label != -100])
    return text


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", VISION)
def test_the_audit_counts_the_tokens_of_an_image_as_training_will_have_them(kind: str, size: tuple[int, int]) -> None:
    _, _, encoder = made(kind)
    row = asked(picture(size), "What is it? ", picture(), "And this?")
    whole, quick = encoder(row), encoder(row, pixels=False)
    assert list(whole.input_ids) == list(quick.input_ids)
    assert list(whole.labels) == list(quick.labels)
    assert not quick.extras
    assert whole.images == quick.images == 2


@pytest.mark.parametrize("kind", VISION)
def test_a_photo_taken_sideways_is_counted_as_it_will_be_turned(kind: str, tmp_path: Path) -> None:
    from PIL import Image as pil

    photo = pil.new("RGB", (120, 30), "red")
    exif = photo.getexif()
    exif[0x0112] = 6
    path = tmp_path / "photo.jpg"
    photo.save(path, exif=exif)
    _, _, encoder = made(kind)
    turned, upright = encoder(asked(Image(str(path)), "What?")), encoder(asked(picture((30, 120)), "What?"))
    assert list(turned.input_ids) == list(upright.input_ids)
    assert list(encoder(asked(Image(str(path)), "What?"), pixels=False).input_ids) == list(turned.input_ids)


@pytest.mark.parametrize("kind", ("qwen2_vl", "llava_next", "instructblip_t5"))
def test_the_audit_decodes_no_image(kind: str, tmp_path: Path) -> None:
    import os

    from PIL import Image as pil

    from qlora_core.errors import RowProblem

    path = tmp_path / "noise.png"
    pil.frombytes("RGB", (200, 100), os.urandom(60000)).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    _, _, encoder = made(kind)
    row = asked(Image(str(path)), "What?")
    assert encoder(row, pixels=False).images == 1
    with pytest.raises(RowProblem, match="cannot be read as an image"):
        encoder(row)


@pytest.mark.parametrize("kind", (*VISION, *BLIP))
def test_an_image_token_is_read_and_never_learned(kind: str) -> None:
    processor, model, encoder = made(kind)
    encoded = encoder(asked(picture(), "What is it?"))
    token = words_of(processor).convert_tokens_to_ids(str(processor.image_token))
    assert token == model.config.image_token_id
    assert list(encoded.input_ids).count(token) > 0
    assert token not in encoded.labels


@pytest.mark.parametrize("kind", (*VISION, *BLIP))
def test_the_answer_and_its_end_are_learned_and_the_question_is_not(kind: str) -> None:
    processor, _, encoder = made(kind)
    assert learned(processor, encoder(asked(picture(), "What is it?"))).strip() == "a red cat</s>"


@pytest.mark.parametrize("kind", (*VISION, "llama"))
def test_many_rows_at_once_are_encoded_as_one_by_one(kind: str) -> None:
    _, _, encoder = made(kind)
    rows = [asked("a question", answer=f"answer {n}") for n in range(5)]
    if kind != "llama":
        rows.insert(2, asked(picture(), "with an image"))
    for row, encoded in zip(rows, encoder.many(rows), strict=True):
        assert list(encoded.input_ids) == list(encoder(row).input_ids)
        assert list(encoded.labels) == list(encoder(row).labels)


@pytest.mark.parametrize("kind", ("llava", "llama", "instructblip_t5"))
def test_a_row_that_cannot_be_used_keeps_its_place_among_many(kind: str) -> None:
    from qlora_core.errors import RowProblem

    _, _, encoder = made(kind)
    good = asked("a") if kind == "llama" else asked(picture(), "a")
    rows = [good, Row((), "made.jsonl", 4), good]
    first, problem, last = encoder.many(rows, keep_problems=True)
    assert isinstance(problem, RowProblem) and problem.where == "made.jsonl row 4"
    assert list(first.input_ids) == list(last.input_ids) == list(encoder(good).input_ids)
    with pytest.raises(RowProblem, match="row 4"):
        encoder.many(rows)


def broken(tmp_path: Path) -> Image:
    path = tmp_path / "text.png"
    path.write_text("this is no image")
    return Image(str(path))


@pytest.mark.parametrize(
    ("kind", "row", "says"),
    [
        ("llama", asked(png(), "What?"), "takes text alone"),
        ("llava", asked("What is in <image>?"), r"1 image places .* for 0 images"),
        ("llava", asked(png(), "What is in <image>?"), r"2 image places .* for 1 images"),
        ("qwen2_vl", asked("<|image_pad|>"), r"1 image places .* for 0 images"),
        ("llava", asked(Image("/no/such/file.png"), "What?"), "cannot be read as an image"),
        ("llava", asked(Image(b"GIF89a but no more"), "What?"), "cannot be read as an image"),
        ("llama", Row((Message("user", ("hello",)),), "made.jsonl", 3), "has no answer"),
        ("llama", Row((), "made.jsonl", 3), "has no messages"),
        ("llama", asked("a \ufdd0 b"), "U\\+FDD0"),
        ("instructblip_t5", asked("What?"), "has 0 images"),
        ("instructblip_vicuna", asked(png(), png(), "What?"), "has 2 images"),
        ("qwen2_vl", asked(png(900, 2), "What?"), "the processor refuses an image"),
        (
            "instructblip_t5",
            Row((Message("user", (png(),)), Message("assistant", ("x",), learn=False)), "made.jsonl", 3),
            "its last answer is not to be learned",
        ),
        ("blip2_opt", Row((Message("assistant", ("x",)), Message("user", (png(),))), "made.jsonl", 3), "last turn"),
    ],
)
@pytest.mark.parametrize("pixels", [True, False])
def test_a_row_that_cannot_be_used_is_named_with_the_reason(kind: str, row: Row, says: str, pixels: bool) -> None:
    from qlora_core.errors import RowProblem

    _, _, encoder = made(kind)
    with pytest.raises(RowProblem, match=f"^made.jsonl row 3: .*{says}"):
        encoder(row, pixels=pixels)


def test_an_image_may_be_a_path_bytes_or_an_open_image(tmp_path: Path) -> None:
    import torch

    _, _, encoder = made("qwen2_vl")
    path = tmp_path / "one.png"
    one = picture((30, 44)).source
    one.save(path)
    buffer = io.BytesIO()
    one.save(buffer, "PNG")
    found = [encoder(asked(Image(source), "What?")) for source in (one, str(path), buffer.getvalue())]
    assert all(torch.equal(found[0].extras["pixel_values"], other.extras["pixel_values"]) for other in found[1:])


def test_a_template_that_drops_the_images_is_told() -> None:
    from qlora_core.data.encode import make_encoder
    from qlora_core.errors import RowProblem

    processor, model, _ = made("llava")
    blind = "{% for m in messages %}{{ m.role }}: {% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}{% endfor %}"
    encoder = make_encoder(processor, model.config, template=blind)
    with pytest.raises(RowProblem, match=r"0 image places .* for 1 images"):
        encoder(asked(picture(), "What?"))


def test_t5_gets_the_question_as_input_and_the_answer_as_labels() -> None:
    processor, model, encoder = made("instructblip_t5")
    encoded = encoder(asked(picture(), "What is it?"))
    text = words_of(processor)
    assert list(encoded.labels) == [*text("a red cat", add_special_tokens=False)["input_ids"], text.eos_token_id]
    assert text.decode(list(encoded.input_ids)[model.config.num_query_tokens :]) == "What is it?"
    assert text.decode(encoded.extras["qformer_input_ids"]) == "What is it?"


def test_a_decoder_gets_question_and_answer_in_one_sequence() -> None:
    processor, model, encoder = made("instructblip_vicuna")
    encoded = encoder(asked(picture(), "What is it?"))
    text = words_of(processor).decode(list(encoded.input_ids)[model.config.num_query_tokens :])
    assert text == "What is it? a red cat</s>"
    assert words_of(processor).decode(encoded.extras["qformer_input_ids"]) == "What is it?"
    assert len(encoded.labels) == len(encoded.input_ids)


def test_what_was_said_before_the_question_is_read_by_instructblip() -> None:
    processor, _, encoder = made("instructblip_t5")
    turns = (Message("user", (picture(), "one?")), Message("assistant", ("yes",)), Message("user", ("two?",)))
    encoded = encoder(Row((*turns, Message("assistant", ("no",)))))
    assert "Question: one?\nAnswer: yes\nQuestion: two? Answer:" in words_of(processor).decode(list(encoded.input_ids))
    assert learned(processor, encoded) == "no</s>"


def test_a_question_longer_than_the_qformer_can_place_is_cut_for_it_alone() -> None:
    _, model, encoder = made("instructblip_vicuna")
    limit = model.config.qformer_config.max_position_embeddings
    encoded = encoder(asked(picture(), "why? " * limit))
    assert len(encoded.extras["qformer_input_ids"]) == len(encoded.extras["qformer_attention_mask"]) == limit
    assert len(encoded.input_ids) > 2 * limit


def test_a_processor_with_another_number_of_queries_than_the_model_is_told() -> None:
    from qlora_core import tiny
    from qlora_core.data.encode import make_encoder
    from qlora_core.errors import RowProblem

    _, model, _ = made("instructblip_t5")
    processor = tiny.make_processor("instructblip_t5", model.config, tiny.tokenizer("instructblip_t5"))
    processor.num_query_tokens = 7
    with pytest.raises(RowProblem, match="7 image tokens, and the model has 4 queries"):
        make_encoder(processor, model.config)(asked(picture(), "What?"))


@pytest.mark.parametrize("kind", ("instructblip_t5", "blip2_opt"))
def test_a_tokenizer_in_the_place_of_a_processor_is_refused(kind: str) -> None:
    from qlora_core.data.encode import make_encoder
    from qlora_doctor.errors import UsageError

    processor, model, _ = made(kind)
    with pytest.raises(UsageError, match="a tokenizer, which drops images"):
        make_encoder(words_of(processor), model.config)


def test_a_question_to_instructblip_may_go_through_a_template() -> None:
    from qlora_core.data.encode import make_encoder

    processor, model, _ = made("instructblip_t5")
    encoder = make_encoder(processor, model.config, template="alpaca")
    text = words_of(processor).decode(list(encoder(asked(picture(), "What is it?")).input_ids))
    assert text.endswith("### Instruction:\nWhat is it?\n\n### Response:\n")


@pytest.mark.parametrize("kind", VISION)
def test_image_tokens_are_not_learned_even_where_all_text_is(kind: str) -> None:
    from qlora_core.data.encode import make_encoder

    processor, model, _ = made(kind)
    encoded = make_encoder(processor, model.config, train_on="all")(asked(picture(), "What is it?"))
    token = model.config.image_token_id
    assert [label == -100 for label in encoded.labels] == [one == token for one in encoded.input_ids]


def test_t5_cannot_learn_all_of_the_text() -> None:
    from qlora_core.data.encode import make_encoder
    from qlora_doctor.errors import UsageError

    processor, model, _ = made("instructblip_t5")
    with pytest.raises(UsageError, match="learns its answers alone"):
        make_encoder(processor, model.config, train_on="all")


def test_train_on_takes_three_words() -> None:
    from qlora_core.data.encode import make_encoder
    from qlora_doctor.errors import UsageError

    processor, model, _ = made("llama")
    with pytest.raises(UsageError, match=r"train_on='prompts': one of answers, last, all"):
        make_encoder(processor, model.config, train_on="prompts")


@pytest.mark.parametrize("kind", ("llava", "llama", "instructblip_t5"))
def test_an_encoder_travels_to_a_worker_process(kind: str) -> None:
    _, _, encoder = made(kind)
    row = asked("a") if kind == "llama" else asked(picture(), "a")
    assert list(pickle.loads(pickle.dumps(encoder))(row).labels) == list(encoder(row).labels)


SAID = (
    st.text(st.characters(exclude_categories=("Cs", "Cn", "Co")), min_size=1, max_size=20).map(str.strip).filter(bool)
)


def sentencepiece() -> Any:
    """A tokenizer in the way of Llama 2: spaces are a letter, one is put before the text, unknown letters are bytes, bos first."""
    import tokenizers
    import transformers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    raw = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    # As in the real one, no piece reaches over a space, though nothing splits the text at spaces any more.
    raw.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    raw.train_from_iterator(["USER: what is it? ASSISTANT: the cat is red"] * 9, trainer)
    state = json.loads(raw.to_str())
    state["pre_tokenizer"] = None
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    raw = tokenizers.Tokenizer.from_str(json.dumps(state))
    raw.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@settings(max_examples=40, deadline=None)
@given(turns=st.lists(SAID, min_size=2, max_size=4).filter(lambda turns: len(turns) % 2 == 0))
def test_with_a_tokenizer_like_llamas_the_answers_and_nothing_else_are_learned(turns: list[str]) -> None:
    import transformers

    from qlora_core.data.encode import make_encoder

    if "sentencepiece" not in CACHE:
        words = sentencepiece()
        CACHE["sentencepiece"] = words, make_encoder(words, transformers.LlamaConfig(), template="vicuna")
    words, encoder = CACHE["sentencepiece"]
    messages = [Message(("user", "assistant")[n % 2], (turn,)) for n, turn in enumerate(turns)]
    encoded = encoder(Row(tuple(messages)))
    ids = [label for label in encoded.labels if label != -100]
    text = words.decode(ids, clean_up_tokenization_spaces=False)
    # The decoder takes one leading space away.
    assert text.lstrip(" ") == "".join(f" {answer}</s>" for answer in turns[1::2]).lstrip(" ")
    assert encoded.input_ids[0] == words.bos_token_id and encoded.input_ids[1] != words.bos_token_id


@settings(max_examples=20, deadline=None)
@given(turns=st.lists(SAID, min_size=2, max_size=4).filter(lambda turns: len(turns) % 2 == 0))
def test_with_a_tokenizer_without_offsets_the_answers_and_nothing_else_are_learned(turns: list[str]) -> None:
    import transformers

    from qlora_core.data.encode import make_encoder

    if "bytes" not in CACHE:
        words = transformers.ByT5Tokenizer()
        CACHE["bytes"] = words, make_encoder(words, transformers.LlamaConfig(), template="plain")
    words, encoder = CACHE["bytes"]
    messages = [Message(("user", "assistant")[n % 2], (turn,)) for n, turn in enumerate(turns)]
    encoded = encoder(Row(tuple(messages)))
    text = words.decode([label for label in encoded.labels if label != -100])
    assert text == "".join(f" {answer}</s>" for answer in turns[1::2])
