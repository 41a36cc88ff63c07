"""Data files become rows: every format, every kind of bad row with its number, every encoding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.errors import UsageError
from qlora_doctor.gather.data.formats import FORMATS
from qlora_doctor.gather.data.reading import read_files
from qlora_doctor.gather.data.rows import Image, Rows

GUIDE = """{"instruction": "解释 LoRA 的核心思想", "input": "", "output": "LoRA 通过低秩增量..."}
{"instruction": "把要点改写为项目计划", "input": "调研/清洗/训练RM", "output": "计划：1) 调研..."}
"""
GUIDE_MARKDOWN = """Q1: 这是问题1？
A1: 这是答案1。

Q2: 这是问题2？
A2: 这是答案2。
"""


def read(folder: Path, text: str | bytes, name: str = "d.jsonl", **options: Any) -> Rows:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_files([str(path)], **options)


def lines(*records: Mapping[str, Any]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def said(rows: Rows) -> list[list[tuple[str, str]]]:
    return [
        [(m.role, "".join(p if isinstance(p, str) else "[IMG]" for p in m.parts)) for m in row.messages] for row in rows
    ]


ASKED = [[("user", "Q"), ("assistant", "A")]]
RECOGNISED = [
    ("alpaca", {"instruction": "Q", "output": "A"}, ASKED),
    ("alpaca", {"instruction": "Q", "input": "", "output": "A"}, ASKED),
    ("alpaca", {"instruction": "Q", "context": "C", "response": "A"}, [[("user", "Q\n\nC"), ("assistant", "A")]]),
    (
        "alpaca",
        {"instruction": "Q", "output": "A", "system": "S", "history": [["q", "a"]]},
        [[("system", "S"), ("user", "q"), ("assistant", "a"), ("user", "Q"), ("assistant", "A")]],
    ),
    ("messages", {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, ASKED),
    (
        "messages",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Q"}]},
                {"role": "assistant", "content": "A"},
            ]
        },
        ASKED,
    ),
    ("messages", {"conversations": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, ASKED),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, ASKED),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"},
        [[("system", "S"), ("user", "Q"), ("assistant", "A")]],
    ),
    (
        "llava",
        {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]},
        [[("user", "[IMG]Q"), ("assistant", "A")]],
    ),
    (
        "llava",
        {"image": "a.jpg", "conversations": [{"from": "human", "value": "Q\n<image>"}, {"from": "gpt", "value": "A"}]},
        [[("user", "Q[IMG]"), ("assistant", "A")]],
    ),
    ("prompt-completion", {"prompt": "Q", "completion": "A"}, ASKED),
    (
        "prompt-completion",
        {"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]},
        ASKED,
    ),
    ("qa", {"question": "Q", "answer": "A"}, ASKED),
    ("qa", {"query": "Q", "response": "A"}, ASKED),
    (
        "qa",
        {"question": "Q", "context": "C", "answers": {"text": ["A"], "answer_start": [1]}},
        [[("user", "C\n\nQ"), ("assistant", "A")]],
    ),
    ("alpaca", {"input": "Q", "output": "A"}, ASKED),
    (
        "messages",
        {"system": "S", "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        [[("system", "S"), ("user", "Q"), ("assistant", "A")]],
    ),
    ("vqa", {"image": "a.jpg", "question": "Q", "answer": "A"}, [[("user", "[IMG]Q"), ("assistant", "A")]]),
    (
        "vqa",
        {"image": "a.jpg", "question": "Q", "answers": ["B", "A", "A"]},
        [[("user", "[IMG]Q"), ("assistant", "A")]],
    ),
    ("caption", {"image": "a.jpg", "caption": "A"}, [[("user", "[IMG]"), ("assistant", "A")]]),
    ("caption", {"file_name": "a.png", "text": "A"}, [[("user", "[IMG]"), ("assistant", "A")]]),
    ("text", {"text": "A"}, [[("text", "A")]]),
    ("text", {"text": "A", "file_name": "book.txt"}, [[("text", "A")]]),
]


@pytest.mark.parametrize(("form", "record", "expected"), RECOGNISED)
def test_a_format_is_recognised_and_becomes_messages(
    tmp_path: Path, form: str, record: dict[str, Any], expected: list[list[tuple[str, str]]]
) -> None:
    rows = read(tmp_path, lines(record))
    assert (rows.format, said(rows), rows.faults) == (form, expected, ())


def test_every_format_is_tried_above() -> None:
    assert {form for form, _, _ in RECOGNISED} | {"qa-markdown"} == set(FORMATS)


def test_the_second_guides_markdown_becomes_questions_and_answers(tmp_path: Path) -> None:
    rows = read(tmp_path, GUIDE_MARKDOWN, "qa_data.md")
    assert rows.format == "qa-markdown"
    assert said(rows) == [
        [("user", "这是问题1？"), ("assistant", "这是答案1。")],
        [("user", "这是问题2？"), ("assistant", "这是答案2。")],
    ]
    assert [row.number for row in rows] == [1, 4]


def test_markdown_takes_full_width_colons_headings_bold_marks_and_long_answers(tmp_path: Path) -> None:
    text = "# Title\n\n**Q1：one?**\nA1：first\n\nsecond\n- third\n\n## Q2: two\r\n\nA2: end\n"
    assert said(read(tmp_path, text, "a.md")) == [
        [("user", "one?"), ("assistant", "first\n\nsecond\n- third")],
        [("user", "two"), ("assistant", "end")],
    ]


@pytest.mark.parametrize(
    ("text", "row", "what"),
    [
        ("Q1: a\nQ2: b\nA2: c\n", 1, "question 1 has no answer"),
        ("Q1: a\nA1: b\nQ2: c\n", 3, "question 2 has no answer"),
        ("A1: b\nQ2: c\nA2: d\n", 1, "answer 1 has no question"),
        ("Q1: a\nA2: b\nQ3: c\nA3: d\n", 2, "answer 2 follows question 1"),
        ("Q1: a\nA1: b\nQ1: c\nA1: d\n", 3, "question 1 was there before, in line 1"),
    ],
)
def test_a_markdown_pair_that_is_torn_is_named_by_its_line(tmp_path: Path, text: str, row: int, what: str) -> None:
    faults = read(tmp_path, text, "a.md").faults
    assert [(f.kind, f.row) for f in faults] == [("malformed", row)] and what in faults[0].detail


def test_the_third_guides_instruction_keeps_its_input_apart(tmp_path: Path) -> None:
    rows = read(tmp_path, GUIDE)
    assert said(rows)[1][0] == ("user", "把要点改写为项目计划\n\n调研/清洗/训练RM")
    assert [row.messages[0].input for row in rows] == ["", "调研/清洗/训练RM"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (GUIDE.encode(), ""),
        (GUIDE.encode("utf-8-sig"), "UTF-8 with a byte order mark"),
        (GUIDE.encode("gbk"), "GBK"),
        (GUIDE.replace("核心", "核心𠀀").encode("gb18030"), "GB18030"),
        (GUIDE.encode("utf-16"), "UTF-16"),
        (b"\xfe\xff" + GUIDE.encode("utf-16-be"), "UTF-16"),
        (GUIDE.encode("utf-32"), "UTF-32"),
        ((lines({"instruction": "plain", "output": "ascii " * 30}) + GUIDE).encode("utf-16-le"), "UTF-16 without"),
    ],
)
def test_an_encoding_is_recognised_and_said(tmp_path: Path, data: bytes, told: str) -> None:
    rows = read(tmp_path, data)
    assert said(rows)[-1][-1] == ("assistant", "计划：1) 调研...") and rows.faults == ()
    assert rows.encodings.get("d.jsonl", "").startswith(told) and bool(rows.encodings) == bool(told)


@pytest.mark.parametrize(
    "data",
    [
        lines({"instruction": "où est le café déjà fermé à Orléans", "output": "près de l'hôtel"}).encode("cp1252"),
        lines({"instruction": "這裡有一個問題，請您詳細說明", "output": "這個問題的答案"}).encode("big5"),
    ],
)
def test_text_in_an_encoding_that_cannot_be_told_is_refused_rather_than_guessed(tmp_path: Path, data: bytes) -> None:
    rows = read(tmp_path, data)
    assert len(rows) == 0
    assert [f.kind for f in rows.faults] == ["unreadable"] and "save it as UTF-8" in rows.faults[0].detail


def test_one_line_in_another_encoding_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    rows = read(tmp_path, GUIDE.encode() + lines({"instruction": "坏", "output": "坏"}).encode("gbk") + GUIDE.encode())
    assert [(f.kind, f.row) for f in rows.faults] == [("malformed", 3)] and len(rows) == 4


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b" \n\n", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"PK\x03\x04rest", "zip"),
        (b"\x1f\x8bgz", "unpack it"),
        (b"\x00\x01\x02\x03binary\x00\x07", "binary"),
    ],
)
def test_a_file_that_is_no_data_is_called_by_its_name(tmp_path: Path, data: bytes, reason: str) -> None:
    (fault,) = read(tmp_path, data).faults
    assert (fault.kind, fault.file) == ("unreadable", "d.jsonl") and reason in fault.detail


GOOD = '{"instruction": "Q", "output": "A"}\n'
TURN = {"role": "user", "content": "Q"}
BAD_ROWS = [
    ('{"instruction": "Q", "output"\n', "malformed", "", "not JSON"),
    ("{'instruction': 'Q', 'output': 'A'}\n", "malformed", "", "json.dumps"),
    ('{"instruction": "Q", "output": "A"},\n', "malformed", "", "comma"),
    ("[1, 2]\n", "malformed", "", "a list, not an object"),
    ('"text"\n', "malformed", "", "text, not an object"),
    ("{}\n", "malformed", "instruction", "no keys"),
    ('{"instruction": "Q"}\n', "malformed", "output", "missing"),
    ('{"instruction": "Q", "output": 42}\n', "not text", "output", "a number"),
    ('{"instruction": ["Q"], "output": "A"}\n', "not text", "instruction", "a list"),
    ('{"instruction": "Q", "output": {"a": 1}}\n', "not text", "output", "an object"),
    ('{"instruction": "Q", "output": true}\n', "not text", "output", "true or false"),
    ('{"instruction": "Q", "output": "A", "history": ["x"]}\n', "malformed", "history[0]", "pair"),
    ('{"instruction": "Q", "output": "\\ud83d"}\n', "malformed", "turn 2", "half a character"),
    ('{"prompt": "Q", "chosen": "A", "rejected": "B"}\n', "preference", "rejected", "DPOTrainer"),
    ('{"prompt": "Q", "completion": "A", "label": true}\n', "preference", "label", "completion and label"),
    ('{"messages": [{"role": "user", "content": "Q"}]}\n', "malformed", "", "separate files"),
]


@pytest.mark.parametrize(("line", "kind", "field", "what"), BAD_ROWS)
def test_a_bad_row_is_named_by_file_row_and_field_and_the_good_ones_are_read(
    tmp_path: Path, line: str, kind: str, field: str, what: str
) -> None:
    rows = read(tmp_path, GOOD + "\n" + GOOD + line + GOOD)
    (fault,) = rows.faults
    assert (fault.kind, fault.file, fault.row, fault.field) == (kind, "d.jsonl", 4, field)
    assert what in fault.detail
    assert [row.number for row in rows] == [1, 3, 5]


BAD_TURNS = [
    ("messages", [], "no answer", "messages"),
    ("messages", [TURN], "no answer", ""),
    ("messages", "Q", "malformed", "messages"),
    ("messages", ["Q"], "malformed", "messages[0]"),
    ("messages", [{"role": "user"}], "malformed", "messages[0].content"),
    ("messages", [{"content": "Q"}], "malformed", "messages[0].role"),
    ("messages", [{"role": "nobody", "content": "Q"}], "malformed", "messages[0].role"),
    ("messages", [TURN, {"role": "assistant", "content": 3}], "not text", "messages[1].content"),
    (
        "messages",
        [TURN, {"role": "assistant", "content": [{"type": "audio"}]}],
        "malformed",
        "messages[1].content[0].type",
    ),
    (
        "messages",
        [TURN, {"role": "assistant", "content": None, "tool_calls": [{}]}],
        "malformed",
        "messages[1].tool_calls",
    ),
    ("conversations", [{"from": "human"}], "malformed", "conversations[0].value"),
    ("conversations", [{"from": "human", "value": 3}], "not text", "conversations[0].value"),
    ("conversations", [{"from": "human", "value": "Q"}], "no answer", ""),
    ("conversations", [{"from": 3, "value": "Q"}], "malformed", "conversations[0].from"),
]


@pytest.mark.parametrize(("key", "turns", "kind", "field"), BAD_TURNS)
def test_a_bad_turn_is_named_by_its_place(tmp_path: Path, key: str, turns: Any, kind: str, field: str) -> None:
    format = "messages" if key == "messages" else "sharegpt"
    (fault,) = read(tmp_path, lines({key: turns}), format=format).faults
    assert (fault.kind, fault.row, fault.field) == (kind, 1, field)


def test_an_empty_answer_and_an_empty_question_are_told_and_kept(tmp_path: Path) -> None:
    rows = read(tmp_path, lines({"instruction": "Q", "output": " "}, {"instruction": "", "output": "A"}))
    assert [(f.kind, f.row) for f in rows.faults] == [("empty answer", 1), ("empty question", 2)] and len(rows) == 2


@pytest.mark.parametrize(
    ("roles", "doubtful"),
    [
        (["user", "assistant"], False),
        (["system", "user", "assistant", "user", "assistant"], False),
        (["user", "assistant", "tool", "assistant"], False),
        (["user", "assistant", "tool", "tool", "assistant"], False),
        (["assistant", "user", "assistant"], True),
        (["user", "user", "assistant"], True),
        (["user", "assistant", "user"], True),
    ],
)
def test_turns_out_of_order_are_told(tmp_path: Path, roles: list[str], doubtful: bool) -> None:
    rows = read(tmp_path, lines({"messages": [{"role": role, "content": "x"} for role in roles]}))
    assert [f.kind for f in rows.faults] == (["turn order"] if doubtful else [])


def test_an_answer_marked_as_not_to_be_learned_is_kept_and_marked(tmp_path: Path) -> None:
    turns = [
        TURN,
        {"role": "assistant", "content": "no", "weight": 0},
        TURN,
        {"role": "assistant", "content": "yes", "weight": 1},
    ]
    rows = read(tmp_path, lines({"messages": turns}))
    assert [m.learn for m in rows[0].messages if m.role == "assistant"] == [False, True] and rows.faults == ()


def test_reasoning_that_stands_apart_is_put_into_the_answer(tmp_path: Path) -> None:
    turns = [TURN, {"role": "assistant", "content": "A", "reasoning_content": "because"}]
    rows = read(tmp_path, lines({"messages": turns}))
    assert said(rows)[0][1] == ("assistant", "<think>\nbecause\n</think>\n\nA")


def test_fields_that_are_not_used_are_told_and_identifiers_are_not(tmp_path: Path) -> None:
    rows = read(tmp_path, lines({"instruction": "Q", "output": "A", "id": 3, "explanation": "E"}))
    assert rows.notes == ("these fields of d.jsonl are not used: explanation",)


def test_a_field_of_another_format_that_is_left_out_is_told(tmp_path: Path) -> None:
    rows = read(tmp_path, lines({"prompt": "Q", "completion": "A", "input": "I", "context": "C"}))
    assert rows.notes == ("these fields of d.jsonl are not used: input, context",)


def test_a_file_of_preferences_has_no_format_of_ours(tmp_path: Path) -> None:
    rows = read(tmp_path, lines({"prompt": "Q", "chosen": "A", "rejected": "B"}))
    assert (rows.format, len(rows), [f.kind for f in rows.faults]) == ("", 0, ["preference"])


def test_a_format_can_be_named_and_a_wrong_name_gets_the_nearest(tmp_path: Path) -> None:
    both = lines({"instruction": "Q", "output": "A", "text": "T"})
    assert said(read(tmp_path, both)) == ASKED
    with pytest.raises(UsageError, match="did you mean alpaca"):
        read(tmp_path, both, format="alpacca")


# Kinds of files


def test_a_json_list_is_numbered_by_its_elements(tmp_path: Path) -> None:
    rows = read(tmp_path, json.dumps([{"instruction": "Q", "output": "A"}, {"instruction": "Q"}], indent=2), "d.json")
    assert [row.number for row in rows] == [1] and [(f.row, f.field) for f in rows.faults] == [(2, "output")]


@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        ("d.json", GOOD + GOOD, "read as JSONL"),
        ("d.jsonl", "[" + GOOD + "," + GOOD + "]", "read as JSON"),
        ("d.json", json.dumps({"version": 1, "data": [json.loads(GOOD)] * 2}), "under 'data'"),
        ("d.json", json.dumps({"instruction": ["Q", "Q"], "output": ["A", "A"]}), "columns"),
    ],
)
def test_json_in_another_wrapping_is_read_and_said(tmp_path: Path, name: str, text: str, note: str) -> None:
    rows = read(tmp_path, text, name)
    assert said(rows) == ASKED * 2 and note in rows.notes[0]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('[{"instruction": "Q", "output": "A"}, {"instruc', "it was cut off"),
        ('[{"instruction": "Q" "output": "A"}]', "line 1, column 22"),
        ("3", "a single value"),
        ('{"train": {"a": 1}}', "none is known to hold the rows"),
        ("[" * 200_000, "nested too deep"),
        ("[]", "it holds no row"),
    ],
)
def test_json_that_cannot_be_read_says_where_and_why(tmp_path: Path, text: str, what: str) -> None:
    (fault,) = read(tmp_path, text, "d.json").faults
    assert fault.kind == "unreadable" and what in fault.detail


def test_a_csv_is_numbered_by_its_lines_and_takes_quotes_newlines_and_semicolons(tmp_path: Path) -> None:
    rows = read(tmp_path, 'instruction,output\nQ,A\n"a, b","one\ntwo"\n\n"x ""y""",A\n', "d.csv")
    assert [(row.number, row.messages[0].text, row.answer) for row in rows] == [
        (2, "Q", "A"),
        (3, "a, b", "one\ntwo"),
        (6, 'x "y"', "A"),
    ]
    semicolons = read(tmp_path, "instruction;output\nQ;A\n", "e.csv")
    assert said(semicolons) == ASKED and "';'" in semicolons.notes[0]
    assert said(read(tmp_path, "instruction\toutput\nQ\tA\n", "f.tsv")) == ASKED


