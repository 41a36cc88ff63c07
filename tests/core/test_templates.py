"""Which words are learned, on the chat templates of real models (tests/core/templates/README.md says whose)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_core.data.rows import Image, Message, Row

FOLDER = Path(__file__).parent / "templates"
# What stands before and after an answer in the supervised text.
TEXT = {
    "qwen2": ("", "<|im_end|>"),
    "qwen2_5": ("", "<|im_end|>"),
    "qwen3_vl": ("", "<|im_end|>"),
    "llama3": ("", "<|eot_id|>"),
    "mistral": ("", "</s>"),
    "vicuna": (" ", "</s>"),
    "plain": (" ", "</s>"),
    "chatml": ("", "<|im_end|>"),
    "instruction": ("", "</s>"),
    "alpaca": ("", "</s>"),
}
VISION = {
    "llava_1_5": ("llava", " ", "</s>"),
    "llava_next": ("llava_next", " ", "</s>"),
    "qwen2_5_vl": ("qwen2_vl", "", "<|im_end|>"),
    "qwen3_vl": ("qwen3_vl", "", "<|im_end|>"),
    "vicuna": ("llava", " ", "</s>"),
    "chatml": ("qwen2_5_vl", "", "<|im_end|>"),
}
STOPS = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
CACHE: dict[Any, Any] = {}


def template(name: str) -> str:
    path = FOLDER / f"{name}.jinja"
    return path.read_text(encoding="utf-8") if path.exists() else name


def words(kind: str = "llama") -> Any:
    from qlora_core import tiny

    made = tiny.tokenizer(kind)
    made.add_special_tokens({"additional_special_tokens": STOPS})
    return made


def text_encoder(name: str, **options: Any) -> tuple[Any, Any]:
    """A text model's tokenizer whose own template is `name` (a built-in one is asked for), and its encoder."""
    key = (name, *options.items())
    if key not in CACHE:
        import transformers

        from qlora_core.data.encode import make_encoder

        tokenizer = words()
        if (FOLDER / f"{name}.jinja").exists():
            tokenizer.chat_template = template(name)
        else:
            options = {"template": name, **options}
        CACHE[key] = tokenizer, make_encoder(tokenizer, transformers.Qwen3Config(), **options)
    return CACHE[key]


def vision_encoder(name: str) -> tuple[Any, Any]:
    if name not in CACHE:
        from qlora_core import tiny
        from qlora_core.data.encode import make_encoder

        kind = VISION[name][0]
        tokenizer = words(kind)
        config = tiny.model(kind, tokenizer).config
        processor = tiny.make_processor(kind, config, tokenizer)
        processor.chat_template = template(name) if (FOLDER / f"{name}.jinja").exists() else None
        CACHE[name] = tokenizer, make_encoder(processor, config, template=None if processor.chat_template else name)
    return CACHE[name]


def chat(*turns: str, system: str = "") -> Row:
    """A row of user and assistant in turn."""
    messages = [Message("system", (system,))] if system else []
    roles = ("user", "assistant")
    return Row((*messages, *(Message(roles[i % 2], (turn,)) for i, turn in enumerate(turns))), "made.jsonl", 1)


def learned(tokenizer: Any, encoded: Any) -> str:
    text: str = tokenizer.decode(
        [label for label in encoded.labels if label != -100], clean_up_tokenization_spaces=False
    )
    return text


def consistent(encoded: Any) -> None:
    """Labels stand where their tokens stand."""
    assert len(encoded.labels) == len(encoded.input_ids)
    assert all(y in (-100, x) for x, y in zip(encoded.input_ids, encoded.labels, strict=True))


SAID = (
    st.text(st.characters(exclude_categories=("Cs", "Cn", "Co")), min_size=1, max_size=30)
    .map(str.strip)
    .filter(lambda text: text and "\x85" not in text)
)


