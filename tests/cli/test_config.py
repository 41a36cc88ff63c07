"""The [tool.qlora-doctor] table: what it decides, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def table(doctor: Any) -> Any:
    """Writes the table into the pyproject.toml of the current folder."""

    def write(text: str) -> None:
        Path("pyproject.toml").write_text(f"[tool.qlora-doctor]\n{text}\n", encoding="utf-8")

    return write


def codes(run: Any) -> list[str]:
    return [o["code"] for o in run.json["outcomes"]]


def test_select_and_ignore_of_the_project_hold_where_the_command_line_says_nothing(
    doctor: Any, table: Any, find: Any
) -> None:
    find("error")
    table('select = ["TST"]')
    assert codes(doctor("check", "--offline", "--format", "json")) == ["TST001"]
    assert "QD101" in codes(doctor("check", "--offline", "--format", "json", "--select", "QD1"))
    table('ignore = ["always-found"]')
    assert "TST001" not in codes(doctor("check", "--offline", "--format", "json"))


def test_an_ignored_check_may_carry_a_reason_which_verbose_shows(doctor: Any, table: Any, find: Any) -> None:
    find("error")
    table('ignore = { TST001 = "we know" }')
    run = doctor("check", "--offline", "--verbose")
    assert "environment: error TST001" not in run.out
    assert "TST001  ignored by the project: we know" in run.out


def test_severity_and_fail_on_of_the_project_decide_the_exit_code(doctor: Any, table: Any, find: Any) -> None:
    find("info")
    table('select = ["TST"]\nseverity = { always-found = "error" }')
    run = doctor("check", "--offline", "--format", "json")
    assert (run.code, run.json["findings"][0]["severity"]) == (1, "error")
    table('select = ["TST"]\nfail-on = "info"')
    assert doctor("check", "--offline").code == 1
    assert doctor("check", "--offline", "--fail-on", "error").code == 0


def test_the_table_of_the_scripts_own_project_counts(doctor: Any, find: Any, tmp_path: Path) -> None:
    find("error")
    project = tmp_path / "project" / "scripts"
    project.mkdir(parents=True)
    (project.parent / "pyproject.toml").write_text('[tool.qlora-doctor]\nselect = ["QD101"]\n', encoding="utf-8")
    (project / "train.py").write_text("x = 1\n", encoding="utf-8")
    assert codes(doctor("check", project / "train.py", "--offline", "--format", "json")) == ["QD101"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('select = "QD1"', "tool.qlora-doctor.select: expected a list"),
        ("ignore = [1]", "tool.qlora-doctor.ignore: expected a list"),
        ("ignore = { QD101 = 3 }", "tool.qlora-doctor.ignore.QD101: expected the reason"),
        ('severity = { QD101 = "fatal" }', "tool.qlora-doctor.severity.QD101: expected one of error, warning, info"),
        ('severity = "error"', "tool.qlora-doctor.severity: expected a table"),
        ('fail-on = "never"', "tool.qlora-doctor.fail-on: expected one of"),
        ("selects = []", "tool.qlora-doctor.selects: there is no such key; the keys are select,"),
        ("select = [", "is not valid TOML"),
        ('ignore = ["QD998"]', "no check has the code or name 'QD998'"),
        ('severity = { QD998 = "info" }', "no check has the code or name 'QD998'"),
    ],
)
def test_a_wrong_table_is_refused_with_the_file_or_word_and_the_key(
    doctor: Any, table: Any, text: str, complaint: str
) -> None:
    table(text)
    run = doctor("check", "--offline")
    assert run.code == 2
    assert complaint in run.err
    assert "pyproject.toml" in run.err
    assert len(run.err.splitlines()) == 1


def test_a_broken_pyproject_that_does_not_speak_of_us_is_not_our_business(doctor: Any, find: Any) -> None:
    find("info")
    Path("pyproject.toml").write_text("[tool.other\n", encoding="utf-8")
    assert doctor("check", "--select", "TST001", "--offline").code == 0
