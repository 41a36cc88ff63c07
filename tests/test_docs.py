"""The generated pages are those of today's checks, and the documents name only what exists."""

from __future__ import annotations

import re
from pathlib import Path

from qlora_doctor.cli import COMMANDS
from qlora_doctor.docs import pages, stale, with_reports, write
from qlora_doctor.registry import installed_checks

ROOT = Path(__file__).parents[1]


def test_the_pages_of_the_checks_are_not_stale() -> None:
    assert stale(ROOT / "docs", pages(installed_checks().checks)) == [], "run `make docs`"


def test_writing_the_pages_mends_what_is_stale_and_removes_what_is_gone(tmp_path: Path) -> None:
    wanted = pages(installed_checks().checks)
    write(tmp_path, wanted)
    (tmp_path / "checks" / "QD999.md").write_text("gone", encoding="utf-8")
    (tmp_path / "checks.md").write_text("old", encoding="utf-8")
    assert stale(tmp_path, wanted) == ["checks.md", "checks/QD999.md"]
    write(tmp_path, wanted)
    assert stale(tmp_path, wanted) == []


def test_every_check_has_a_page_that_says_more_than_its_title() -> None:
    thin = [c.code for c in installed_checks().checks if c.distribution == "qlora-doctor" and "\n\n" not in c.doc]
    assert thin == []


def test_the_readme_names_only_checks_and_commands_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    codes = {c.code for c in installed_checks().checks}
    assert set(re.findall(r"\bQD\d{3}\b", text)) - codes == set()
    assert set(re.findall(r"qlora-doctor ([a-z]+)\b", text)) - set(COMMANDS) == set()


def test_the_report_in_the_readme_is_what_the_doctor_prints() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "qlora-doctor check train.py --facts" in text
    assert with_reports(text, ROOT) == text, "run `make docs`"