@pytest.mark.parametrize("name", sorted(TEXT))
@settings(max_examples=25, deadline=None)
@given(turns=st.lists(SAID, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0))
def test_the_answers_and_nothing_else_are_learned(name: str, turns: list[str]) -> None:
    tokenizer, encoder = text_encoder(name)
    encoded = encoder(chat(*turns))
    before, after = TEXT[name]
    consistent(encoded)
    assert learned(tokenizer, encoded) == "".join(f"{before}{answer}{after}" for answer in turns[1::2])


@pytest.mark.parametrize("name", sorted(VISION))
@settings(max_examples=12, deadline=None)
@given(turns=st.lists(SAID, min_size=2, max_size=4).filter(lambda turns: len(turns) % 2 == 0), images=st.integers(0, 3))
def test_the_answers_and_nothing_else_are_learned_of_a_row_with_images(
    name: str, turns: list[str], images: int
) -> None:
    tokenizer, encoder = vision_encoder(name)
    first, *rest = chat(*turns).messages
    row = Row((Message("user", (*[picture()] * images, *first.parts)), *rest))
    encoded = encoder(row)
    _, before, after = VISION[name]
    consistent(encoded)
    assert encoded.images == images
    assert learned(tokenizer, encoded) == "".join(f"{before}{answer}{after}" for answer in turns[1::2])
    quick = encoder(row, pixels=False)
    assert list(quick.input_ids) == list(encoded.input_ids)
    assert list(quick.labels) == list(encoded.labels)


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.jinja")))
def test_a_template_is_rendered_as_transformers_renders_it(name: str) -> None:
    from qlora_core.data.template import Template

    tokenizer = words()
    rows = [chat("a", "b"), chat("a\n", " b ", "c", "<think>\nx\n</think>\n\ny"), chat("é", "ü", system="s")]
    if name in ("mistral",):
        rows = rows[:2]
    parts = name in VISION and name != "vicuna"
    for row in rows:
        for more in ({}, {"enable_thinking": False}):
            talk = [
                {"role": m.role, "content": [{"type": "text", "text": m.text}] if parts else m.text}
                for m in row.messages
            ]
            for ask in (False, True):
                theirs = tokenizer.apply_chat_template(
                    talk, chat_template=template(name), tokenize=False, add_generation_prompt=ask, **more
                )
                ours, _ = Template(template(name), name).render(
                    talk, add_generation_prompt=ask, **tokenizer.special_tokens_map, **more
                )
                assert ours == theirs


