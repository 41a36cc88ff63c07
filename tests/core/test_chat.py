"""`chat` and `generate`: the adapter answers in the form that it was trained in."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

Build = Callable[..., Path]
LOAD: dict[str, Any] = {"device": "cpu", "dtype": "float32", "gate": "off"}
WORDS = ("--device", "cpu", "--dtype", "float32", "--gate", "off", "--max-new-tokens", "6")


def call(*words: str | Path, input: str | None = None) -> Result:
    from qlora_core.cli import main

    result = CliRunner().invoke(main, [str(word) for word in words], input=input)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


@pytest.fixture(scope="module")
def learned(tiny: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that learned one answer by heart, under a template that is not the model's own."""
    from qlora_core import tiny as models
    from qlora_core.train import train

    root = tmp_path_factory.mktemp("learned")
    base = models.build("qwen3", root / "model")
    (root / "rows.jsonl").write_text(8 * (json.dumps({"instruction": "What is it?", "output": "a red cat."}) + "\n"))
    done = train(
        base, root / "rows.jsonl", root / "out", template="alpaca", max_steps=80, learning_rate=1e-2, lora_r=16,
        per_device_train_batch_size=8, gradient_accumulation_steps=1, lr_scheduler_type="constant", optim="adamw_torch",
        progress=False, samples=0, save_strategy="no", gate="off", device="cpu", dtype="float32", report_to="none",
    )  # fmt: skip
    assert done.adapter is not None
    return done.adapter


def test_the_adapter_answers_in_the_template_of_its_training(learned: Path) -> None:
    from qlora_core.chat import Sampling, load_speaker, question

    speaker = load_speaker(learned, **LOAD)
    done = speaker.answer([question("What is it?")], Sampling(max_new_tokens=30))
    assert (done.text, done.finish) == ("a red cat.", "stop")
    assert any("alpaca" in note for note in speaker.notes)


def test_what_is_heard_piece_by_piece_is_the_answer(learned: Path) -> None:
    from qlora_core.chat import Sampling, load_speaker, question

    heard: list[str] = []
    done = load_speaker(learned, **LOAD).answer([question("What is it?")], Sampling(max_new_tokens=30), heard.append)
    assert "".join(heard).strip() == done.text and len(heard) > 2


def test_a_seed_draws_the_same_answer_and_temperature_draws_others(learned: Path) -> None:
    from qlora_core.chat import Sampling, load_speaker, question

    speaker = load_speaker(learned, **LOAD)
    ask = [question("Something else entirely")]
    drawn = [speaker.answer(ask, Sampling(8, temperature=2.0, seed=seed)).text for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1


def test_ctrl_c_ends_the_answer_and_not_the_program(learned: Path) -> None:
    from qlora_core.chat import Sampling, load_speaker, question

    speaker = load_speaker(learned, **LOAD)
    heard: list[str] = []
    before = signal.getsignal(signal.SIGINT)

    def once(text: str) -> None:
        if not heard:
            signal.raise_signal(signal.SIGINT)
        heard.append(text)

    done = speaker.answer([question("Tell me a long story")], Sampling(400, temperature=1.5, seed=0), once)
    assert done.finish == "interrupted" and 0 < done.tokens < 100
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "instructblip_t5", "instructblip_vicuna"])
def test_a_vision_model_answers_about_an_image(tiny: Build, tmp_path: Path, picture: Any, kind: str) -> None:
    picture.save(tmp_path / "p.png")
    result = call(
        "generate", tiny(kind), "--image", tmp_path / "p.png", "--prompt", "What?", "--format", "json", *WORDS
    )
    assert result.exit_code == 0, result.output
    (one,) = json.loads(result.stdout)
    assert one["image"].endswith("p.png") and one["tokens"] >= 1 and one["finish"] in ("stop", "length")


def test_the_image_reaches_the_model(tiny: Build) -> None:
    from PIL import Image as Pillow

    from qlora_core.chat import Sampling, load_speaker, question
    from qlora_core.data.rows import Image

    speaker, heard = load_speaker(tiny("llava"), **LOAD), []
    for colour in ("black", "white", "red"):
        image = Image(Pillow.new("RGB", (28, 28), colour))
        heard.append(speaker.answer([question("What?", [image])], Sampling(8)).text)
    assert len(set(heard)) > 1


def test_an_image_for_a_text_model_is_refused_before_the_load(tiny: Build, tmp_path: Path, picture: Any) -> None:
    picture.save(tmp_path / "p.png")
    result = call("generate", tiny("qwen3"), "--image", tmp_path / "p.png", "--prompt", "What?", *WORDS)
    assert result.exit_code == 2 and "takes text alone" in result.stderr and result.stdout == ""


def test_a_model_that_needs_an_image_says_so(tiny: Build) -> None:
    result = call("generate", tiny("instructblip_t5"), "--prompt", "What?", *WORDS)
    assert result.exit_code == 2 and "answers about an image" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "x", "--temperature", "-1"], "temperature=-1.0"),
        (["--prompt", "x", "--temperature", "nan"], "temperature=nan"),
        (["--prompt", "x", "--top-p", "0"], "top_p=0.0"),
        (["--prompt", "x", "--repetition-penalty", "0"], "repetition_penalty=0.0"),
        (["--prompt", "x", "--max-new-tokens", "0"], "max_new_tokens=0"),
        ([], "nothing to answer"),
        (["--prompt", "x", "--image", "no.png"], "no such image file"),
        (["--file", "no.txt"], "cannot be read"),
        (["--prompt", "x", "--adapter", "./nowhere"], "there is no such folder"),
    ],
)
def test_wrong_arguments_are_named_with_exit_code_2(tiny: Build, words: list[str], said: str) -> None:
    result = call("generate", tiny("qwen3"), *words)
    assert result.exit_code == 2 and said in result.stderr


def test_prompts_come_from_a_file_of_lines_or_of_json(learned: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("What is it?\n\nWhat is it?\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "What is it?"}\n')
    for name, count in (("lines.txt", 2), ("rows.jsonl", 1)):
        result = call("generate", learned, "--file", tmp_path / name, "--format", "json", *WORDS[:-1], "30")
        assert [one["answer"] for one in json.loads(result.stdout)] == ["a red cat."] * count
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"promt": "b"}\n')
    result = call("generate", learned, "--file", tmp_path / "bad.jsonl", *WORDS)
    assert result.exit_code == 2 and "bad.jsonl, line 2" in result.stderr


def test_a_chat_goes_on_after_a_wrong_word_and_forgets_on_new(learned: Path) -> None:
    typed = "What is it?\n/image no.png\n/help\n/new\nWhat is it?\n/exit\nWhat is it?\n"
    result = call("chat", learned, *WORDS[:-1], "30", "--temperature", "0", input=typed)
    assert result.exit_code == 0 and result.stdout.count("a red cat.") == 2
    assert "takes text alone" in result.stderr and "/system TEXT" in result.stderr


def test_ctrl_c_at_the_prompt_ends_the_chat_with_130(learned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    def interrupted(prompt: str = "") -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(builtins, "input", interrupted)
    assert call("chat", learned, *WORDS).exit_code == 130


def test_what_a_model_says_cannot_steer_the_terminal() -> None:
    from qlora_core.cli.generate import printable

    assert printable("a\x1b[2Jb\x07\n\tc\x9b1m中") == "a[2Jb\n\tc1m中"
