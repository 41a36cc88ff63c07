"""`compare` as CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from qlora_doctor.report.csv import cell
from qlora_doctor.testing import facts
from tests.cli.conftest import Doctor


def test_compare_writes_one_row_a_difference(doctor: Doctor, tmp_path: Path) -> None:
    for name, version in (("a", "2.13.0"), ("b", "2.14.1")):
        Path(f"{name}.json").write_text(
            json.dumps(facts({"torch": version, "peft": "0.21.2"}).to_wire()), encoding="utf-8"
        )
    run = doctor("compare", "a.json", "b.json", "--output", "d.csv")
    assert run.code == 1
    assert "1 difference" in run.out
    rows = list(csv.reader(io.StringIO(Path("d.csv").read_bytes().decode())))
    assert rows[0] == ["what", "rank", "odd", "a", "b"]
    assert [row[3:] for row in rows[1:]] == [["2.13.0", "2.14.1"]]
    assert doctor("compare", "a.json", "b.json", "--format", "csv").out.splitlines()[0] == "what,rank,odd,a,b"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)"])
def test_no_cell_is_a_formula(text: str) -> None:
    assert cell(text) == "'" + text
    assert cell("torch 2") == "torch 2"