@pytest.mark.parametrize("name", ["llava_1_5", "qwen3_training"])
def test_the_marked_spans_are_those_that_transformers_marks(name: str) -> None:
    from qlora_core.data.template import Template

    tokenizer = words()
    talk = [
        {"role": m.role, "content": [{"type": "text", "text": m.text}] if name == "llava_1_5" else m.text}
        for m in chat("question one", "answer one", "question two", "answer ü two").messages
    ]
    theirs = tokenizer.apply_chat_template(
        talk, chat_template=template(name), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    text, spans = Template(template(name), name).render(talk, **tokenizer.special_tokens_map)
    marked = "".join(text[a:b] for a, b in spans)
    ids = [i for i, m in zip(theirs["input_ids"], theirs["assistant_masks"], strict=True) if m]
    assert marked.replace(" ", "") == tokenizer.decode(ids).replace(" ", "")
    assert "answer ü two" in marked and "question" not in marked


def test_qwen3_learns_its_thinking_where_the_model_has_to_think_itself() -> None:
    tokenizer, encoder = text_encoder("qwen3")
    thought = "<think>\nbecause\n</think>\n\nyes"
    assert learned(tokenizer, encoder(chat("why?", thought))) == f"{thought}<|im_end|>"
    assert learned(tokenizer, encoder(chat("why?", "yes"))) == "<think>\n\n</think>\n\nyes<|im_end|>"


def test_qwen3_with_thinking_off_learns_the_answer_after_the_empty_thought() -> None:
    tokenizer, encoder = text_encoder("qwen3", enable_thinking=False)
    encoded = encoder(chat("why?", "yes"))
    assert learned(tokenizer, encoded) == "yes<|im_end|>"
    assert "<think>\n\n</think>\n\nyes" in tokenizer.decode(list(encoded.input_ids))


@pytest.mark.parametrize("thinking", [None, True])
def test_an_earlier_turn_of_qwen3_is_learned_without_the_thought_that_the_template_drops(thinking: bool | None) -> None:
    tokenizer, encoder = text_encoder("qwen3", enable_thinking=thinking)
    row = chat("one?", "<think>\nsecret\n</think>\n\nfirst", "two?", "<think>\nopen\n</think>\n\nsecond")
    encoded = encoder(row)
    assert "secret" not in tokenizer.decode(list(encoded.input_ids))
    assert learned(tokenizer, encoded) == "first<|im_end|><think>\nopen\n</think>\n\nsecond<|im_end|>"


def test_several_turns_of_qwen3_with_thinking_off_are_learned_from_their_first_word_on() -> None:
    tokenizer, encoder = text_encoder("qwen3", enable_thinking=False)
    encoded = encoder(chat("one?", "first", "two?", "second"))
    assert learned(tokenizer, encoded) == "first<|im_end|>second<|im_end|>"


def test_a_thought_in_the_data_contradicts_thinking_switched_off() -> None:
    from qlora_core.errors import RowProblem

    _, encoder = text_encoder("qwen3", enable_thinking=False)
    with pytest.raises(RowProblem, match="row 1: its answer holds a thought"):
        encoder(chat("why?", "<think>\nbecause\n</think>\n\nyes"))
    _, other = text_encoder("qwen2", enable_thinking=False)
    assert other(chat("why?", "<think>\nbecause\n</think>\n\nyes")).supervised


def test_a_question_that_looks_like_an_answer_is_not_learned() -> None:
    for name in ("qwen2", "qwen3", "chatml"):
        tokenizer, encoder = text_encoder(name)
        row = chat("<|im_start|>assistant\nfake<|im_end|>", "real", "again", "real two")
        assert "fake" not in learned(tokenizer, encoder(row))
        assert (
            learned(tokenizer, encoder(row)).replace("<think>\n\n</think>\n\n", "")
            == "real<|im_end|>real two<|im_end|>"
        )


def test_white_space_around_an_answer_is_learned_where_the_template_keeps_it() -> None:
    tokenizer, encoder = text_encoder("qwen2")
    assert learned(tokenizer, encoder(chat("a", "\n  an answer \n"))) == "\n  an answer \n<|im_end|>"
    tokenizer, encoder = text_encoder("llama3")
    assert learned(tokenizer, encoder(chat("a", "\n  an answer \n"))) == "an answer<|eot_id|>"


def test_thinking_is_told_where_the_template_knows_none() -> None:
    assert any("knows no enable_thinking" in note for note in text_encoder("qwen2", enable_thinking=True)[1].notes)
    assert not any("enable_thinking" in note for note in text_encoder("qwen3", enable_thinking=True)[1].notes)


def test_only_the_last_answer_is_learned_where_asked() -> None:
    tokenizer, encoder = text_encoder("qwen2", train_on="last")
    assert learned(tokenizer, encoder(chat("a", "first", "b", "second"))) == "second<|im_end|>"


def test_everything_is_learned_where_asked() -> None:
    _, encoder = text_encoder("qwen2", train_on="all")
    encoded = encoder(chat("a", "b"))
    assert list(encoded.labels) == list(encoded.input_ids)


def test_a_template_without_an_end_of_turn_gets_one_and_says_so() -> None:
    _, encoder = vision_encoder("llava_1_5")
    assert any("</s> is put after each answer" in note for note in encoder.notes)
    assert not any("is put after" in note for note in text_encoder("qwen2")[1].notes)


def test_the_prompt_for_generation_is_what_stood_before_the_answer_in_training() -> None:
    for name in ("qwen2", "llama3", "vicuna", "plain", "instruction"):
        _, encoder = text_encoder(name)
        row = chat("a question", "an answer")
        encoded = encoder(row)
        prompt = encoder.prompt(row)["input_ids"][0].tolist()
        first = next(i for i, label in enumerate(encoded.labels) if label != -100)
        assert prompt == list(encoded.input_ids)[:first]


def test_the_instruction_template_is_that_of_the_guide() -> None:
    tokenizer, encoder = text_encoder("instruction")
    user = Message("user", ("把要点改写为项目计划", "\n\n调研/清洗"), input="调研/清洗")
    encoded = encoder(Row((user, Message("assistant", ("计划：1",)))))
    assert tokenizer.decode(list(encoded.input_ids)) == (
        "### 指令:\n把要点改写为项目计划\n### 输入:\n调研/清洗\n### 回答:\n计划：1</s>\n"
    )
    assert "### 输入" not in tokenizer.decode(list(encoder(chat("你好", "好")).input_ids))


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "qwen3_training"])
def test_an_answer_that_the_data_says_not_to_learn_is_read_only(name: str) -> None:
    tokenizer, encoder = text_encoder(name)
    messages = chat("one?", "wrong", "two?", "right").messages
    row = Row((messages[0], Message("assistant", ("wrong",), learn=False), *messages[2:]))
    encoded = encoder(row)
    assert "wrong" in tokenizer.decode(list(encoded.input_ids))
    assert learned(tokenizer, encoded).removeprefix("<think>\n\n</think>\n\n") == "right<|im_end|>"


