"""qlora-core in Chinese: its help, its errors, a load report; and English that stays as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_core.errors import LoadBlocked, TrainingStopped
from qlora_doctor import i18n
from qlora_doctor.finding import Finding

PROGRAM = "import sys; from qlora_core.cli import main; main(prog_name='qlora-core')"


@pytest.fixture
def chinese() -> Iterator[None]:
    i18n.use("zh_CN")
    yield
    i18n.use("en")


def run(*words: str, language: str = "zh") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "QLORA_DOCTOR_LANG": language, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", PROGRAM, *words]
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)


def test_the_help_of_a_command_is_chinese_with_its_options_and_examples() -> None:
    shown = run("train", "--help").stdout
    assert "用法：" in shown and "训练 LoRA 适配器" in shown and "# 从停下的地方继续" in shown
    assert "--dry-run              不加载模型" in shown


def test_lang_is_taken_after_a_folder_called_run() -> None:
    words = ("train", "m", "d.jsonl", "--output", "run", "--dry-run", "--quick", "--lang")
    assert run(*words, "zh", language="en").stderr.startswith("错误：--dry-run 什么都不加载")
    assert run(*words, "en").stderr.startswith("error: --dry-run loads nothing")


def test_an_unknown_command_option_or_file_is_told_in_chinese() -> None:
    assert "没有 'trian' 这个命令；是不是想写 'train'？" in run("trian").stderr
    assert "没有这个选项" in run("verify", "--bitz", "3").stderr
    missing = run("data", "no-such-file.jsonl")
    assert missing.returncode == 2 and missing.stderr.startswith("错误：") and "没有这个文件" in missing.stderr


def test_an_audit_is_chinese_and_its_json_is_english(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "Say hi", "output": "hi"}\n' * 3, encoding="utf-8")
    assert "rows.jsonl：3 行" in run("data", str(rows)).stdout
    found = json.loads(run("data", str(rows), "--format", "json").stdout)
    assert found == json.loads(run("data", str(rows), "--format", "json", language="en").stdout)


def test_the_words_of_a_row_are_nobodys_to_translate(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "not installed", "output": "check the network"}\n', encoding="utf-8")
    shown = run("data", str(rows)).stdout
    assert "not installed" in shown and "check the network" in shown


@pytest.mark.usefixtures("chinese")
def test_each_line_of_a_refusal_is_chinese_and_its_command_is_not() -> None:
    finding = Finding(
        "{gpu} is in Exclusive mode: one process at a time can use it, {state}. A second one fails with 'devices are "
        "busy or unavailable'. End the first one, or ask an administrator for `{command}`.",
        {"gpu": "GPU 0", "state": "and it is free now", "command": "nvidia-smi -c DEFAULT"},
    )
    text = i18n.said_lines(str(LoadBlocked([finding], "qlora-doctor fix --apply")))
    head, body, way, command = text.split("\n")
    assert head == "加载在开始之前就被拦下：1 个问题"
    assert "独占模式" in body
    assert (way, command) == ("修复命令：", "  qlora-doctor fix --apply")


@pytest.mark.usefixtures("chinese")
def test_the_labels_of_a_stopped_run_are_chinese_too() -> None:
    stop = TrainingStopped("loss", "the loss is nan", step=3, remedy="take an older checkpoint")
    assert i18n.said_lines(str(stop)) == "训练在第 3 步中止：损失为 nan\n  办法：请换用更早的检查点"


def test_several_lines_of_english_stay_as_they_are() -> None:
    text = "the loss is nan\n  cause:   take an older checkpoint\n"
    assert i18n.said_lines(text) is text
