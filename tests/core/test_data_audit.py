"""The audit: every row as the model gets it, what is left out and why, and the command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.errors import UsageError

Build = Callable[..., Path]
WORD = "word "


def row(question: str = "Q", answer: str = "A", **more: Any) -> dict[str, Any]:
    return {"instruction": question, "output": answer, **more}


@pytest.fixture(scope="module")
def encoder(tiny: Build) -> Callable[..., Any]:
    """`encoder(kind)`: the encoder of a tiny model."""

    def make(kind: str = "qwen3", **options: Any) -> Any:
        from qlora_core.data.encode import make_encoder
        from qlora_core.data.tokens import processor_of

        return make_encoder(*processor_of(tiny(kind)), **options)

    return make


def audited(data: Any, encode: Any, max_length: int | None = None, **options: Any) -> Any:
    from qlora_core.data.audit import audit
    from qlora_core.data.read import look

    return audit(look(data), encode, max_length=max_length, **options)


def image(folder: Path, name: str, size: tuple[int, int] = (40, 30)) -> None:
    from PIL import Image

    Image.new("RGB", size, "red").save(folder / name)


def test_the_counts_of_data_with_known_faults_are_those_faults(encoder: Any) -> None:
    seen = audited(
        [row("a", "one"), row("b", WORD * 300), row("c", ""), row("a", "one"), {"instruction": "d"}, row("e", "five")],
        encoder(),
        max_length=200,
    )
    assert seen.kept == (0, 2, 3, 4) and len(seen.encoded) == 4
    assert [(f.kind, f.row) for f in seen.dropped] == [("too long", 2)]
    assert dict(seen.facts.counts) == {"malformed": 1, "empty answer": 1, "duplicate": 1, "too long": 1}
    assert (seen.facts.rows, seen.facts.kept, seen.facts.max_length) == (6, 4, 200)


def test_the_supervised_share_is_that_of_the_labels(encoder: Any) -> None:
    seen = audited([row("a", "one"), row("b", "two three")], encoder())
    labels = [label for made in seen.encoded for label in made.labels]
    assert seen.facts.tokens == len(labels)
    assert seen.facts.supervised == sum(label != -100 for label in labels) > 0


def test_a_row_longer_than_the_limit_is_left_out_and_never_cut(encoder: Any) -> None:
    (length,) = audited([row("a", "one two")], encoder()).encoded.lengths
    assert audited([row("a", "one two")], encoder(), max_length=length).kept == (0,)
    shorter = audited([row("a", "one two")], encoder(), max_length=length - 1)
    assert shorter.kept == () and f"{length} tokens; the limit is {length - 1}" in shorter.dropped[0].detail


def test_refusing_long_rows_is_an_error_of_the_checks(encoder: Any) -> None:
    from qlora_core.data.audit import findings_of

    data = [row(str(n), "A") for n in range(40)] + [row("b", WORD * 300)]
    dropping = findings_of(audited(data, encoder(), max_length=200).facts)
    refusing = findings_of(audited(data, encoder(), max_length=200, too_long="refuse").facts)
    assert [(f.code, f.severity) for f in dropping] == [("QD712", "info")]
    assert [(f.code, f.severity) for f in refusing] == [("QD712", "error")]


def test_rows_that_say_that_nothing_is_to_be_learned_are_masked_and_left_out(encoder: Any) -> None:
    from qlora_core.data.audit import findings_of

    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "weight": 0}]
    seen = audited([{"messages": turns}], encoder())
    assert seen.kept == () and seen.facts.count("masked") == 1
    assert [(f.code, f.severity) for f in findings_of(seen.facts)] == [("QD711", "error")]


def test_a_turn_that_is_not_to_be_learned_is_masked_and_the_others_are_learned(encoder: Any) -> None:
    turns = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "wrong", "weight": 0},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "right"},
    ]
    encode = encoder()
    (made,) = audited([{"messages": turns}], encode).encoded
    learned = encode.tokenizer.decode([label for label in made.labels if label != -100])
    assert "right" in learned and "wrong" not in learned


def test_evaluation_rows_in_the_training_are_counted(encoder: Any) -> None:
    from qlora_core.data.read import look

    seen = audited([row("a", "one"), row("b", "two")], encoder(), eval_rows=look([row("B!", "two")]))
    assert dict(seen.facts.counts) == {"near leak": 1}


def test_the_histogram_counts_every_row_that_was_encoded(encoder: Any) -> None:
    from qlora_core.data.audit import histogram

    assert histogram([1, 64, 65, 128, 129, 1000]) == {"64": 2, "128": 2, "256": 1, "512": 0, "1024": 1}
    seen = audited([row("a", WORD * n) for n in (1, 40, 400)], encoder(), max_length=100)
    assert sum(seen.facts.lengths.values()) == 3


def test_progress_is_told_up_to_the_last_row(encoder: Any) -> None:
    told: list[tuple[int, int]] = []
    audited([row(str(n)) for n in range(1001)], encoder(), progress=lambda done, total: told.append((done, total)))
    assert told == [(1000, 1001), (1001, 1001)]


@pytest.mark.parametrize("options", [{"max_length": 0}, {"max_length": True}, {"too_long": "cut"}])
def test_arguments_that_mean_nothing_are_refused(encoder: Any, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        audited([row()], encoder(), **options)


# Images


def test_rows_with_images_are_encoded_with_pixels_when_they_are_wanted(tmp_path: Path, encoder: Any) -> None:
    image(tmp_path, "a.png")
    records = [{"image": "a.png", "question": "Q", "answer": "A"}]
    (tmp_path / "d.json").write_text(json.dumps(records))
    encode = encoder("llava")
    seen = audited(tmp_path / "d.json", encode)
    assert seen.encoded.made[0].extras == {} and "pixel_values" in seen.encoded[0].extras
    assert list(seen.encoded[0].input_ids) == list(seen.encoded.made[0].input_ids)
    assert seen.encoded.modalities == ["image"] and seen.facts.images == 1


def test_rows_with_images_that_cannot_be_used_are_left_out_and_named(tmp_path: Path, encoder: Any) -> None:
    image(tmp_path, "a.png")
    (tmp_path / "text.png").write_text("hello")
    records = [{"image": name, "question": name, "answer": "A"} for name in ("a.png", "absent.png", "text.png")]
    (tmp_path / "d.json").write_text(json.dumps(records))
    seen = audited(tmp_path / "d.json", encoder("llava"))
    assert seen.kept == (0,)
    assert [(f.kind, f.row) for f in seen.dropped] == [("image missing", 2), ("image broken", 3)]
    assert dict(seen.facts.counts) == {"image missing": 1, "image broken": 1}


def test_a_text_model_refuses_rows_with_images_and_the_audit_counts_them(tmp_path: Path, encoder: Any) -> None:
    image(tmp_path, "a.png")
    (tmp_path / "d.json").write_text(json.dumps([{"image": "a.png", "question": "Q", "answer": "A"}]))
    seen = audited(tmp_path / "d.json", encoder())
    assert seen.kept == () and seen.facts.count("cannot be encoded") == 1


def test_a_long_row_with_an_image_is_left_out_whole(tmp_path: Path, encoder: Any) -> None:
    image(tmp_path, "a.png")
    (tmp_path / "d.json").write_text(json.dumps([{"image": "a.png", "question": "Q", "answer": "A"}]))
    length = audited(tmp_path / "d.json", encoder("llava")).encoded.lengths[0]
    seen = audited(tmp_path / "d.json", encoder("llava"), max_length=length - 1)
    assert seen.kept == () and "its 1 images" in seen.dropped[0].detail


# What is shown


def test_a_row_is_shown_with_what_is_learned_between_brackets_or_in_colour(encoder: Any) -> None:
    from qlora_core.data.show import GREEN, PLAIN, show_audit

    seen = audited([row("question", "answer")], encoder())
    assert re.search(r"question.*\[\[ ?answer", str(seen), re.DOTALL) and "\x1b" not in str(seen)
    assert re.search(re.escape(GREEN) + " ?answer.*" + re.escape(PLAIN), show_audit(seen, colour=True))


def test_the_row_of_an_encoder_decoder_is_shown_with_its_answer_apart(tmp_path: Path, encoder: Any) -> None:
    image(tmp_path, "a.png")
    (tmp_path / "d.json").write_text(json.dumps([{"image": "a.png", "question": "colour", "answer": "red"}]))
    assert re.search(r"colour.*\[\[ ?red", str(audited(tmp_path / "d.json", encoder("instructblip_t5"))), re.DOTALL)


def test_control_characters_of_the_data_do_not_reach_the_terminal(encoder: Any) -> None:
    assert "\x1b" not in str(audited([row("a\x1b[2Jb", "c\x07")], encoder()))


def run(*words: str) -> Any:
    from click.testing import CliRunner

    from qlora_core.cli import main

    return CliRunner().invoke(main, ["data", *words])


def test_the_command_reads_without_a_model_and_fails_on_an_error(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(json.dumps(row("hello", "world")) + "\n")
    bad.write_text(json.dumps(row()) + "\n{\n")
    fine = run(str(good))
    assert fine.exit_code == 0 and "Alpaca" in fine.output and "hello" in fine.output
    failed = run(str(good), str(bad))
    assert failed.exit_code == 1 and "error: QD707" in failed.output and "bad.jsonl row 2" in failed.output
    assert run(str(tmp_path / "absent.jsonl")).exit_code == 2


def test_the_command_encodes_with_a_model_and_speaks_json(tmp_path: Path, tiny: Build) -> None:
    data, other = tmp_path / "d.jsonl", tmp_path / "e.jsonl"
    data.write_text("".join(json.dumps(row(str(n), "A")) + "\n" for n in range(3)))
    other.write_text(json.dumps(row("1", "A")) + "\n")
    words = [str(data), "--model", str(tiny("qwen3")), "--eval", str(other), "--max-length", "64", "--format", "json"]
    done = run(*words)
    told = json.loads(done.output)
    assert done.exit_code == 0 and told["schema"] == 1
    assert told["data"]["kept"] == 3 and told["data"]["supervised"] > 0
    assert [f["code"] for f in told["findings"]] == ["QD720"]
    assert "1" in run(*words[:-2], "--rows", "2").output
