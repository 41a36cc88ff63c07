"""Annotations of GitHub Actions: one workflow command a finding, whatever its words."""

from __future__ import annotations

from dataclasses import replace

from qlora_doctor.report.github import render
from qlora_doctor.report.paper import Entry
from qlora_doctor.source import Site
from tests.report.papers import hostile, paper


def test_a_finding_is_an_annotation_at_its_lines() -> None:
    first, environment, cell, verdict = render(paper()).split("\n")
    assert first == (
        "::error file=train.py,line=79,endLine=91,title=QD121 outdated-training-argument::evaluation_strategy= is gone; "
        "write eval_strategy=%0AFix: evaluation_strategy= becomes eval_strategy= (safe)"
    )
    assert environment == "::warning title=QD001 missing-package::accelerate is not installed"
    assert cell == "::notice file=run.ipynb,title=QD101 quantized-load-without-dtype::cell 3, line 2: no dtype"
    assert verdict == "::notice title=qlora-doctor check::train.py: 1 error, 1 warning, 1 note"


def test_a_finding_on_one_line_names_its_column() -> None:
    entry = Entry("QD101", "n", "warning", "text", site=Site("a.py", line=3, column=5, end_line=3))
    assert render(replace(paper(), entries=(entry,))).startswith("::warning file=a.py,line=3,col=5,title=QD101 n::")


def test_a_path_in_the_workspace_is_relative_to_it() -> None:
    entry = Entry("QD101", "n", "warning", "text", site=Site("/w/s/a.py", line=3))
    assert render(replace(paper(), entries=(entry,)), "/w").startswith("::warning file=s/a.py,line=3,")


def test_no_word_of_a_finding_starts_a_command_or_ends_a_property() -> None:
    entry = Entry("QD1", "a,line=1::b", "error", "one\n::stop-commands::x\r\n100%", site=Site("x,y:z.py", line=1))
    out = render(replace(paper(), entries=(entry,)))
    assert out.split("\n")[0] == (
        "::error file=x%2Cy%3Az.py,line=1,title=QD1 a%2Cline=1%3A%3Ab::one%0A::stop-commands::x\ufffd%0A100%25"
    )


def test_a_hostile_report_is_one_command_a_finding() -> None:
    assert len(render(hostile()).splitlines()) == 2