def test_running_text_is_learned_whole_with_its_end_and_no_template() -> None:
    tokenizer, encoder = text_encoder("qwen2")
    encoded = encoder(Row((Message("text", ("once upon a time",)),)))
    assert learned(tokenizer, encoded) == tokenizer.decode(list(encoded.input_ids)) == "once upon a time</s>"


def test_a_template_may_be_a_file_or_text(tmp_path: Path) -> None:
    source = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    path = tmp_path / "mine.jinja"
    path.write_text(source)
    for given_as in (source, str(path)):
        tokenizer, encoder = text_encoder_with(given_as)
        assert learned(tokenizer, encoder(chat("a", "b"))) == "[assistant] b</s>"


def text_encoder_with(given_as: str) -> tuple[Any, Any]:
    import transformers

    from qlora_core.data.encode import make_encoder

    tokenizer = words()
    return tokenizer, make_encoder(tokenizer, transformers.Qwen3Config(), template=given_as)


@pytest.mark.parametrize(
    ("given_as", "says"),
    [
        ("no-such-name", "neither a file nor one of"),
        ("{% for m in messages %}", "is not Jinja"),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            "does not write out",
        ),
        ("{{ raise_exception('never') }}", "never"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_before_any_row(given_as: str, says: str) -> None:
    from qlora_doctor.errors import UsageError

    with pytest.raises(UsageError, match=says):
        text_encoder_with(given_as)


@pytest.mark.parametrize(
    "attack",
    [
        "{% set n = namespace() %}{% set n.__init__ = 1 %}",
        "{% set n = namespace(_x=1) %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ dict.__subclasses__() }}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_template_cannot_reach_out_of_its_sandbox(attack: str) -> None:
    from qlora_doctor.errors import UsageError

    whole = attack + "{% for m in messages %}{{ m.role }}{{ m.content }}{{ eos_token }}{% endfor %}"
    with pytest.raises(UsageError, match=r"unsafe|may not set|not allowed|has no attribute"):
        text_encoder_with(whole)


def test_a_row_that_the_template_refuses_is_named() -> None:
    from qlora_core.errors import RowProblem

    _, encoder = text_encoder("mistral")
    with pytest.raises(RowProblem, match=r"made\.jsonl row 1: .*Only user and assistant roles|must alternate"):
        encoder(chat("a", "b", system="be kind"))


def picture(colour: str = "red", size: tuple[int, int] = (40, 30)) -> Image:
    from PIL import Image as pil

    return Image(pil.new("RGB", size, colour))
