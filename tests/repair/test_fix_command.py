"""`fix` and `undo` as a user meets them: what is printed, exit codes, every kind of file, and every refusal."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained(
    "Qwen/Qwen3-0.6B",
    quantization_config=bnb,
    trust_remote_code=True,  # 模型
)
"""
SELECT = ("--offline", "--select", "QD101,QD102,QD104")


@pytest.fixture
def stack(project: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The project with transformers 5.23 beside it, as metadata alone."""
    site = project.path.parent / "site"
    info = site / "transformers-5.23.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 5.23.0\n\n")
    project.environ["PYTHONPATH"] = str(site)
    monkeypatch.syspath_prepend(str(site))
    return project


@pytest.fixture
def script(stack: Any) -> Path:
    path: Path = stack.path / "train.py"
    path.write_text(SCRIPT)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_dry_run_shows_the_diff_and_what_each_step_removes_and_changes_nothing(script: Path, here: Any) -> None:
    before = files_of(script.parent)
    run = here("fix", "train.py", *SELECT)
    assert run.code == 1
    assert "-    trust_remote_code=True,  # 模型\n" in run.out
    assert "+    dtype=torch.bfloat16,\n" in run.out
    assert "removes info QD101" in run.out and "removes info QD102" in run.out
    assert "remains: nothing" in run.out
    assert files_of(script.parent) == before


def test_nothing_to_repair_exits_0(script: Path, here: Any) -> None:
    assert here("fix", "train.py", "--offline", "--select", "QD104").code == 0


def test_apply_then_check_then_undo_then_undo_again(script: Path, here: Any) -> None:
    run = here("fix", "train.py", *SELECT, "--apply")
    assert (run.code, run.err) == (0, "")
    assert "written: train.py" in run.out
    assert here("check", "train.py", *SELECT, "--format", "json").json["findings"] == []
    first = here("undo")
    assert (first.code, "restored: " in first.out) == (0, True)
    assert script.read_text() == SCRIPT
    second = here("undo")
    assert (second.code, second.out) == (0, "nothing is left to undo here\n")


def test_undo_list_names_each_change_and_its_state(script: Path, here: Any) -> None:
    here("fix", "train.py", *SELECT, "--apply")
    (entry,) = here("undo", "--list", "--format", "json").json
    assert (entry["state"], entry["codes"]) == ("applied", ["QD101", "QD102"])
    assert entry["id"] in here("undo", "--list").out
    assert here("undo", entry["id"]).code == 0
    assert here("undo", "--list", "--format", "json").json[0]["state"] == "undone"


def test_the_last_change_is_undone_first(script: Path, here: Any) -> None:
    here("fix", "train.py", "--offline", "--select", "QD101", "--apply")
    between = script.read_bytes()
    here("fix", "train.py", "--offline", "--select", "QD102", "--apply")
    here("undo")
    assert script.read_bytes() == between
    here("undo")
    assert script.read_text() == SCRIPT


def test_json_of_a_plan_holds_the_fixes_the_diff_and_the_reasons(script: Path, here: Any) -> None:
    script.write_text(
        SCRIPT.replace("AutoModelForCausalLM", "LlavaForConditionalGeneration").replace(
            "Qwen/Qwen3-0.6B", "liuhaotian/llava-v1.5-7b"
        )
    )
    data = here("fix", "train.py", *SELECT, "--format", "json").json
    assert data["applied"] is False
    assert {s["codes"][0] for s in data["steps"]} == {"QD101", "QD102"}
    assert data["steps"][0]["fix"]["kind"] == "source-edit"
    (left,) = data["remains"]
    assert (left["code"], left["why"].startswith("needs --unsafe")) == ("QD104", True)
    assert "llava-hf/llava-1.5-7b-hf" in data["with_unsafe"]["diff"]


def test_an_unsafe_fix_is_applied_only_when_asked(script: Path, here: Any) -> None:
    text = SCRIPT.replace("AutoModelForCausalLM", "LlavaForConditionalGeneration").replace(
        "Qwen/Qwen3-0.6B", "liuhaotian/llava-v1.5-7b"
    )
    script.write_text(text)
    assert here("fix", "train.py", *SELECT, "--apply").code == 1
    assert "liuhaotian" in script.read_text()
    assert here("fix", "train.py", *SELECT, "--apply", "--unsafe").code == 0
    assert "llava-hf/llava-1.5-7b-hf" in script.read_text()


def test_apply_is_refused_for_facts_of_another_machine(script: Path, here: Any, tmp_path: Path) -> None:
    from qlora_doctor.testing import facts

    file = tmp_path / "facts.json"
    file.write_text(json.dumps(facts({"transformers": "5.23.0"}).to_wire()))
    assert here("fix", "train.py", "--facts", file).code == 1
    run = here("fix", "train.py", "--facts", file, "--apply")
    assert (run.code, "--facts" in run.err) == (2, True)
    assert script.read_text() == SCRIPT


KINDS = {
    "CRLF": SCRIPT.replace("\n", "\r\n").encode(),
    "BOM": b"\xef\xbb\xbf" + SCRIPT.encode(),
    "GBK": ("# -*- coding: gbk -*-\n" + SCRIPT).encode("gbk"),
    "tabs": SCRIPT.replace("    ", "\t").encode(),
    "no last line end": SCRIPT.rstrip().encode(),
    "docstring and future": (
        '"""说明。"""\nfrom __future__ import annotations\n'
        + SCRIPT.replace("import torch\n", "").replace("torch.bfloat16", '"bfloat16"')
    ).encode(),
    "old Mac line ends": SCRIPT.replace("\n", "\r").encode(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_text_file_is_edited_in_place_and_undone(script: Path, here: Any, kind: str) -> None:
    script.write_bytes(KINDS[kind])
    assert here("fix", "train.py", *SELECT, "--apply").code == 0
    data = script.read_bytes()
    ast.parse(data)
    assert b"dtype=torch.bfloat16," in data
    assert data.count(b"\r\n") in (0, data.count(b"\n"))
    assert data.startswith(KINDS[kind][:3])
    here("undo")
    assert script.read_bytes() == KINDS[kind]


def test_a_notebook_is_edited_in_its_cell_and_its_outputs_stay(stack: Any, here: Any) -> None:
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# 训练"]},
        {"cell_type": "code", "execution_count": 1, "metadata": {}, "outputs": [], "source": ["!pip install -q transformers\n", "import torch as t\n", "from transformers import AutoModelForCausalLM, BitsAndBytesConfig"]},
        {"cell_type": "code", "execution_count": 2, "metadata": {}, "outputs": [{"output_type": "stream", "name": "stdout", "text": ["模 1.50\n"]}], "source": SCRIPT.partition("\n\n")[2].replace("torch.", "t.").splitlines(keepends=True)},
    ]  # fmt: skip
    path = stack.path / "run.ipynb"
    data = json.dumps(
        {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=1, ensure_ascii=False
    ).encode()
    path.write_bytes(data)
    run = here("fix", "run.ipynb", *SELECT, "--apply")
    assert run.code == 0, run
    old, new = json.loads(data), json.loads(path.read_bytes())
    assert "    dtype=t.bfloat16,\n" in new["cells"][2]["source"]
    assert "    trust_remote_code=True,  # 模型\n" not in new["cells"][2]["source"]
    changed = [(a, b) for a, b in zip(data.splitlines(), path.read_bytes().splitlines(), strict=True) if a != b]
    assert len(changed) == 1
    new["cells"][2]["source"] = old["cells"][2]["source"]
    assert new == old
    here("undo")
    assert path.read_bytes() == data


def test_settings_in_yaml_are_renamed_in_place(stack: Any, here: Any) -> None:
    path = stack.path / "train.yaml"
    text = "# 训练\noutput_dir: out\nper_device_train_batch_size: 1\nevaluation_strategy: steps  # 评估\nlearning_rate: 1.0e-4\n"
    path.write_text(text)
    run = here("fix", "train.yaml", "--offline", "--select", "QD121", "--apply")
    assert run.code == 0, run.out
    assert path.read_text() == text.replace("evaluation_strategy", "eval_strategy")
    here("undo")
    assert path.read_text() == text


def test_variables_go_into_files_that_are_named_and_no_other(script: Path, here: Any, stack: Any) -> None:
    run = here(
        "fix", "train.py", "--offline", "--select", "QD201", "--apply", "--unsafe", HF_ENDPOINT="hf-mirror.example"
    )
    folder = stack.path / ".qlora-doctor"
    assert run.code in (0, 1)
    for name in ("env.sh", "env.ps1", "env.fish"):
        assert str(folder / name) in run.out
    assert "export HF_ENDPOINT=https://hf-mirror.example" in (folder / "env.sh").read_text()
    shell = subprocess.run(
        ["sh", "-c", f". {folder}/env.sh; echo $HF_ENDPOINT"], capture_output=True, text=True, check=True
    )
    assert shell.stdout == "https://hf-mirror.example\n"
    assert (folder / ".gitignore").read_text() == "*\n"
    here("undo")
    assert not (folder / "env.sh").exists()


def test_a_read_only_script_is_refused_before_anything_is_written(script: Path, here: Any) -> None:
    script.chmod(0o444)
    run = here("fix", "train.py", *SELECT, "--apply")
    script.chmod(0o644)
    assert (run.code, "read-only" in run.err) == (2, True)
    assert script.read_text() == SCRIPT


def test_a_user_who_edits_after_the_fix_keeps_the_edit(script: Path, here: Any) -> None:
    here("fix", "train.py", *SELECT, "--apply")
    script.write_text("mine\n")
    run = here("undo")
    assert (run.code, "it was edited since" in run.out) == (1, True)
    assert script.read_text() == "mine\n"


def test_a_damaged_journal_and_a_newer_one_are_errors_that_name_the_file(script: Path, here: Any, stack: Any) -> None:
    here("fix", "train.py", *SELECT, "--apply")
    after = script.read_bytes()
    (path,) = (stack.path / ".qlora-doctor" / "journal").glob("*.json")
    whole = path.read_bytes()
    for data, words in (
        (whole[:100], "damaged"),
        (whole.replace(b'"schema": 1', b'"schema": 7'), "newer qlora-doctor"),
    ):
        path.write_bytes(data)
        run = here("undo")
        assert (run.code, words in run.err, path.name in run.err) == (2, True, True)
        assert here("undo", "--list").code == 0
        assert script.read_bytes() == after
    path.write_bytes(whole)
    assert here("undo").code == 0
    assert script.read_text() == SCRIPT


def test_an_older_change_of_the_same_file_waits_for_the_later_one(script: Path, here: Any) -> None:
    here("fix", "train.py", "--offline", "--select", "QD101", "--apply")
    here("fix", "train.py", "--offline", "--select", "QD102", "--apply")
    after = script.read_bytes()
    first, second = (e["id"] for e in here("undo", "--list", "--format", "json").json)
    run = here("undo", first)
    assert (run.code, f"qlora-doctor undo {second}" in run.err, script.read_bytes()) == (2, True, after)
    assert here("undo", second).code == here("undo", first).code == 0
    assert script.read_text() == SCRIPT


def test_one_file_under_two_names_is_written_once(script: Path, here: Any) -> None:
    (script.parent / "link.py").symlink_to(script)
    run = here("fix", "train.py", "link.py", ".", *SELECT, "--apply")
    assert (run.code, run.err) == (0, "")
    assert script.read_text().count("dtype=torch.bfloat16,") == 1


def test_what_a_terminal_would_obey_is_not_printed(script: Path, here: Any) -> None:
    script.write_text(SCRIPT.replace("# 模型", "# \x1b[31m模型"))
    run = here("fix", "train.py", *SELECT)
    assert "\x1b" not in run.out
    assert "\ufffd[31m模型" in run.out


def test_an_unknown_id_is_an_error(script: Path, here: Any) -> None:
    assert here("undo", "20000101-000000-1").code == 2


def test_two_applies_at_once_leave_one_result(script: Path, stack: Any) -> None:
    command = [sys.executable, "-m", "qlora_doctor", "fix", "train.py", *SELECT, "--apply"]
    environ = {**os.environ, **stack.environ}
    both = [
        subprocess.Popen(
            command, cwd=stack.path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    ends = [(p.communicate(timeout=120), p.returncode) for p in both]
    assert sorted(code for _, code in ends) in ([0, 0], [0, 2])
    for (_, err), code in ends:
        assert code == 0 or "another qlora-doctor works here" in err or "was changed since it was read" in err
    ast.parse(script.read_bytes())
    assert script.read_text().count("dtype=torch.bfloat16,") == 1
    while "nothing is left" not in stack.run("undo").out:
        pass
    assert script.read_text() == SCRIPT


def test_a_disk_that_is_really_full_leaves_the_script(script: Path, stack: Any) -> None:
    limit = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))\nfrom qlora_doctor.cli import main\nsys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", limit, "fix", "train.py", *SELECT, "--apply"],
        cwd=stack.path, env={**os.environ, **stack.environ}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, "nothing was changed" in done.stderr) == (2, True), done.stderr
    assert script.read_text() == SCRIPT
    assert [p.name for p in stack.path.rglob("*.tmp")] == []


def test_a_fix_from_another_folder_names_the_project_to_undo_in(
    script: Path, here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = here("fix", script, *SELECT, "--apply")
    (line,) = [line for line in run.out.splitlines() if line.startswith("take it back with: ")]
    command = line.partition("qlora-doctor ")[2].split()
    assert "--project" in command
    assert here(*command).code == 0
    assert script.read_text() == SCRIPT