def test_a_csv_cell_longer_than_the_libraries_limit_is_read(tmp_path: Path) -> None:
    assert len(read(tmp_path, f"instruction,output\nQ,{'a' * 200_000}\n", "d.csv")[0].answer) == 200_000


def test_a_csv_cell_of_json_messages_is_read_as_messages(tmp_path: Path) -> None:
    turns = json.dumps([TURN, {"role": "assistant", "content": "A"}]).replace('"', '""')
    assert said(read(tmp_path, f'messages\n"{turns}"\n', "d.csv")) == ASKED


@pytest.mark.parametrize(
    ("text", "row", "what"),
    [
        ("instruction,output\nQ,A\na, b,c\n", 3, "3 columns and the header has 2"),
        ('instruction,output\nQ,A\n"Q,A\nQ,A\n', 3, "never closed"),
    ],
)
def test_a_bad_csv_line_is_named(tmp_path: Path, text: str, row: int, what: str) -> None:
    rows = read(tmp_path, text, "d.csv")
    (fault,) = rows.faults
    assert fault.row == row and what in fault.detail and len(rows) == 1


def test_a_line_separator_inside_a_text_ends_no_row(tmp_path: Path) -> None:
    rows = read(tmp_path, '{"instruction": "a\u2028b", "output": "c\x85d"}\n' + GOOD)
    assert [row.number for row in rows] == [1, 2] and rows[0].messages[0].text == "a\u2028b"


# Folders


def test_of_a_folder_only_the_files_of_the_split_are_read_and_the_others_named(tmp_path: Path) -> None:
    for name in ("train.jsonl", "val.jsonl", "test-00000.jsonl"):
        (tmp_path / name).write_text(GOOD)
    (tmp_path / "README.md").write_text("# about\n")
    (tmp_path / "dataset_info.json").write_text("{}")
    rows = read_files([str(tmp_path)])
    assert [Path(f).name for f in rows.files] == ["train.jsonl"]
    assert "test-00000.jsonl, val.jsonl" in rows.notes[0]
    assert [Path(f).name for f in read_files([str(tmp_path)], split="validation").files] == ["val.jsonl"]


def test_files_without_a_split_in_their_name_are_the_training_and_those_of_another_split_are_not(
    tmp_path: Path,
) -> None:
    for name in ("rows.jsonl", "val.jsonl"):
        (tmp_path / name).write_text(GOOD)
    assert [Path(f).name for f in read_files([str(tmp_path)]).files] == ["rows.jsonl"]


def test_several_files_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "d.jsonl").write_text(GOOD + "{\n")
    rows = read_files([str(tmp_path)])
    assert [Path(f.file).parent.name for f in rows.faults] == ["a", "b"]


def test_files_of_two_formats_are_each_read_as_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD)
    (tmp_path / "b.md").write_text("Q1: Q\nA1: A\n")
    rows = read_files([str(tmp_path)])
    assert rows.format == "alpaca + qa-markdown" and said(rows) == ASKED * 2


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("")
    with pytest.raises(UsageError, match="it holds no data"):
        read_files([str(tmp_path)])


