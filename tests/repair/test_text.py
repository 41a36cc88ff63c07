"""Byte ranges: what an edit touches, and what it leaves as it lies on disk."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_doctor.errors import RepairError
from qlora_doctor.fix import Edit
from qlora_doctor.repair.notebook import cell_source, with_cell_source
from qlora_doctor.repair.text import Encoding, apply_edits, clash, decode, edits_between, without_magics

LINES = st.lists(st.text(alphabet="ab é模\t", max_size=6), max_size=6)
ENDS = st.sampled_from(["\n", "\r\n"])


@given(LINES, LINES, ENDS, st.sampled_from(["utf-8", "gbk"]), st.booleans())
def test_edits_turn_the_old_bytes_into_the_new(old: list[str], new: list[str], end: str, name: str, bom: bool) -> None:
    encoding = Encoding(name, b"\xef\xbb\xbf" if bom and name == "utf-8" else b"")
    before, after = end.join(old), end.join(new)
    data = encoding.bom + encoding.encode(before)
    changed = apply_edits(data, edits_between(before, after, encoding), encoding)
    assert changed == encoding.bom + encoding.encode(after)


def test_an_edit_touches_only_the_characters_that_change() -> None:
    old = "# 模型\nf(a, torch_dtype=x)  # 注\n"
    (edit,) = edits_between(old, old.replace("torch_dtype", "dtype"), Encoding())
    assert (edit.text, old.encode()[edit.start : edit.end]) == ("", b"torch_")


@pytest.mark.parametrize(
    ("data", "name", "bom"),
    [
        (b"\xef\xbb\xbfx = 1\r\n", "utf-8", b"\xef\xbb\xbf"),
        ("# -*- coding: gbk -*-\ns = '模'\n".encode("gbk"), "gbk", b""),
        (b"x = 1\n", "utf-8", b""),
    ],
)
def test_a_file_is_read_in_its_own_encoding(data: bytes, name: str, bom: bytes) -> None:
    text, encoding = decode(data)
    assert (encoding.name, encoding.bom) == (name, bom)
    assert bom + text.encode(name) == data


def test_a_file_that_is_not_text_is_refused() -> None:
    with pytest.raises(RepairError, match="cannot be read as utf-8"):
        decode(b"x = '\xff\xfe'\n")


def test_overlapping_edits_are_refused() -> None:
    edits = (Edit(0, 4, "x"), Edit(2, 6, "y"))
    assert clash(edits[:1], edits[1:])
    assert clash((Edit(0, 2, "a"),), (Edit(0, 2, "b"),))
    assert not clash((Edit(0, 2, ""),), (Edit(2, 3, ""),))
    assert not clash((Edit(2, 2, "a"),), (Edit(2, 2, "b"),))
    with pytest.raises(RepairError, match="overlaps"):
        apply_edits(b"abcdefgh", edits, Encoding())


def test_a_magic_becomes_python_of_the_same_length() -> None:
    cell = "!pip install 模型 \\\n   peft\n%matplotlib inline\nif x:\n    !ls\nfiles = !ls\nmodel?\n"
    blank = without_magics(cell)
    assert (len(blank), blank.count("\n")) == (len(cell), cell.count("\n"))
    compile(blank, "cell", "exec")
    assert without_magics("y = (a\n % b)\n") == "y = (a\n % b)\n"


def notebook(source: object, **more: object) -> bytes:
    cells = [{"cell_type": "code", "source": source, "outputs": [{"text": "模 <3"}], "metadata": {"x": 1.50}}]
    return json.dumps({"cells": cells, "nbformat": 4, **more}, indent=1, ensure_ascii=False).encode()


@given(
    st.lists(st.text(alphabet='ab"\\模 ', max_size=5), max_size=5),
    st.lists(st.text(alphabet='ab"\\模 ', max_size=5), min_size=1, max_size=5),
    st.booleans(),
)
def test_a_cell_gets_a_new_source_and_the_rest_of_the_notebook_stays(
    old: list[str], new: list[str], as_list: bool
) -> None:
    before, after = "\n".join(["x = 0", *old]), "\n".join(new)
    data = notebook(before.splitlines(keepends=True) if as_list else before)
    changed = with_cell_source(data, 0, after)
    assert cell_source(changed, 0) == after
    a, b = json.loads(data), json.loads(changed)
    a["cells"][0]["source"] = b["cells"][0]["source"] = None
    assert a == b


def test_an_edit_in_a_cell_changes_its_own_line_of_json_only() -> None:
    data = notebook(["import torch\n", 'm = f("\\u6a21", a=1)\n', "print(m)"], metadata={"k": "é"})
    changed = with_cell_source(data, 0, 'import torch\nm = f("\\u6a21", a=2)\nprint(m)')
    before, after = data.splitlines(), changed.splitlines()
    assert [a for a, b in zip(before, after, strict=True) if a != b] == [before[6]]


def test_a_notebook_without_that_cell_is_refused() -> None:
    with pytest.raises(RepairError, match="no notebook with a cell 7"):
        with_cell_source(notebook("x"), 7, "y")
    with pytest.raises(RepairError, match="not JSON"):
        cell_source(b'{"cells": [', 0)
