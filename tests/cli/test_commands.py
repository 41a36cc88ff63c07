"""`list`, `explain`, `facts`, help, and a third party's plug-in installed by pip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.cli import COMMANDS


def test_list_names_every_check_and_says_which_can_propose_a_fix(doctor: Any, find: Any) -> None:
    find("error")
    rows = {r["code"]: r for r in doctor("list", "--format", "json").json}
    assert rows["TST001"]["name"] == "always-found"
    assert rows["TST001"]["can_fix"] is True
    assert rows["TST001"]["distribution"] == "test-plugin"
    assert rows["QD101"]["judges"] == "load"
    line = next(line for line in doctor("list").out.splitlines() if line.startswith("TST001"))
    assert line.split()[:4] == ["TST001", "always-found", "facts", "fix"]


def test_a_check_without_a_fix_is_listed_without_one(doctor: Any, plugin: Any) -> None:
    plugin(
        "from qlora_doctor.facts import Facts\nfrom qlora_doctor.finding import Finding\n"
        "from qlora_doctor.fix import Advice\nfrom qlora_doctor.registry import check\n"
        "@check('TST001', since='1.0')\ndef only_words(facts: Facts):\n    'Words.'\n"
        "    yield Finding('x', fixes=(Advice('read'),))\nCHECKS = [only_words]\n"
    )
    rows = {r["code"]: r for r in doctor("list", "--format", "json").json}
    assert rows["TST001"]["can_fix"] is False


@pytest.mark.parametrize("word", ["QD101", "qd101", "quantized-load-without-dtype"])
def test_explain_shows_the_page_by_code_or_name(doctor: Any, word: str) -> None:
    from qlora_doctor.registry import installed_checks

    run = doctor("explain", word)
    assert run.code == 0
    assert run.out.startswith("QD101 quantized-load-without-dtype\n")
    assert installed_checks().find("QD101").doc in run.out


def test_explain_of_an_unknown_code_names_the_nearest(doctor: Any) -> None:
    run = doctor("explain", "quantised-load-without-dtype")
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("error: no check has the code or name 'quantised-load-without-dtype'; did you mean ")
    assert "quantized-load-without-dtype" in run.err


def test_facts_are_printed_as_json_that_can_be_read_back(doctor: Any) -> None:
    from qlora_doctor.facts import Facts

    data = doctor("facts", "--offline").json
    facts = Facts.from_wire(data)
    assert facts.interpreter.version == ".".join(map(str, sys.version_info[:3]))
    assert "script" not in data


def test_saved_facts_give_the_findings_that_the_live_run_gives(doctor: Any, environment: Any, tmp_path: Path) -> None:
    environment.install("transformers", "5.23.0")
    environment.install("bitsandbytes", "0.42.0", "scipy")
    saved = tmp_path / "facts.json"
    assert doctor("facts", "--python", environment.python, "--offline", "--save", saved).code == 0
    live = doctor("check", "--python", environment.python, "--offline", "--format", "json")
    replayed = doctor("check", "--facts", saved, "--format", "json")
    assert live.json["findings"] == replayed.json["findings"] != []


def test_facts_are_saved_whole_or_not_at_all(doctor: Any, tmp_path: Path) -> None:
    run = doctor("facts", "--offline", "--save", tmp_path / "no" / "such" / "folder.json")
    assert run.code == 2
    assert run.err.startswith("error: ")
    assert "cannot be written" in run.err
    target = tmp_path / "facts.json"
    target.write_text("old", encoding="utf-8")
    doctor("facts", "--offline", "--save", target)
    assert json.loads(target.read_text(encoding="utf-8"))["schema"] == 1
    (tmp_path / "taken").mkdir()
    assert "cannot be written" in doctor("facts", "--offline", "--save", tmp_path / "taken").err
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["facts.json"]


def test_a_token_in_the_environment_is_never_printed(process: Any) -> None:
    run = process("facts", "--offline", HF_TOKEN="hf_SECRETsecretSECRET", HTTPS_PROXY="http://me:hidden@proxy:1")
    assert run.code == 0
    assert "SECRETsecretSECRET" not in run.out
    assert "hidden" not in run.out


def test_help_names_every_command(doctor: Any) -> None:
    run = doctor("--help")
    assert run.code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in run.out


def test_a_misspelt_command_or_option_is_answered_with_the_nearest(doctor: Any) -> None:
    run = doctor("chekc")
    assert (run.code, "did you mean 'check'?" in run.err) == (2, True)
    run = doctor("check", "--ofline")
    assert (run.code, "--offline" in run.err) == (2, True)


def test_a_path_in_the_place_of_a_command_is_answered_with_the_command(doctor: Any) -> None:
    Path("train.py").write_text("", encoding="utf-8")
    assert "qlora-doctor check train.py" in doctor("train.py").err


def test_a_reader_that_leaves_early_leaves_no_traceback(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "qlora_doctor", "list"],
            check=False,
            stdout=out,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
        )
    assert done.stderr == b""


def test_ctrl_c_ends_with_130_and_one_line(doctor: Any, plugin: Any) -> None:
    plugin("raise KeyboardInterrupt\n")
    run = doctor("list")
    assert (run.code, run.err.strip()) == (130, "stopped")


def test_a_failure_of_our_own_exits_2_and_not_1(doctor: Any, plugin: Any) -> None:
    plugin(
        "import dataclasses\nfrom qlora_doctor.facts import Facts\nfrom qlora_doctor.registry import check\n"
        "@check('TST001', since='1.0')\ndef fine(facts: Facts):\n    'Fine.'\n    yield from ()\n"
        "CHECKS = [dataclasses.replace(fine, doc=None)]\n"
    )
    run = doctor("explain", "TST001")
    assert run.code in (0, 2)
    run = doctor("list")
    assert run.code == 2
    assert run.err.splitlines()[-1].startswith("error: qlora-doctor ")


def test_a_plug_in_installed_by_pip_is_found_listed_run_and_explained(process: Any, tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "plugins" / "example"
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, *offline, "--target", str(target), str(source)], check=True, capture_output=True)
    environ = {"PYTHONPATH": str(target)}
    assert "EXA001" in process("list", **environ).out
    assert "Python that the example house does not use" in process("explain", "EXA001", **environ).out
    run = process("check", "--offline", "--format", "json", **environ)
    assert "EXA001" in run.codes
    assert "QD101" in [o["code"] for o in run.json["outcomes"]]


def test_the_shell_completion_offers_codes(process: Any) -> None:
    run = process(
        "explain", _QLORA_DOCTOR_COMPLETE="bash_complete", COMP_WORDS="qlora-doctor explain QD10", COMP_CWORD="2"
    )
    assert "plain,QD101" in run.out
