"""`fix --from-log`: what a log says is planned, applied and undone like what a check says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """from transformers import Trainer, TrainingArguments

args = TrainingArguments(output_dir="out", gradient_checkpointing=True)
Trainer(model=model, args=args).train()
"""
NO_GRAD = (
    '  File "torch/utils/checkpoint.py", line 1\n'
    "RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn\n"
)
QUIET = ("--offline", "--select", "QD102")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / ".git").mkdir()
    (tmp_path / "train.py").write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "train.log").write_text(NO_GRAD, encoding="utf-8")
    return tmp_path


def doctor(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qlora_doctor", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def facts(folder: Path, **versions: str) -> str:
    rows = [{"name": name, "version": version} for name, version in versions.items()]
    path = folder / "facts.json"
    path.write_text(json.dumps({"schema": 1, "packages": {"distributions": rows}}), encoding="utf-8")
    return str(path)


def plan(folder: Path, log: str, **versions: str) -> dict[str, object]:
    (folder / "other.log").write_text(log, encoding="utf-8")
    words = ("--facts", facts(folder, **versions), "--unsafe", "--format", "json", *QUIET)
    found: dict[str, object] = json.loads(doctor(folder, "fix", "--from-log", "other.log", *words).stdout)
    return found


def test_the_fix_of_a_diagnosis_is_applied_to_the_script_and_undone(project: Path) -> None:
    done = doctor(project, "fix", "train.py", "--from-log", "train.log", "--unsafe", "--apply", *QUIET)
    assert (done.returncode, "remains: nothing" in done.stdout) == (0, True)
    assert 'gradient_checkpointing_kwargs={"use_reentrant": False}' in (project / "train.py").read_text("utf-8")
    assert doctor(project, "undo").returncode == 0
    assert (project / "train.py").read_text("utf-8") == SCRIPT


def test_a_dry_run_changes_nothing_and_says_that_the_fix_ends_the_diagnosis(project: Path) -> None:
    done = doctor(project, "fix", "train.py", "--from-log", "train.log", "--unsafe", *QUIET)
    assert (done.returncode, "removes error LOG001 no-grad-fn (train.py:3:8)" in done.stdout) == (1, True)
    assert (project / "train.py").read_text("utf-8") == SCRIPT


def test_a_package_fix_of_a_diagnosis_is_proved_on_the_simulated_packages(tmp_path: Path) -> None:
    found = plan(tmp_path, "No module named 'triton.ops'\n", torch="2.6.0", bitsandbytes="0.44.0")
    assert "bitsandbytes>=0.45.1" in json.dumps(found["steps"])
    assert found["remains"] == []


def test_a_fix_without_a_bound_asks_for_more_than_what_is_installed(tmp_path: Path) -> None:
    log = "AttributeError: 'Linear4bit' object has no attribute 'compute_dtype'\n"
    found = plan(tmp_path, log, torch="2.6.0", bitsandbytes="0.50.2", peft="0.6.0")
    assert "peft>0.6.0" in json.dumps(found["steps"])
    assert found["remains"] == []


def test_a_diagnosis_whose_fix_is_there_already_asks_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "old.log").write_text("No module named 'triton.ops'\n", encoding="utf-8")
    words = ("--facts", facts(tmp_path, torch="2.6.0", bitsandbytes="0.50.2"), *QUIET)
    done = doctor(tmp_path, "fix", "--from-log", "old.log", *words)
    assert (done.returncode, "Nothing to do" in done.stderr) == (0, True)


def test_the_packages_of_an_interpreter_that_did_not_write_the_log_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text("No module named 'triton.ops'\n", encoding="utf-8")
    plain = subprocess.run([sys.executable, "-c", "import importlib.util as u; print(u.find_spec('torch'))"], capture_output=True, text=True, check=True)  # fmt: skip
    if plain.stdout.strip() != "None":
        pytest.skip("this interpreter holds the stack")
    done = doctor(tmp_path, "fix", "--from-log", "x.log", "--apply", "--yes", "--unsafe", *QUIET)
    assert (done.returncode, "are left alone" in done.stderr) == (1, True)


def test_a_log_that_is_not_there_and_one_without_a_failure_are_said_to_be_so(project: Path) -> None:
    absent = doctor(project, "fix", "--from-log", "absent.log", *QUIET)
    assert (absent.returncode, "--from-log absent.log: No such file" in absent.stderr) == (2, True)
    (project / "fine.log").write_text("Training finished.\n", encoding="utf-8")
    fine = doctor(project, "fix", "--from-log", "fine.log", *QUIET)
    assert (fine.returncode, "no failure that is known" in fine.stderr) == (0, True)
