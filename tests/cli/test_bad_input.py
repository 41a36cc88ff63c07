"""Bad input: each message is one line, says what is wrong and what to do, and the exit code is 2."""

from __future__ import annotations

import importlib.util
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def refused(run: Any) -> str:
    """The one line of a refusal."""
    assert run.code == 2
    assert run.out == ""
    assert len(run.err.splitlines()) == 1, run.err
    assert run.err.startswith("error: ")
    return str(run.err)


def test_an_unknown_code_is_refused_with_the_nearest(doctor: Any) -> None:
    assert "did you mean QD1" in refused(doctor("check", "--select", "QD10l", "--offline"))


def test_a_selection_that_leaves_nothing_is_refused(doctor: Any) -> None:
    assert "no check is left" in refused(doctor("check", "--select", "QD101", "--ignore", "QD101", "--offline"))


def test_a_path_that_does_not_exist_is_refused_by_name(doctor: Any) -> None:
    assert "nothing_here.py" in refused(doctor("check", "nothing_here.py", "--offline"))


def test_a_folder_without_anything_to_read_is_refused_by_name(doctor: Any, tmp_path: Path) -> None:
    folder = tmp_path / "empty-folder"
    folder.mkdir()
    (folder / "readme.txt").write_text("hello", encoding="utf-8")
    assert "empty-folder" in refused(doctor("check", folder, "--offline"))


