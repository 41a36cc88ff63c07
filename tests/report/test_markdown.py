"""Markdown for a public issue: it fits, it says nothing of whose machine it is, and its words are words."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from qlora_doctor import i18n
from qlora_doctor.report.markdown import render
from qlora_doctor.report.paper import Entry, Paper, Remedy, Section
from tests.report.papers import hostile, paper


def test_the_report_has_the_findings_the_memory_the_curve_and_the_facts() -> None:
    out = render(paper())
    for words in (
        "### ❌ QD121 outdated-training-argument at `train.py:79:21`",
        "```sh\n  eval_strategy='epoch'\n  ```",
        "| quantised weights | 5.00 GiB |",
        "### Training loss (`out/train_log.jsonl`)",
        "| torch | 2.13.0 |",
        "```diff\n--- a/train.py",
        "- QD401 unknown: driver: could not be read",
    ):
        assert words in out


def test_it_fits_an_issue_however_much_was_found() -> None:
    entry = replace(paper().entries[0], text="模型" * 2000)
    out = render(replace(paper(), entries=(entry,) * 500))
    assert len(out) < 65_536
    assert len(out.encode()) < 65_536
    assert re.search(r"\*\d+ more parts did not fit here", out)


def test_one_part_that_is_too_long_does_not_hide_the_others() -> None:
    long = Section("Log", ("x" * 100_000,))
    out = render(replace(paper(), sections=(long, *paper().sections)))
    assert "| torch | 2.13.0 |" in out
    assert "*1 more parts did not fit here.*" in out


@pytest.mark.parametrize(
    "secret",
    [
        "hf_" + "A1b2" * 8,
        "https://joe:hunter22@example.com/x",
        "/home/wangwei/data/x.json",
        "C:\\Users\\wangwei\\x",
        "a node at 10.2.3.4",
    ],
)
def test_what_tells_whose_machine_it_is_is_left_out(secret: str) -> None:
    entry = Entry(
        "QD1",
        "n",
        "error",
        f"seen in {secret} there",
        secret,
        evidence=(("path", secret),),
        remedies=(Remedy(secret, "safe", secret),),
    )
    made = replace(
        paper(),
        about=secret,
        entries=(entry,),
        sections=(Section("s", rows=(("a", "b"), ("c", secret)), kind="table"),),
    )
    out = render(made).replace("\\", "")
    for word in ("A1b2A1b2", "hunter22", "wangwei", "10.2.3.4"):
        assert word not in out


def test_a_version_of_four_numbers_is_no_address() -> None:
    assert "9.1.0.70" in render(paper())


def test_words_are_no_markup_no_mention_and_no_link() -> None:
    text = "<b>x</b> @octocat #12 [a](http://b.example) *c* `d` | e & f"
    out = render(Paper("check", text, text, "error", entries=(Entry("QD1", "n", "error", text),)))
    assert "<b>" not in out
    assert not re.search(r"(?<![\\\u200b])@octocat", out)
    assert "#12" not in out
    assert not re.search(r"(?<!\\)\]\(", out)
    assert "http://" not in out
    assert "\\*c\\*" in out


def test_a_fence_is_longer_than_the_backticks_in_it() -> None:
    made = replace(paper(), sections=(Section("Commands", ("echo ````",), kind="commands"),))
    assert "`````sh\necho ````\n`````" in render(made)


def test_hostile_text_leaves_every_table_row_whole() -> None:
    rows = [line for line in render(hostile()).split("\n") if line.startswith("| ")]
    assert rows != []
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 3
        assert not re.search(r"(?<!\\)<", row)


def test_the_markdown_is_in_the_readers_language_and_its_evidence_is_not() -> None:
    i18n.use("zh_CN")
    try:
        text = render(
            Paper(
                command="check",
                about="this environment",
                verdict="not installed",
                tone="error",
                entries=(
                    Entry(
                        "QD001",
                        "a-name",
                        "error",
                        "check the network",
                        evidence=(("state", "not installed"),),
                        remedies=(Remedy("check the network", "safe", "pip install a"),),
                    ),
                ),
            )
        )
    finally:
        i18n.use("en")
    assert "**未安装**" in text and "修复（安全）：请检查网络" in text and "pip install a" in text
    assert "| state | not installed |" in text and "已去除密钥、用户名、主机名和地址" in text
