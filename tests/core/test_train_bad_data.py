"""`qlora-core train` on data that cannot be trained on: said by row before the model is loaded, for every format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

SHAREGPT = {"conversations": [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "red"}]}
ALPACA = {"instruction": "a", "output": "b"}


@pytest.fixture
def hollow(copied: Callable[..., Path]) -> Callable[[str], Path]:
    """A model without its weights: whatever is said of the data was said before a load."""
    return lambda kind: copied(kind, without=("model.safetensors",))


def lines(*rows: Any) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def said(model: Path, folder: Path, name: str, text: str, *words: str) -> str:
    """What `train` says to a refusal; nothing may be written and no exception escape."""
    from qlora_core.cli import main

    (folder / name).write_text(text, encoding="utf-8")
    out = folder / "out"
    given = ["train", str(model), str(folder / name), "--output", str(out), "--set", "progress=false", *words]
    done = CliRunner().invoke(main, given)
    assert done.exit_code in (1, 2) and isinstance(done.exception, SystemExit), done.exception
    assert not out.exists() and "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("d.jsonl", "", "it is empty"),
        ("d.jsonl", lines(ALPACA, "{not json"), "d.jsonl row 2: it is not JSON"),
        ("d.json", '[{"prompt": "a"', "it was cut off"),
        ("d.jsonl", lines({"x": 1, "y": 2}), "its keys are x, y"),
        ("d.jsonl", lines(ALPACA, {"instruction": "a", "output": 3}), "d.jsonl row 2 (output): it is a number"),
        ("d.jsonl", lines({"messages": [{"role": "robot", "content": "a"}]}), "'robot' is no role"),
        ("d.jsonl", lines({"messages": []}), "row 1 (messages): it is an empty list"),
        ("d.jsonl", lines({"messages": [{"role": "user", "content": "a"}]}), "nobody answers in it"),
        ("d.jsonl", lines({"conversations": [{"from": "human"}]}), "(conversations[0].value): it is missing"),
        ("d.jsonl", lines({"prompt": "a", "chosen": "b", "rejected": "c"}), "supervised fine-tuning"),
        ("d.jsonl", lines({"prompt": "a", "completion": ""}), "QD709 1 of 1 rows have an empty answer"),
        ("d.csv", "prompt,completion\n", "it holds no row"),
        ("d.csv", "prompt,completion\na,b,c\n", "d.csv row 2: it has 3 columns and the header has 2"),
        ("d.parquet", "PAR1junk", "it cannot be read"),
        ("d.md", "# no pairs\n", "it holds no row"),
        ("d.xyz", "text", "a .xyz file is no data"),
    ],
)
def test_malformed_data_are_refused_with_the_row_and_the_reason(
    name: str, text: str, expected: str, hollow: Callable[[str], Path], tmp_path: Path
) -> None:
    assert expected in said(hollow("qwen3"), tmp_path, name, text)


@pytest.mark.parametrize(
    ("image", "expected"),
    [("text.png", "text.png: it is no image"), ("nowhere.png", "name image files that are not there")],
)
def test_an_image_that_is_none_stops_the_run_with_its_row(
    image: str, expected: str, hollow: Callable[[str], Path], tmp_path: Path, picture: Any
) -> None:
    picture.save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("this is no image")
    rows = [*[{"image": "good.png", **SHAREGPT}] * 3, {"image": image, **SHAREGPT}]
    told = said(hollow("llava"), tmp_path, "d.jsonl", lines(*rows))
    assert expected in told and "1 of 4 rows" in told and "d.jsonl row 4" in told


def test_pictures_for_a_model_of_text_alone_stop_the_run(
    hollow: Callable[[str], Path], tmp_path: Path, picture: Any
) -> None:
    picture.save(tmp_path / "good.png")
    told = said(hollow("qwen3"), tmp_path, "d.jsonl", lines({"image": "good.png", **SHAREGPT}))
    assert "the model takes text alone" in told and "d.jsonl row 1" in told


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("max_steps=0", "trains nothing"),
        ("learning_rate=nan", "expected a number"),
        ("learning_rat=1e-4", "did you mean 'learning_rate'"),
        ("format=alpacca", "did you mean alpaca"),
        ("template={% for %}", "is not Jinja"),
        ("eval_split=2", "none would be trained on"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_from_the_command_line(
    word: str, expected: str, hollow: Callable[[str], Path], tmp_path: Path
) -> None:
    assert expected in said(hollow("qwen3"), tmp_path, "d.jsonl", lines(ALPACA, ALPACA), "--set", word)
