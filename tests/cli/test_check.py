"""`check`: what it prints, where it exits, and that the same facts give the same report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schema/report.schema.json").read_text(encoding="utf-8"))
SELECT = ("--select", "TST001", "--offline")


@pytest.mark.parametrize(
    ("severity", "options", "code"),
    [
        ("error", (), 1),
        ("warning", (), 1),
        ("info", (), 0),
        ("warning", ("--fail-on", "error"), 0),
        ("info", ("--fail-on", "info"), 1),
        ("error", ("--strict",), 1),
    ],
)
def test_the_exit_code_says_whether_something_as_grave_as_fail_on_was_found(
    doctor: Any, find: Any, severity: str, options: tuple[str, ...], code: int
) -> None:
    find(severity)
    assert doctor("check", *SELECT, *options).code == code


def test_strict_exits_2_when_a_check_could_not_say(doctor: Any, facts_file: Any, plugin: Any) -> None:
    plugin(
        "from qlora_doctor.facts import Facts\nfrom qlora_doctor.registry import check\n"
        "@check('TST001', needs=['gpus'], since='1.0')\ndef of_gpus(facts: Facts):\n    'GPUs.'\n    yield from ()\n"
        "CHECKS = [of_gpus]\n"
    )
    from qlora_doctor.facts import Unknown

    saved = facts_file(gpus=Unknown("the driver hangs"))
    assert doctor("check", "--facts", saved, "--select", "TST001").code == 0
    strict = doctor("check", "--facts", saved, "--select", "TST001", "--strict")
    assert strict.code == 2
    assert "could not say: TST001: gpus: the driver hangs" in strict.out


def test_a_check_that_crashes_is_reported_with_its_distribution_and_the_others_run(doctor: Any, plugin: Any) -> None:
    plugin(
        "from qlora_doctor.facts import Facts\nfrom qlora_doctor.finding import Finding\n"
        "from qlora_doctor.registry import check\n"
        "@check('TST001', since='1.0')\ndef breaks(facts: Facts):\n    'Breaks.'\n    return [1 / 0]\n"
        "@check('TST002', since='1.0')\ndef works(facts: Facts):\n    'Works.'\n    yield Finding('here')\n"
        "CHECKS = [breaks, works]\n",
        "their-checks",
    )
    run = doctor("check", "--select", "TST", "--offline")
    assert run.code == 1
    assert "crashed: TST001: ZeroDivisionError: division by zero" in run.out
    assert "[their-checks]" in run.out
    assert "TST002" in run.out
    assert doctor("check", "--select", "TST", "--offline", "--strict").code == 2
    outcomes = doctor("check", "--select", "TST", "--offline", "--format", "json").json["outcomes"]
    assert [(o["code"], o["outcome"]) for o in outcomes] == [("TST001", "crashed"), ("TST002", "found")]
    assert "[their-checks]" in outcomes[0]["reason"]


def test_a_plug_in_that_does_not_import_is_a_crashed_outcome_that_names_it(doctor: Any, plugin: Any) -> None:
    plugin("import a_module_that_is_not_there\n", "half-installed")
    run = doctor("check", "--offline")
    assert "a_module_that_is_not_there" in run.out
    assert "[half-installed]" in run.out
    assert doctor("check", "--offline", "--strict").code == 2


def test_one_code_used_by_two_plug_ins_is_an_error_that_names_both(doctor: Any, find: Any, plugin: Any) -> None:
    find("info")
    plugin(
        "from qlora_doctor.facts import Facts\nfrom qlora_doctor.registry import check\n"
        "@check('TST001', since='1.0')\ndef same(facts: Facts):\n    'Same.'\n    yield from ()\nCHECKS = [same]\n",
        "other-plugin",
    )
    run = doctor("check", "--offline")
    assert run.code == 2
    assert run.err.startswith("error: the code TST001 is used twice")
    assert "test-plugin" in run.err
    assert "other-plugin" in run.err


def test_the_json_report_has_the_published_shape(doctor: Any, find: Any) -> None:
    find("warning")
    for options in ((), ("--verbose",)):
        report = doctor("check", "--offline", "--format", "json", *options).json
        jsonschema.validate(report, SCHEMA)
        assert ("facts" in report) == bool(options)
        assert "TST001" in [f["code"] for f in report["findings"]]


def test_every_kind_of_fix_is_in_the_published_shape() -> None:
    from qlora_doctor.fix import KINDS

    assert set(SCHEMA["$defs"]["fix"]["properties"]["kind"]["enum"]) == set(KINDS)


def test_the_text_report_says_verdict_finding_fix_and_the_next_command(doctor: Any, find: Any) -> None:
    find("warning")
    lines = doctor("check", *SELECT).out.splitlines()
    assert lines[0] == "1 warning in this environment (1 check judged)"
    assert lines[2:5] == [
        "environment: warning TST001 always-found",
        "    it is wrong; mend it",
        "    fix: install example>=1 (safe)",
    ]
    assert lines[-2].split()[:3] == ["next:", "qlora-doctor", "fix"]
    assert lines[-1].split() == ["qlora-doctor", "explain", "TST001"]


def test_where_nothing_is_found_the_report_is_one_line(doctor: Any, facts_file: Any) -> None:
    run = doctor("check", "--facts", facts_file({}), "--select", "QD101")
    assert (run.code, len(run.out.splitlines())) == (0, 1)
    assert run.out.startswith("nothing found in the environment in ")


def test_verbose_adds_the_evidence_the_outcomes_and_the_facts(doctor: Any, find: Any) -> None:
    find("info")
    run = doctor("check", *SELECT, "--verbose")
    assert "    why: test" in run.out
    assert "outcomes\n    TST001  found  always-found" in run.out


def test_colour_is_for_terminals_and_no_color_switches_it_off(
    doctor: Any, find: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    find("error")
    assert "\x1b" not in doctor("check", *SELECT).out
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[31;1m1 error\x1b[0m" in doctor("check", *SELECT).out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in doctor("check", *SELECT).out


def test_a_terminal_escape_in_a_message_is_not_sent_to_the_terminal(
    doctor: Any, find: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    find("error", "a package named \x1b]0;evil\x07")
    assert "\x1b" not in doctor("check", *SELECT).out
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b]" not in doctor("check", *SELECT).out


def test_ignore_leaves_a_check_out_by_code_by_name_and_in_a_list(doctor: Any, find: Any) -> None:
    find("error")
    for words in (("TST001",), ("always-found",), ("QD101,TST001",), ("QD101", "--ignore", "tst001")):
        report = doctor("check", "--offline", "--format", "json", "--ignore", *words).json
        assert "TST001" not in [o["code"] for o in report["outcomes"]]


def test_the_same_facts_give_the_same_bytes(doctor: Any, facts_file: Callable[..., Path], find: Any) -> None:
    find("error")
    saved = facts_file({"transformers": "5.23.0", "peft": "0.11.1"})
    for options in (("--verbose",), ("--format", "json", "--verbose")):
        assert doctor("check", "--facts", saved, *options).out == doctor("check", "--facts", saved, *options).out


def test_a_model_is_judged_as_the_load_that_load_quantized_would_make(doctor: Any, facts_file: Any) -> None:
    from qlora_doctor.facts import Gpu

    card = Gpu("Tesla T4", "7.5", 15 << 30)
    for version in ("5.23.0", "4.44.2"):
        saved = facts_file({"transformers": version, "bitsandbytes": "0.50.2", "accelerate": "1.15.0"}, gpus=(card,))
        report = doctor("check", "--facts", saved, "--model", "llava-hf/llava-1.5-7b-hf", "--format", "json").json
        assert [f["message"] for f in report["findings"] if f["code"].startswith("QD1")] == []
        judged = {o["code"]: o["outcome"] for o in report["outcomes"]}
        assert judged["QD101"] == "ok"


def test_a_terminal_that_knows_no_chinese_still_gets_the_report(process: Any, tmp_path: Path) -> None:
    (tmp_path / "训练.py").write_text("def broken(:\n", encoding="utf-8")
    run = process("check", "训练.py", "--offline", "--format", "json", PYTHONIOENCODING="ascii")
    assert run.code in (0, 1)
    assert "训练.py" in json.dumps(run.json, ensure_ascii=False)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are text there")
def test_a_file_name_that_is_not_utf_8_does_not_end_the_report(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xe8\xae.py"
    with open(name, "wb") as file:
        file.write(b"def broken(:\n")
    command = [sys.executable, "-m", "qlora_doctor", "check", name, "--offline", "--format", "json"]
    done = subprocess.run(command, check=False, capture_output=True, cwd=tmp_path)
    assert (done.returncode in (0, 1), done.stderr) == (True, b"")
    assert json.loads(done.stdout)["schema"] == 1
