"""What rows show without a model, and `qlora-doctor check` on a data file, without torch."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.cli import main
from qlora_doctor.facts import DataFacts, Facts
from qlora_doctor.gather.data.reading import read_files
from qlora_doctor.gather.data.survey import KEPT, survey
from qlora_doctor.wire import from_data, to_data


def facts(folder: Path, *records: Mapping[str, Any], evaluation: tuple[Mapping[str, Any], ...] = ()) -> DataFacts:
    def rows(name: str, records: tuple[Mapping[str, Any], ...]) -> Any:
        (folder / name).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
        return read_files([str(folder / name)])

    return survey(rows("d.jsonl", records), rows("e.jsonl", evaluation) if evaluation else None)


def row(question: str = "Q", answer: str = "A", **more: Any) -> dict[str, Any]:
    return {"instruction": question, "output": answer, **more}


def png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0\0\0\0")) + chunk(b"IEND", b"")
    )


def test_counts_of_a_file_with_known_faults(tmp_path: Path) -> None:
    seen = facts(
        tmp_path,
        row("a", "1"),
        row("b", "2"),
        row("a", "1"),
        row("b", "3"),
        row("c", ""),
        row("d", "锟斤拷"),
        row("e", "<think>x</think>5"),
        row("f", 6),  # type: ignore[arg-type]
        row("a", "1"),
    )
    assert (seen.rows, seen.format) == (9, "alpaca")
    assert dict(seen.counts) == {
        "not text": 1,
        "empty answer": 1,
        "duplicate": 2,
        "contradiction": 1,
        "damaged text": 1,
        "thinking": 1,
    }
    assert [(f.row, f.detail) for f in seen.of("duplicate", "contradiction")] == [
        (3, "the same as d.jsonl row 1"),
        (4, "the question of d.jsonl row 2 with another answer"),
        (9, "the same as d.jsonl row 1"),
    ]


def test_a_leak_is_found_word_for_word_and_but_for_case_and_punctuation(tmp_path: Path) -> None:
    train = (row("What is X?", "It is one."), row("Ｗhat is Y", "two"), row("Z", "three"))
    seen = facts(
        tmp_path, *train, evaluation=(row("What is X?", "It is one."), row("what is y?", "Two!"), row("z", "four"))
    )
    assert dict(seen.counts) == {"leak": 1, "near leak": 1} and seen.eval_rows == 3
    assert [(f.row, "e.jsonl row" in f.detail) for f in seen.faults] == [(1, True), (2, True)]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (png(), ""),
        (None, "image missing"),
        (b"", "image broken"),
        (b"this is a text file\n", "image broken"),
        (b"version https://git-lfs.github.com/spec/v1\n", "image broken"),
        (b"<html><head>", "image broken"),
    ],
)
def test_an_image_file_is_looked_at(tmp_path: Path, content: bytes | None, kind: str) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    seen = facts(tmp_path, {"image": "a.png", "question": "Q", "answer": "A"})
    assert list(seen.counts) == ([kind] if kind else []) and seen.images == 1


def test_rows_of_one_text_and_different_images_are_no_copies(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png())
    seen = facts(tmp_path, *({"image": name, "question": "Q", "answer": "A"} for name in ("a.png", "b.png", "a.png")))
    assert dict(seen.counts) == {"duplicate": 1}


def test_faults_are_counted_without_end_and_kept_up_to_a_number(tmp_path: Path) -> None:
    seen = facts(tmp_path, *(row(str(n), "") for n in range(KEPT + 10)))
    assert seen.count("empty answer") == KEPT + 10 and len(seen.of("empty answer")) == KEPT


def test_facts_of_data_survive_the_wire_and_quote_no_text(tmp_path: Path) -> None:
    seen = facts(tmp_path, row("secret question", "secret"), row("secret question", "secret"), row("secret", 3))  # type: ignore[arg-type]
    text = json.dumps(to_data(Facts(data=(seen,))))
    assert from_data(Facts, json.loads(text)).data == (seen,)
    assert "secret" not in text


def check(capsys: pytest.CaptureFixture[str], *paths: Path) -> tuple[int, list[str], str]:
    code = main(["check", *map(str, paths), "--offline", "--select", "QD7", "--format", "json"])
    report = json.loads(capsys.readouterr().out)
    return code, [f["code"] for f in report["findings"]], json.dumps(report)


def test_the_doctor_judges_a_data_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps(row()) + "\n{\n" + json.dumps(row()) + "\n")
    code, found, text = check(capsys, data)
    assert (code, found) == (1, ["QD707", "QD719"]) and "d.jsonl row 2" in text


def test_a_saved_environment_is_judged_together_with_the_data_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, saved = tmp_path / "d.jsonl", tmp_path / "facts.json"
    data.write_text("{\n")
    saved.write_text(json.dumps(Facts().to_wire()))
    code = main(["check", str(data), "--facts", str(saved), "--select", "QD7", "--format", "json"])
    assert (code, [f["code"] for f in json.loads(capsys.readouterr().out)["findings"]]) == (1, ["QD707"])


def test_sound_data_gives_no_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "d.json"
    data.write_text(json.dumps([row("a", "1"), row("b", "2", input="c")]))
    markdown = tmp_path / "qa.md"
    markdown.write_text("Q1：问？\nA1：答。\n", encoding="utf-8")
    assert check(capsys, data, markdown)[:2] == (0, [])


def test_a_script_alone_gives_no_facts_of_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "t.py"
    script.write_text("import torch\n")
    main(["check", str(script), "--offline", "--select", "QD707", "--format", "json", "--verbose"])
    outcomes = json.loads(capsys.readouterr().out)["outcomes"]
    assert [(o["code"], o["outcome"]) for o in outcomes] == [("QD707", "skipped")]


def test_settings_in_json_and_other_markdown_stay_what_they_were(tmp_path: Path) -> None:
    from qlora_doctor.errors import UsageError
    from qlora_doctor.gather.targets import find_target

    (tmp_path / "a.json").write_text('{"model": "x"}')
    (tmp_path / "b.md").write_text("# Title\nQ1: only a question\n")
    assert find_target(str(tmp_path / "a.json")).kind == "config"
    with pytest.raises(UsageError):
        find_target(str(tmp_path / "b.md"))
