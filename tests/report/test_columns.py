"""Text in columns, with Chinese characters that take two."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_doctor.report.columns import cut, pad, table, width, wrap


def test_a_chinese_character_takes_two_columns() -> None:
    assert [width(t) for t in ("abc", "镜像", "用 hf", "")] == [3, 4, 5, 0]
    assert pad("镜像", 6) == "镜像  "


def test_a_table_with_chinese_cells_has_straight_columns() -> None:
    lines = table([["QD1", "镜像不通", "x"], ["QD22", "ok", "y"]])
    assert [width(line[: line.index(end)]) for line, end in zip(lines, "xy", strict=True)] == [16, 16]


def test_chinese_text_wraps_without_spaces_and_no_line_begins_with_a_full_stop() -> None:
    lines = wrap("模型没有给出数据类型，请写上数据类型。", 10)
    assert all(width(line) <= 12 for line in lines)
    assert not any(line.startswith(("，", "。")) for line in lines)


@given(st.text(alphabet="ab 镜像-\t", max_size=80), st.integers(4, 40))
def test_wrapping_keeps_every_character_and_the_width(text: str, columns: int) -> None:
    lines = wrap(text, columns)
    assert "".join("".join(lines).split()) == "".join(text.split())
    longest = max((width(p) for p in text.replace("镜", " ").replace("像", " ").split()), default=0)
    assert all(width(line) <= max(columns, longest) for line in lines)


@pytest.mark.parametrize(("columns", "shown"), [(None, "镜像abc"), (7, "镜像abc"), (6, "镜像a…"), (4, "镜…")])
def test_what_does_not_fit_is_cut_with_an_ellipsis(columns: int | None, shown: str) -> None:
    assert cut("镜像abc", columns) == shown
