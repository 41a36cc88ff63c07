"""`check --diff BASE`: only what stands on lines that changed since the base."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Doctor
from tests.report.test_outputs import SCRIPT, STACK

Facts = Callable[..., Path]


def git(*words: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false", *words],
        check=True,
        capture_output=True,
    )


@pytest.fixture
def repository(doctor: Doctor) -> Path:
    """The current folder with train.py in a first commit."""
    git("init", "-q", "-b", "main")
    Path("train.py").write_text(SCRIPT, encoding="utf-8")
    git("add", ".")
    git("commit", "-qm", "first")
    return Path("train.py")


def codes(doctor: Doctor, facts_file: Facts, *words: str) -> list[str]:
    run = doctor("check", "--facts", facts_file(STACK), "--format", "json", *words)
    assert run.code in (0, 1), run.err
    return run.codes


def test_an_unchanged_script_has_no_finding(doctor: Doctor, repository: Path, facts_file: Facts) -> None:
    run = doctor("check", "train.py", "--facts", facts_file(STACK), "--diff", "HEAD")
    assert run.code == 0
    assert run.out.startswith("nothing found")
    assert "left out by --diff HEAD: " in run.out


def test_only_the_call_that_was_changed_is_judged(doctor: Doctor, repository: Path, facts_file: Facts) -> None:
    every = codes(doctor, facts_file, "train.py")
    assert {"QD621", "QD102"} <= set(every)
    repository.write_text(SCRIPT.replace('output_dir="out"', 'output_dir="new"'), encoding="utf-8")
    found = codes(doctor, facts_file, "train.py", "--diff", "HEAD")
    assert "QD621" in found
    assert "QD102" not in found


def test_lines_that_only_moved_are_not_changed(doctor: Doctor, repository: Path, facts_file: Facts) -> None:
    repository.write_text("# one more line\n" + SCRIPT, encoding="utf-8")
    assert codes(doctor, facts_file, "train.py", "--diff", "HEAD") == []


def test_a_new_file_is_changed_as_a_whole(doctor: Doctor, repository: Path, facts_file: Facts) -> None:
    Path("new.py").write_text(SCRIPT, encoding="utf-8")
    found = codes(doctor, facts_file, "new.py", "--diff", "main")
    assert {"QD621", "QD102"} <= set(found)


def test_what_the_base_changed_since_is_not_ours(doctor: Doctor, repository: Path, facts_file: Facts) -> None:
    git("checkout", "-qb", "ours")
    git("checkout", "-q", "main")
    repository.write_text(SCRIPT.replace("fp16=True, bf16=True", "bf16=True"), encoding="utf-8")
    git("commit", "-qam", "theirs")
    git("checkout", "-q", "ours")
    assert codes(doctor, facts_file, "train.py", "--diff", "main") == []


def test_a_cell_of_a_notebook_counts_by_its_own_lines(doctor: Doctor, repository: Path, facts_file: Facts) -> None:
    def notebook(*cells: str) -> str:
        made = [
            {"cell_type": "code", "source": c.splitlines(keepends=True), "metadata": {}, "outputs": []} for c in cells
        ]
        return json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=1)

    head, args = SCRIPT[: SCRIPT.index("args =")], SCRIPT[SCRIPT.index("args =") :]
    Path("run.ipynb").write_text(notebook(head, args), encoding="utf-8")
    git("add", ".")
    git("commit", "-qm", "notebook")
    Path("run.ipynb").write_text(notebook("print(1)", head, args), encoding="utf-8")
    assert codes(doctor, facts_file, "run.ipynb", "--diff", "HEAD") == []
    Path("run.ipynb").write_text(notebook("print(1)", head, args.replace('"out"', '"new"')), encoding="utf-8")
    found = codes(doctor, facts_file, "run.ipynb", "--diff", "HEAD")
    assert "QD621" in found
    assert "QD102" not in found


@pytest.mark.parametrize("base", ["nowhere", "--output=x", "HEAD~9"])
def test_a_base_that_is_no_commit_is_told(doctor: Doctor, repository: Path, facts_file: Facts, base: str) -> None:
    run = doctor("check", "train.py", "--facts", facts_file(STACK), f"--diff={base}")
    assert run.code == 2
    assert f"--diff {base}: git knows no such commit here" in run.err
    assert not Path("x").exists()


def test_a_folder_that_is_no_repository_is_told(doctor: Doctor, facts_file: Facts) -> None:
    Path("train.py").write_text(SCRIPT, encoding="utf-8")
    run = doctor("check", "train.py", "--facts", facts_file(STACK), "--diff", "HEAD")
    assert run.code == 2
    assert "is in no git repository" in run.err
    assert "name the scripts" in doctor("check", "--diff", "HEAD").err


def test_a_repositorys_own_settings_run_nothing(doctor: Doctor, repository: Path, facts_file: Facts) -> None:
    for key in ("core.fsmonitor", "diff.external", "diff.x.textconv"):
        git("config", key, "touch pwned #")
    Path(".gitattributes").write_text("*.py diff=x\n", encoding="utf-8")
    repository.write_text(SCRIPT.replace('"out"', '"new"'), encoding="utf-8")
    assert "QD621" in codes(doctor, facts_file, "train.py", "--diff", "HEAD")
    assert not Path("pwned").exists()


def test_a_name_that_git_would_take_for_a_pattern_is_a_name(
    doctor: Doctor, repository: Path, facts_file: Facts
) -> None:
    Path("[t]rain*.py").write_text(SCRIPT, encoding="utf-8")
    git("add", ".")
    git("commit", "-qm", "odd name")
    repository.write_text("x = 1\n" * 9, encoding="utf-8")
    assert codes(doctor, facts_file, "[t]rain*.py", "--diff", "HEAD") == []