def test_a_limit_reads_so_many_rows_and_no_more(tmp_path: Path) -> None:
    assert len(read(tmp_path, GOOD * 5, limit=3)) == 3


# Images


def conversation(*values: str, **more: Any) -> str:
    turns = [{"from": ("human", "gpt")[n % 2], "value": v} for n, v in enumerate(values)]
    return lines({"conversations": turns, **more})


def sources(rows: Rows) -> list[Any]:
    return [image.source for row in rows for image in row.images]


def test_images_lie_in_the_folder_of_the_data_or_where_it_is_said(tmp_path: Path) -> None:
    text = lines({"image": "x/a.jpg", "question": "Q", "answer": "A"})
    assert sources(read(tmp_path, text)) == [str(tmp_path / "x/a.jpg")]
    assert sources(read(tmp_path, text, images="/elsewhere")) == ["/elsewhere/x/a.jpg"]


def test_several_images_take_their_places_in_order(tmp_path: Path) -> None:
    rows = read(tmp_path, conversation("<image> and <image>?", "A", images=["a.png", "b.png"]))
    parts = rows[0].messages[0].parts
    assert parts == (Image(str(tmp_path / "a.png")), " and ", Image(str(tmp_path / "b.png")), "?")


def test_a_content_part_names_its_image_in_the_ways_of_openai_and_transformers(tmp_path: Path) -> None:
    content = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
        {"type": "image", "image": "b.png"},
        {"type": "image"},
        {"type": "text", "text": "Q"},
    ]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}]
    rows = read(tmp_path, lines({"messages": turns, "images": ["c.png"]}))
    assert sources(rows) == [b"ABC", str(tmp_path / "b.png"), str(tmp_path / "c.png")]


