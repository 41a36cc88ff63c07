"""Settings: names, kinds, ranges, files, and the page that is generated from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_core.settings import NAMES, Settings, make_settings
from qlora_core.settings_file import pages, parse_word, read_settings_file
from qlora_doctor.errors import UsageError

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_of_settings_is_not_stale() -> None:
    assert DOCS.read_text(encoding="utf-8") == pages()


def test_every_setting_has_a_page_entry_with_its_default() -> None:
    rows = {line.split("`")[1]: line for line in pages().splitlines() if line.startswith("| `")}
    assert set(rows) == set(NAMES)
    assert "`0.0002`" in rows["learning_rate"] and "*chosen*" in rows["max_length"]


@pytest.mark.parametrize(
    ("name", "near"),
    [("learning_rat", "learning_rate"), ("lora_rank", "lora_r"), ("batch_size", "per_device_train_batch_size"), ("lr", "learning_rate")],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=near):
        make_settings({name: 1})


def test_a_name_like_no_other_is_sent_to_the_list() -> None:
    with pytest.raises(UsageError, match=r"settings\.md"):
        make_settings({"zzz": 1})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"per_device_train_batch_size": 0}, "1 to 100000"),
        ({"per_device_train_batch_size": True}, "whole number"),
        ({"per_device_train_batch_size": 2.5}, "whole number"),
        ({"learning_rate": 10}, "learning_rate"),
        ({"learning_rate": 0.05}, "2e-4 is usual"),
        ({"learning_rate": float("nan")}, "number"),
        ({"learning_rate": "2e-4x"}, "number"),
        ({"num_train_epochs": 0}, "0.001"),
        ({"bits": 5}, "there are 4, 8, 16"),
        ({"loss": "chunky"}, "did you mean 'chunked'"),
        ({"train": "langauge"}, "did you mean 'language'"),
        ({"train": "language+nose"}, "nose|not known"),
        ({"eval_strategy": "steps"}, "eval_steps"),
        ({"push_to_hub": True}, "hub_model_id"),
        ({"gradient_checkpointing": "yes"}, "true or false"),
        ({"gate": None}, "found nothing"),
        ({"fixes": {"QD502": 1}}, "table"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said) as refusal:
        make_settings(values)
    assert next(iter(values)) in str(refusal.value)


def test_one_metric_as_a_word_and_several_with_commas_are_a_list() -> None:
    assert make_settings({"metrics": "exact_match"}).metrics == ("exact_match",)
    assert make_settings({"metrics": "exact_match, bleu"}).metrics == ("exact_match", "bleu")


def test_whole_floats_are_whole_numbers() -> None:
    assert make_settings({"lora_r": 8.0}).lora_r == 8 and isinstance(make_settings({"learning_rate": 0.001}), Settings)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("learning_rate=2e-4", 2e-4),
        ("lora_r=8", 8),
        ("max_length=none", None),
        ("gradient_checkpointing=False", False),
        ('target_modules=["q_proj", "v_proj"]', ["q_proj", "v_proj"]),
        ("optim=adamw_torch", "adamw_torch"),
        ("warmup_steps=.1", 0.1),
        ("run_name=a=b", "a=b"),
        ("report_to=none", "none"),
    ],
)
def test_a_word_of_the_command_line_becomes_its_value(word: str, value: object) -> None:
    assert parse_word(word) == (word.partition("=")[0], value)


@pytest.mark.parametrize("word", ["learning_rate", "lerning_rate=1"])
def test_a_word_that_sets_nothing_is_refused(word: str) -> None:
    with pytest.raises(UsageError):
        parse_word(word)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.toml", "learning_rate = 1e-4\nlora_r = 8\n[fixes]\nQD502 = false\n"),
        ("s.json", '{"learning_rate": 1e-4, "lora_r": 8, "fixes": {"QD502": false}}'),
        ("s.yaml", "learning_rate: 0.0001\nlora_r: 8\nfixes: {QD502: false}\n"),
        ("bom.json", '\ufeff{"learning_rate": 1e-4, "lora_r": 8, "fixes": {"QD502": false}}'),
    ],
)
def test_a_file_of_settings_is_read_in_each_form(tmp_path: Path, name: str, text: str) -> None:
    if name.endswith("yaml"):
        pytest.importorskip("yaml")
    (tmp_path / name).write_text(text, encoding="utf-8")
    made = make_settings(read_settings_file(tmp_path / name))
    assert (made.learning_rate, made.lora_r, made.fixes) == (1e-4, 8, {"QD502": False})


def test_the_record_of_a_run_is_a_file_of_settings(tmp_path: Path) -> None:
    run = {"schema": 1, "settings": {**Settings(lora_r=4).to_dict(), "gone_since": 1}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert make_settings(read_settings_file(tmp_path / "run.json")) == Settings(lora_r=4)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "lora_r = = 8", "TOML"),
        ("a.json", "{", "JSON"),
        ("a.yaml", "a: [1", "YAML"),
        ("a.json", "[1]", "table"),
        ("a.ini", "x", "toml"),
        ("none.toml", None, "cannot be read"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if name.endswith("yaml"):
        pytest.importorskip("yaml")
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=said):
        read_settings_file(tmp_path / name)
