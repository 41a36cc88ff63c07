"""What CI and editors take: the pre-commit hooks, the GitHub Action, the problem matcher."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Doctor
from tests.report.test_outputs import SCRIPT

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_a_hook_finds_the_fault_in_a_file_that_is_committed(doctor: Doctor, hook: dict[str, Any]) -> None:
    Path("train.py").write_text(SCRIPT, encoding="utf-8")
    Path("tidy.py").write_text("import os\nprint(os.sep)\n", encoding="utf-8")
    program, *words = shlex.split(hook["entry"])
    assert program == "qlora-doctor"
    found = doctor(*words, "train.py")
    assert found.code == 1
    assert "QD621" in found.out


def test_the_hook_without_an_environment_is_silent_on_a_tidy_file(doctor: Doctor) -> None:
    Path("tidy.py").write_text("import os\nprint(os.sep)\n", encoding="utf-8")
    hook = next(h for h in HOOKS if h["language"] == "python")
    assert doctor(*shlex.split(hook["entry"])[1:], "tidy.py").code == 0


def test_the_matcher_reads_the_report_of_the_terminal(doctor: Doctor) -> None:
    for name in ("train.py", "facts.json"):
        shutil.copy(ROOT / "examples" / "planted" / name, name)
    out = doctor("check", "train.py", "--facts", "facts.json").out.splitlines()
    (matcher,) = json.loads((ROOT / ".github" / "problem-matcher.json").read_text(encoding="utf-8"))["problemMatcher"]
    head, message = matcher["pattern"]
    found = []
    for line, following in pairwise(out):
        match = re.match(head["regexp"], line)
        if match:
            words = re.match(message["regexp"], following)
            assert words is not None
            found.append((match[head["file"]], match[head["line"]], match[head["severity"]], match[head["code"]]))
            assert len(words[message["message"]]) > 20
    assert ("train.py", "79", "error", "QD121") in found
    assert len(found) == sum(bool(re.match(r"train\.py:\d+:\d+: (error|warning) ", line)) for line in out)


def test_no_input_of_the_action_is_part_of_a_command() -> None:
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")


def run_action(folder: Path, **inputs: str) -> tuple[int, str, dict[str, str]]:
    """The action's check, with its inputs as GitHub hands them over."""
    step = next(s for s in ACTION["runs"]["steps"] if s.get("id") == "check")
    temp = folder / "runner"
    (temp / "qlora-doctor" / "bin").mkdir(parents=True, exist_ok=True)
    program = temp / "qlora-doctor" / "bin" / "qlora-doctor"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qlora_doctor "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    given = {name: str(spec.get("default", "")) for name, spec in ACTION["inputs"].items()} | inputs
    environ = {
        name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: given[m[1]], value)
        for name, value in step["env"].items()
    }
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        check=True,
        capture_output=True,
        text=True,
        cwd=folder,
        env={
            **os.environ,
            **environ,
            "RUNNER_TEMP": str(temp),
            "GITHUB_OUTPUT": str(folder / "outputs"),
            "GITHUB_STEP_SUMMARY": str(folder / "summary"),
            "XDG_CACHE_HOME": str(folder / "cache"),
        },
    )
    outputs = dict(line.split("=", 1) for line in (folder / "outputs").read_text(encoding="utf-8").splitlines())
    return int(outputs["exit-code"]), done.stdout, outputs


pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")


def test_the_action_annotates_writes_sarif_and_a_summary(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT, encoding="utf-8")
    code, out, outputs = run_action(tmp_path, paths="train.py")
    assert code == 1
    assert "::error file=train.py,line=5,col=8,title=QD621 fp16-and-bf16-together::" in out
    assert json.loads(Path(outputs["sarif-file"]).read_text(encoding="utf-8"))["version"] == "2.1.0"
    assert (tmp_path / "summary").read_text(encoding="utf-8").startswith("## ❌ qlora-doctor check: train.py")
    assert not re.search(r"^::error title=QD0", out, re.MULTILINE)


def test_the_action_passes_where_nothing_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "tidy.py").write_text("import os\nprint(os.sep)\n", encoding="utf-8")
    assert run_action(tmp_path, paths="tidy.py")[0] == 0


def test_hostile_inputs_of_the_action_are_words(tmp_path: Path) -> None:
    name = "a b; touch pwned $(touch pwned) `touch pwned`.py"
    (tmp_path / name).write_text(SCRIPT, encoding="utf-8")
    assert run_action(tmp_path, paths=f"{name}\n--apply\n", select="QD1,QD6; touch pwned")[0] == 2
    assert run_action(tmp_path, paths=name)[0] == 1
    assert not (tmp_path / "pwned").exists()