def test_a_placeholder_in_the_text_beside_an_image_part_stays_text(tmp_path: Path) -> None:
    content = [{"type": "image", "image": "b.png"}, {"type": "text", "text": "what is <image>?"}]
    rows = read(
        tmp_path, lines({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}]})
    )
    assert said(rows)[0][0] == ("user", "[IMG]what is <image>?")


def test_an_image_without_a_place_is_put_first_and_in_a_conversation_that_is_told(tmp_path: Path) -> None:
    rows = read(tmp_path, conversation("Q", "A", image="a.jpg"))
    assert said(rows) == [[("user", "[IMG]Q"), ("assistant", "A")]]
    assert [f.kind for f in rows.faults] == ["image put first"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (conversation("<image> <image> Q", "A", image="a.jpg"), "placeholders"),
        (conversation("<image> Q", "A", images=["a.jpg", "b.jpg"]), "placeholders"),
        (conversation("<image> Q", "A", image=None), "placeholders"),
        (conversation("<image> Q", "A", image="https://x.org/a.jpg"), "image address"),
        (conversation("<image> Q", "A", image="../../etc/a.jpg"), "image outside"),
        (conversation("<image> Q", "A", image="a/../../b.jpg"), "image outside"),
        (conversation("<image> Q", "A", image=3), "malformed"),
        (conversation("<image> Q", "A", image="data:image/png;base64,###"), "image broken"),
    ],
)
def test_a_bad_image_is_told_and_its_row_is_left_out(tmp_path: Path, text: str, kind: str) -> None:
    rows = read(tmp_path, text)
    assert [f.kind for f in rows.faults] == [kind] and len(rows) == 0


def test_a_text_row_among_rows_with_images_is_as_it_should_be(tmp_path: Path) -> None:
    rows = read(tmp_path, conversation("<image>\nQ", "A", image="a.jpg") + conversation("Q", "A"))
    assert rows.format == "llava" and len(rows) == 2 and rows.faults == ()


def test_a_placeholder_in_a_text_format_is_told_and_kept(tmp_path: Path) -> None:
    rows = read(tmp_path, lines({"instruction": "what is <image>?", "output": "A"}))
    assert [f.kind for f in rows.faults] == ["placeholder without image"] and said(rows)[0][0][1] == "what is <image>?"
