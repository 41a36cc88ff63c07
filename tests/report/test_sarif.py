"""SARIF: valid against the official schema, with rule help and fixes that an editor can make.

sarif-2.1.0-rtm.5.json is the schema of the standard's 2.1.0 as the npm package @microsoft/jest-sarif 1.0.0-beta.0 (MIT)
ships it, unchanged.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from qlora_doctor.report.paper import Bar, Entry, Paper, Remedy, Replacement
from qlora_doctor.report.replacements import between
from qlora_doctor.report.sarif import NOWHERE, artifact, render, sarif
from qlora_doctor.source import Site
from tests.cli.conftest import Doctor
from tests.report.papers import hostile, paper

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((Path(__file__).parent / "sarif-2.1.0-rtm.5.json").read_text(encoding="utf-8"))


def assert_valid(log: Any) -> None:
    validator = jsonschema.Draft4Validator(SCHEMA)
    assert [f"{'/'.join(map(str, e.path))}: {e.message}" for e in validator.iter_errors(log)] == []


@pytest.mark.parametrize("made", [paper(), hostile(), Paper("check", "x", "nothing found", "ok")])
def test_every_report_is_valid_sarif(made: Paper) -> None:
    assert_valid(json.loads(render(made)))


def planted(doctor: Doctor, *more: str | Path) -> Any:
    for name in ("train.py", "facts.json"):
        shutil.copy(ROOT / "examples" / "planted" / name, name)
    run = doctor("check", "train.py", "--facts", "facts.json", "--format", "sarif", *more)
    assert run.code == 1
    return run.json


def test_the_planted_project_gives_valid_sarif_with_help_and_places(doctor: Doctor) -> None:
    log = planted(doctor)
    assert_valid(log)
    results, rules = log["runs"][0]["results"], log["runs"][0]["tool"]["driver"]["rules"]
    assert len(results) == 20
    for result in results:
        rule = rules[result["ruleIndex"]]
        assert rule["id"] == result["ruleId"]
        assert rule["help"]["markdown"].startswith(
            f"# {rule['id']} {rule['name']}\n\n{rule['shortDescription']['text'][:20]}"
        )
        assert result["locations"][0]["physicalLocation"]["artifactLocation"] == {
            "uri": "train.py",
            "uriBaseId": "%SRCROOT%",
        }


def applied(text: str, fix: Any) -> str:
    """What an editor makes of a SARIF fix."""
    lines = text.split("\n")
    starts = [sum(len(line) + 1 for line in lines[:n]) for n in range(len(lines) + 1)]
    (change,) = fix["artifactChanges"]
    for one in sorted(change["replacements"], key=lambda r: -r["deletedRegion"]["startLine"]):
        region = one["deletedRegion"]
        first = starts[region["startLine"] - 1] + region["startColumn"] - 1
        last = starts[region["endLine"] - 1] + region["endColumn"] - 1
        text = text[:first] + one["insertedContent"]["text"] + text[last:]
    return text


def test_a_sarif_fix_makes_the_edit_that_fix_makes(doctor: Doctor) -> None:
    results = planted(doctor)["runs"][0]["results"]
    source = Path("train.py").read_text(encoding="utf-8")
    by_code = {r["ruleId"]: r for r in results if "fixes" in r}
    (renamed,) = [r for r in results if r["ruleId"] == "QD121" and "evaluation_strategy" in r["message"]["text"]]
    after = applied(source, renamed["fixes"][0])
    assert after == source.replace('evaluation_strategy="epoch"', 'eval_strategy="epoch"')
    dropped = applied(source, by_code["QD102"]["fixes"][0])
    assert dropped == source.replace("        trust_remote_code=True,\n", "")
    for result in by_code.values():
        for fix in result["fixes"]:
            compile(applied(source, fix), "train.py", "exec")


def test_what_concerns_the_environment_has_a_place_and_says_so() -> None:
    result = next(r for r in sarif(paper())["runs"][0]["results"] if r["ruleId"] == "QD001")
    assert result["message"]["text"].startswith("environment: ")
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "train.py"
    alone = replace(paper(), entries=(paper().entries[1],))
    (result,) = sarif(alone)["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == NOWHERE


def test_a_cell_of_a_notebook_is_named_and_no_line_of_the_file_is_claimed() -> None:
    result = next(r for r in sarif(paper())["runs"][0]["results"] if r["ruleId"] == "QD101")
    assert result["locations"][0]["logicalLocations"] == [{"name": "cell 3", "kind": "element"}]
    assert result["message"]["text"].startswith("cell 3, line 2: ")
    assert result["locations"][0]["physicalLocation"]["region"] == {"startLine": 1}


@pytest.mark.parametrize(
    ("path", "folder", "uri"),
    [
        ("./a b/训练.py", "", "a%20b/%E8%AE%AD%E7%BB%83.py"),
        ("/repo/src/train.py", "/repo", "src/train.py"),
        ("/other/train.py", "/repo", "file:///other/train.py"),
        ("a#b?c%d.py", "", "a%23b%3Fc%25d.py"),
        ("javascript:alert(1).py", "", "javascript%3Aalert(1).py"),
    ],
)
def test_a_path_becomes_a_uri(path: str, folder: str, uri: str) -> None:
    assert artifact(path, folder)["uri"] == uri


def test_two_findings_of_one_check_in_one_file_keep_their_fingerprint_when_lines_move() -> None:
    moved = replace(paper().entries[0], site=Site("train.py", line=90, column=1), where="train.py:90:1")
    before, after = (
        sarif(replace(paper(), entries=(e,)))["runs"][0]["results"][0]["partialFingerprints"]
        for e in (paper().entries[0], moved)
    )
    assert before == after


def test_a_crashed_check_is_a_failed_invocation() -> None:
    run = sarif(replace(paper(), unsaid=(("QD401", "crashed", "ZeroDivisionError"),)))["runs"][0]
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    assert invocation["toolExecutionNotifications"][0]["level"] == "error"


@pytest.mark.parametrize(("verdict", "kind"), [("fits", "pass"), ("does not fit", "fail"), ("", "informational")])
def test_a_memory_plan_passes_or_fails(verdict: str, kind: str) -> None:
    made = Paper("plan", "m", "v", "error", bar=Bar("m", (("w", 1),), 1, 1, 1, "c", 1, verdict))
    log = sarif(made)
    assert_valid(log)
    assert [r["kind"] for r in log["runs"][0]["results"]] == [kind]


def test_no_secret_is_written() -> None:
    secret = "hf_" + "a" * 30
    entry = Entry(
        "QD001", "x", "error", f"token={secret}", remedies=(Remedy("t", "safe", f"export HF_TOKEN={secret}"),)
    )
    assert secret not in render(replace(paper(), entries=(entry,)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a\nb\nc\n", "a\nB\nc\n"),
        ("a\nb", "a\n"),
        ("", "x\n"),
        ("f(a=1, b=2)\n", "f(a=1)\n"),
        ("x\x0cy\u2028z\nold\n", "x\x0cy\u2028z\nnew\n"),
        ("一二三=1\n", "一二三=2\n"),
    ],
)
def test_replacements_turn_the_old_text_into_the_new(old: str, new: str) -> None:
    found = between("f", old, new)
    changes = [
        {
            "deletedRegion": dict(
                zip(("startLine", "startColumn", "endLine", "endColumn"), (*r.start, *r.end), strict=True)
            ),
            "insertedContent": {"text": r.text},
        }
        for r in found
    ]
    assert applied(old, {"artifactChanges": [{"replacements": changes}]}) == new


def test_a_replacement_is_no_longer_than_what_changes() -> None:
    assert between("f", "g(dtype=1, x=2)\n", "g(dtype=1, x=3)\n") == (Replacement("f", (1, 14), (1, 15), "3"),)


def test_a_message_holds_no_control_or_bidi_character() -> None:
    assert re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", render(hostile())) is None
    assert "\\u001b" not in render(hostile())