def test_two_environments_at_once_are_refused(doctor: Any, facts_file: Any) -> None:
    assert "one of them" in refused(doctor("check", "--facts", facts_file({}), "--python", sys.executable))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"schema": 99}', "update it"),
        ('{"schema": 1, "packages": {"distributions": [{"name": "torch"', "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "deep"),
        ('{"schema": 1, "gpus": [{"name": NaN}]}', "NaN"),
        ('{"schema": 1, "gpus": [{"name": ["RTX"]}]}', "gpus[0].name"),
        ('{"schema": 1, "__class__": "os.system"}', "unknown key '__class__'"),
        ("[]", "expected an object"),
        ('{"findings": []}', "schema"),
    ],
    ids=["newer", "truncated", "empty", "deep", "nan", "wrong type", "unknown key", "list", "report, not facts"],
)
def test_a_facts_file_that_holds_no_facts_is_refused_with_the_place(
    doctor: Any, tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "saved.json"
    path.write_text(text, encoding="utf-8")
    error = refused(doctor("check", "--facts", path))
    assert complaint in error
    assert "saved.json" in error


def test_a_folder_or_a_missing_file_in_the_place_of_facts_is_refused(doctor: Any, tmp_path: Path) -> None:
    assert "facts --save" in refused(doctor("check", "--facts", tmp_path))
    assert "facts --save" in refused(doctor("check", "--facts", tmp_path / "none.json"))


def executable(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_an_interpreter_that_does_not_exist_is_refused_with_what_to_give(doctor: Any, tmp_path: Path) -> None:
    assert "Give the path of a Python" in refused(doctor("check", "--python", tmp_path / "python9", "--offline"))


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_an_interpreter_that_prints_noise_around_its_facts_is_understood(doctor: Any, tmp_path: Path) -> None:
    noisy = executable(
        tmp_path / "noisy", f'#!/bin/sh\necho "{{}} welcome"; echo oops >&2\n"{sys.executable}" "$@"\necho bye\n'
    )
    run = doctor("facts", "--python", noisy, "--offline")
    assert (run.code, run.json["interpreter"]["version"]) == (0, ".".join(map(str, sys.version_info[:3])))


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_a_program_that_is_no_python_is_refused(doctor: Any, tmp_path: Path) -> None:
    other = executable(tmp_path / "other", "#!/bin/sh\necho hello\n")
    assert "gave no facts" in refused(doctor("check", "--python", other, "--offline"))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_an_interpreter_that_hangs_is_given_up_after_ten_seconds(doctor: Any, tmp_path: Path) -> None:
    hanging = executable(tmp_path / "hanging", "#!/bin/sh\nsleep 600\n")
    assert "within 10 s" in refused(doctor("check", "--python", hanging, "--offline"))


def test_broken_metadata_does_not_stop_the_report(doctor: Any, environment: Any) -> None:
    (environment.install("alpha", "1.0") / "METADATA").unlink()
    (environment.install("beta", "1.0") / "METADATA").write_bytes(b"\xff\xfe\x00Name\x00")
    (environment.install("gamma", "not a version") / "METADATA").write_text("Name: gamma\nVersion: ?\n")
    (environment.site / "delta-1.0.dist-info").write_text("a file where a folder should be")
    environment.install("transformers", "5.23.0")
    report = doctor("check", "--python", environment.python, "--offline", "--format", "json")
    assert report.code in (0, 1)
    assert "crashed" not in [o["outcome"] for o in report.json["outcomes"]]
    text = doctor("facts", "--python", environment.python, "--offline").json
    assert "transformers" in [d["name"] for d in text["packages"]["distributions"]]


def test_five_thousand_distributions_are_read(doctor: Any, environment: Any) -> None:
    for number in range(5000):
        environment.install(f"package-{number}", "1.0", f"package-{number + 1}>=1")
    report = doctor("check", "--python", environment.python, "--offline", "--format", "json", "--verbose")
    assert len(report.json["facts"]["packages"]["distributions"]) == 5000
    assert "package-5000" in report.out
    assert "crashed" not in [o["outcome"] for o in report.json["outcomes"]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("syntax.py", b"def broken(:\n"),
        ("python2.py", b"print 'hello'\n"),
        ("zeros.py", b"x = 1\x00\n"),
        ("latin.py", b"# caf\xe9\nx = 1\n"),
        ("notebook.ipynb", b'{"cells": [{"cell_type": "code", "sour'),
        ("settings.json", b'{"learning_rate": '),
        ("settings.toml", b"[broken\n"),
    ],
)
def test_a_file_that_cannot_be_read_is_said_to_be_unread_and_strict_fails(
    doctor: Any, tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    run = doctor("check", path, "--offline", "--strict")
    assert run.code == 2
    assert name in run.out + run.err
    assert "Traceback" not in run.err
    if run.out:
        report = doctor("check", path, "--offline", "--format", "json").json
        assert json.dumps(report).count(name) > 1
        assert "unknown" in [o["outcome"] for o in report["outcomes"]]


def test_a_code_that_is_nearly_right_is_answered_with_codes_of_its_family(doctor: Any) -> None:
    assert "did you mean QD101 or QD102" in refused(doctor("check", "--select", "QD19"))
    assert "did you mean QD9" in refused(doctor("check", "--select", "QD999"))
    assert "qlora-doctor list" in refused(doctor("check", "--select", "XY101"))


def test_an_empty_path_is_refused_and_not_taken_for_the_current_folder(doctor: Any) -> None:
    Path("train.py").write_text("import transformers\n", encoding="utf-8")
    assert "empty path" in refused(doctor("check", "", "--offline"))


@pytest.mark.parametrize(
    "model", ["./no-such-model", "~/no-such-model", "models/llava/7b", "/no/such/model", "my model"]
)
def test_a_model_that_is_no_folder_and_no_name_on_the_hub_is_refused(doctor: Any, model: str) -> None:
    assert "no such folder" in refused(doctor("check", "--model", model, "--offline"))


def test_a_model_on_another_machine_is_not_looked_for_here(doctor: Any, facts_file: Any) -> None:
    assert doctor("check", "--model", "/models/llava", "--facts", facts_file({}), "--offline").code != 2


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_an_environment_whose_python_was_removed_is_named_as_such(doctor: Any, tmp_path: Path) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(tmp_path / "gone" / "python3")
    assert "Make the environment anew" in refused(doctor("check", "--python", tmp_path / "venv", "--offline"))


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_what_a_launcher_complains_of_first_is_shown(doctor: Any, tmp_path: Path) -> None:
    text = "#!/bin/sh\necho 'launcher: python3.9: command not found' >&2\necho 'Note: see the manual.' >&2\nexit 127\n"
    error = refused(doctor("check", "--python", executable(tmp_path / "launcher", text), "--offline"))
    assert "command not found. Check" in error


def test_a_script_that_cannot_be_read_is_named_below_the_verdict(doctor: Any, tmp_path: Path) -> None:
    path = tmp_path / "syntax.py"
    path.write_text("import torch\ndef broken(:\n", encoding="utf-8")
    second = doctor("check", path, "--offline").out.splitlines()[1]
    assert second.startswith(f"note: {path}:2 could not be read, so nothing in it was judged: ")


def test_places_in_a_notebook_count_cells_from_one_everywhere(doctor: Any, tmp_path: Path, facts_file: Any) -> None:
    sources = [
        "x = (\n",
        "from transformers import AutoModel\nmodel = AutoModel.from_pretrained('x', load_in_4bit=True, load_in_8bit=True)\n",
    ]
    cells = [
        {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None, "source": s} for s in sources
    ]
    path = tmp_path / "run.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    out = doctor("check", path, "--offline", "--select", "QD112").out
    assert "run.ipynb was read in part: cell 1: " in out
    assert "run.ipynb:cell 2:2:" in out


def test_the_doctors_own_environment_without_a_stack_is_named_with_the_way_to_another(doctor: Any) -> None:
    if importlib.util.find_spec("torch") or importlib.util.find_spec("transformers"):
        pytest.skip("the stack is installed here")
    assert "next:    --python EXE" in doctor("check", "--offline").out


def test_another_environment_without_a_stack_gets_no_such_advice(doctor: Any, environment: Any) -> None:
    environment.install("alpha", "1.0")
    assert "--python EXE" not in doctor("check", "--offline", "--python", environment.python).out


@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        ("hello.py", "import transformers\nprint('hello')\n", "nothing of transformers"),
        ("other.json", '{"colour": "blue"}', "none of its keys"),
    ],
)
def test_a_named_file_that_trains_nothing_is_said_to_hold_nothing(
    doctor: Any, tmp_path: Path, name: str, text: str, note: str
) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert f"note: {path}: {note}" in doctor("check", path, "--offline").out


def test_a_file_with_something_to_judge_and_the_files_of_a_folder_get_no_such_note(doctor: Any, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "helper.py").write_text("import transformers\n", encoding="utf-8")
    train = tmp_path / "train.py"
    train.write_text("from transformers import AutoModel\nAutoModel.from_pretrained('x')\n", encoding="utf-8")
    assert "note: " not in doctor("check", tmp_path / "job", train, "--offline").out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_an_output_that_cannot_be_written_is_said_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "qlora_doctor", "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: the output could not be written: ")


@pytest.mark.skipif(os.name == "nt", reason="the current folder cannot be removed there")
def test_a_current_folder_that_was_removed_is_said_to_be_gone(doctor: Any, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "no longer exists" in refused(doctor("check", "--offline"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(doctor: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.py")
    assert "a pipe or a device" in refused(doctor("check", tmp_path / "train.py", "--offline"))
