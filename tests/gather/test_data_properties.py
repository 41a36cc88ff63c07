"""Whatever a data file holds: reading never breaks, and every row is either read or named."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qlora_doctor.gather.data.markdown import questions_and_answers
from qlora_doctor.gather.data.reading import read_files
from qlora_doctor.gather.data.rows import Rows
from qlora_doctor.gather.data.survey import FATAL, survey

KEYS = (
    "instruction", "input", "output", "messages", "conversations", "from", "value", "role", "content", "prompt", "completion",
    "image", "images", "question", "answer", "answers", "caption", "text", "chosen", "rejected", "type", "history", "system",
    "label", "weight", "tool_calls", "url", "image_url",
)  # fmt: skip
WORDS = st.sampled_from(
    ("user", "assistant", "gpt", "human", "text", "image", "<image>", "a.png", "../b.png", "http://x/y", "", "问")
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
RECORDS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5) | VALUES


def read(data: bytes, name: str, **options: Any) -> Rows:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        return read_files([str(path)], **options)


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "d.tsv", "d.md"])
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")))
@settings(deadline=None, max_examples=60)
@example(data=b'instruction,output\n"')
@example(data=b"\xff\xfea")
@example(data=b'[{"text": NaN}]')
def test_no_bytes_break_the_reading(name: str, data: bytes) -> None:
    rows = read(data, name)
    assert len(rows) or rows.faults


@given(records=st.lists(RECORDS, min_size=1, max_size=6))
@settings(deadline=None, max_examples=200)
def test_every_line_of_jsonl_is_read_or_named(records: list[Any]) -> None:
    rows = read("\n".join(json.dumps(record) for record in records).encode(), "d.jsonl")
    named = {fault.row for fault in rows.faults if fault.kind in FATAL}
    if 0 not in named:
        assert sorted([row.number for row in rows] + sorted(named)) == list(range(1, len(records) + 1))
    survey(rows)


@given(
    records=st.lists(
        st.tuples(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30)), min_size=1, max_size=5
    )
)
@settings(deadline=None, max_examples=60)
def test_what_is_written_is_what_is_read_in_every_encoding(records: list[tuple[str, str]]) -> None:
    text = "".join(json.dumps({"prompt": q, "completion": a}, ensure_ascii=False) + "\n" for q, a in records)
    chinese = text + json.dumps({"prompt": "问" * 400, "completion": "答"}, ensure_ascii=False)
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "gb18030"):
        written = chinese if encoding == "gb18030" else text
        rows = read(written.encode(encoding), "d.jsonl")
        sound = {fault.row for fault in rows.faults if fault.kind == "malformed"}
        expected = [pair for number, pair in enumerate(records, 1) if number not in sound]
        assert [(row.messages[0].text, row.answer) for row in rows][: len(expected)] == expected


@given(st.text(alphabet="QA12:： \n*#-", max_size=400))
@settings(deadline=None, max_examples=100)
@example("-" * 5000 + "\n" + "#*" * 5000)
def test_no_markdown_loses_a_mark_unsaid(text: str) -> None:
    pairs, faults = questions_and_answers(text)
    assert len({line for line, _ in pairs}) == len(pairs)
    assert all(1 <= line <= text.count("\n") + 1 for line, _ in [*pairs, *faults])
