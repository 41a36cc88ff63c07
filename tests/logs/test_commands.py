"""`diagnose` and `explain` on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TRACE = 'Traceback (most recent call last):\n  File "t.py", line 1\nRuntimeError: "normal_kernel_cpu" not implemented for \'Char\'\n'


def doctor(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qlora_doctor", *words]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=120, check=False)


def test_a_pasted_traceback_is_explained_with_cause_and_fix() -> None:
    done = doctor("diagnose", "-", given=TRACE)
    assert done.returncode == 1
    assert "line 3: RuntimeError" in done.stdout
    assert "[missing_weights_reinitialised]" in done.stdout
    assert "fix: Load the checkpoint that fits the class" in done.stdout


def test_a_log_without_a_failure_gives_zero() -> None:
    done = doctor("diagnose", "-", given="Training finished.\n")
    assert (done.returncode, done.stdout) == (0, "No failure that is known was found in 1 lines.\n")


def test_an_unknown_failure_gives_its_lines_and_no_cause() -> None:
    done = doctor("diagnose", "-", given="Traceback (most recent call last):\nshop.StockError: sold out\n")
    assert done.returncode == 1
    assert "no cause is named" in done.stdout
    assert "line 2: shop.StockError: sold out" in done.stdout


def test_the_facts_of_a_file_decide(tmp_path: Path) -> None:
    facts = tmp_path / "facts.json"
    facts.write_text(
        json.dumps({"schema": 1, "gpus": [{"name": "NVIDIA GeForce RTX 5090", "capability": "12.0"}]}), encoding="utf-8"
    )
    text = "RuntimeError: CUDA error: no kernel image is available for execution on the device\n"
    done = doctor("diagnose", "-", "--facts", str(facts), "--format", "json", given=text)
    cause = json.loads(done.stdout)["diagnoses"][0]["causes"][0]
    assert (cause["id"], cause["confidence"]) == ("arch_sm120_torch_too_old", "sure")


def test_a_file_that_is_not_there_is_a_mistake_of_the_question(tmp_path: Path) -> None:
    done = doctor("diagnose", str(tmp_path / "absent.log"))
    assert done.returncode == 2
    assert "No such file" in done.stderr


def test_control_characters_of_a_log_do_not_reach_the_terminal() -> None:
    done = doctor("diagnose", "-", given="Torch not compiled with CUDA enabled \x07\x1b]0;title\x07\n")
    assert "\x07" not in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("text", ["normal_kernel_cpu", "RuntimeError: CUDA out of memory", "no_adapter_attached"])
def test_explain_finds_a_message_a_part_of_one_and_a_cause(text: str) -> None:
    done = doctor("explain", text)
    assert done.returncode == 0
    assert "fix: " in done.stdout


def test_explain_still_refuses_a_misspelt_code() -> None:
    assert doctor("explain", "QD999").returncode == 2
