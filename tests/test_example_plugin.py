"""The plug-in that the documents show is installed as a user would, and does all that they say of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[1] / "examples" / "plugin"
SCRIPT = """\
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B")
args = TrainingArguments(output_dir="out", save_strategy="epoch")
trainer = Trainer(model=model, args=args, train_dataset=[])
trainer.train()
"""
LOG = "step 812\nlabqueue: job 4711 evicted from gpu-07\nlabqueue: the lease is over\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, *offline, "--target", str(target), str(PLUGIN)], check=True, capture_output=True)
    return target


def doctor(site: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "qlora_doctor", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site), "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_it_is_listed_and_explained(site: Path, tmp_path: Path) -> None:
    assert "LAB001" in doctor(site, tmp_path, "list")
    assert "shared by forty people" in doctor(site, tmp_path, "explain", "LAB001")


def test_its_check_finds_the_line_and_its_fix_is_a_diff(site: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT, encoding="utf-8")
    arguments = ("train.py", "--select", "LAB", "--offline")
    assert "train.py:4:8: warning LAB001" in doctor(site, tmp_path, "check", *arguments)
    assert "+args = TrainingArguments(output_dir" in (plan := doctor(site, tmp_path, "fix", *arguments))
    assert "save_total_limit=2" in plan
    assert (tmp_path / "train.py").read_text(encoding="utf-8") == SCRIPT


def test_its_message_is_diagnosed_with_the_cause_that_the_log_confirms(site: Path, tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text(LOG, encoding="utf-8")
    told = doctor(site, tmp_path, "diagnose", "train.log")
    assert "[labqueue_lease_over]" in told and "Ask for a longer lease" in told


def test_its_own_tests_pass(site: Path, tmp_path: Path) -> None:
    (tmp_path / "test_lab.py").write_bytes((PLUGIN / "test_lab.py").read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_lab.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout
