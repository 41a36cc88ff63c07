"""`qlora-core train` as a person calls it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qlora_core.cli import main


def call(*words: str | Path) -> Result:
    result = CliRunner().invoke(main, ["train", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.json"
    path.write_text(json.dumps([{"instruction": f"question {i}", "output": f"answer {i}"} for i in range(16)]))
    return path


def test_a_run_from_the_command_line_ends_with_its_adapter(
    tiny: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    (tmp_path / "s.toml").write_text("lora_r = 4\nmax_steps = 2\nsamples = 1\nmax_new_tokens = 4\n")
    result = call(
        tiny("qwen3"), data, "--output", tmp_path / "out", "--config", tmp_path / "s.toml", "--set", "max_steps=3",
        "--eval", data,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for part in ("steps     3", "predicted", "adapter ", "sample", "eval  "):
        assert part in result.stdout, part
    saved = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert saved["r"] == 4 and "auditing 16 rows" in result.stderr


def test_a_dry_run_prints_json_alone_on_stdout(tiny: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    result = call(tiny("qwen3"), data, "--output", tmp_path / "out", "--dry-run", "--json")
    run = json.loads(result.stdout)
    assert result.exit_code == 0 and run["status"] == "dry run" and run["memory"]["predicted"]["high"] > 0


def test_a_dry_run_that_would_be_refused_says_so_with_exit_code_1(
    tiny: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    result = call(tiny("qwen3"), data, "--output", tmp_path / "out", "--dry-run", "--set", "max_length=8")
    assert result.exit_code == 1 and "refused  QD7" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "lerning_rate=1"], "did you mean 'learning_rate'"),
        (["--set", "learning_rate"], "NAME=VALUE"),
        (["--config", "/nowhere.toml"], "cannot be read"),
        (["--dry-run", "--quick"], "give one of them"),
        (["--preset", "no such card"], "no such card"),
        (["--resume"], "no checkpoint"),
    ],
)
def test_a_wrong_argument_ends_with_exit_code_2_and_its_reason(
    words: list[str], said: str, tiny: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    result = call(tiny("qwen3"), data, "--output", tmp_path / "out", *words)
    assert result.exit_code == 2 and said in result.stderr and not (tmp_path / "out").exists()


def test_data_that_are_not_there_are_named(tiny: Callable[..., Path], tmp_path: Path) -> None:
    result = call(tiny("qwen3"), tmp_path / "none.jsonl", "--output", tmp_path / "out")
    assert result.exit_code == 2 and "none.jsonl" in result.stderr


def test_quick_prints_the_proof_and_keeps_nothing(tiny: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    result = call(tiny("qwen3"), data, "--output", tmp_path / "out", "--quick")
    assert result.exit_code == 0 and not (tmp_path / "out").exists()
    assert "14 linears in 4-bit" in result.stdout and "a step" in result.stdout and "steps     5" in result.stdout
