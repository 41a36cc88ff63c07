"""What `train` refuses before any model is loaded: the model here has no weights, so a load would be another error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_core.errors import LoadBlocked
from qlora_doctor.errors import UsageError

ROWS = [{"instruction": f"question {i}", "output": f"answer {i}"} for i in range(12)]
OFF = {"progress": False, "fixes": {"QD314": False}}


@pytest.fixture
def hollow(copied: Callable[..., Path]) -> Path:
    """A model folder without its weights."""
    return copied("qwen3", without=("model.safetensors",))


def refuse(model: Path, data: Any, output: Path, said: str, **more: Any) -> str:
    from qlora_core.train import train

    with pytest.raises(UsageError, match=said) as refusal:
        train(model, data, output, **{**OFF, **more})
    return str(refusal.value)


def test_a_folder_that_holds_something_is_not_written_to(hollow: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("mine")
    assert "thesis.txt" in refuse(hollow, ROWS, output, "not empty")


def test_a_file_is_no_folder_for_a_run(hollow: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    refuse(hollow, ROWS, tmp_path / "out", "is a file")


def test_a_run_that_was_stopped_before_its_first_step_leaves_its_folder_to_the_next(tmp_path: Path) -> None:
    from qlora_core.run_record import check_output, write_run

    write_run(tmp_path, {"status": "stopped"})
    assert check_output(tmp_path, False) is None
    (tmp_path / "train_log.jsonl").write_text("{}")
    with pytest.raises(UsageError, match="not empty"):
        check_output(tmp_path, False)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eval_split": 12}, "there are 12"),
        ({"eval_split": 0.99}, "there are 12"),
        ({"metrics": ["exact_match"]}, "metrics needs rows to evaluate on"),
        ({"early_stopping_patience": 2}, "needs rows to evaluate on"),
        ({"eval_strategy": "epoch"}, "needs rows to evaluate on"),
        ({"metrics": ["exact"], "eval_split": 2}, "'exact' is not known"),
        ({"eval_data": ROWS[:2], "eval_split": 2}, "give one of them"),
        ({"train": "qformer"}, "has no qformer; it has language"),
        ({"max_pixels": 1000}, "no such limit"),
        ({"report_to": "not_installed_tracker"}, "not installed"),
        ({"resume": True}, "no checkpoint to resume from"),
        ({"resume": "/nowhere/checkpoint-3"}, "no such folder"),
        ({"preset": "RTX 9999 Ultra"}, "9999"),
        ({"lora": 8}, "PEFT configuration"),
        ({"lora": {"r": 4}, "adapter": "x"}, "give one of them"),
        ({"adapter": "/nowhere"}, "adapter"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size"),
        ({"learning_rate": 10}, "learning_rate"),
        ({"save_strategy": "epoch", "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True,
          "eval_split": 2}, "give both the same"),
        ({"lora_r": 65536, "save_strategy": "steps", "save_steps": 1, "max_steps": 100000, "save_total_limit": None,
          "max_length": 64}, "checkpoints of"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_work_is_refused_by_name(
    settings: dict[str, Any], said: str, hollow: Path, tmp_path: Path
) -> None:
    refuse(hollow, ROWS, tmp_path / "out", said, **settings)
    assert not (tmp_path / "out").exists()


def test_data_of_which_no_row_is_left_are_refused_with_the_check_that_says_why(hollow: Path, tmp_path: Path) -> None:
    from qlora_core.train import train

    with pytest.raises(LoadBlocked, match="training was stopped") as refusal:
        train(hollow, ROWS, tmp_path / "out", max_length=8, **OFF)
    assert any(f.code.startswith("QD7") for f in refusal.value.findings)
    assert "qlora-doctor fix" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_without_the_gate_the_same_data_are_still_refused(hollow: Path, tmp_path: Path) -> None:
    refuse(hollow, ROWS, tmp_path / "out", "none of the 12 rows", max_length=8, gate="off", fixes=None)


def test_a_check_that_is_switched_off_stays_silent(hollow: Path, tmp_path: Path) -> None:
    from qlora_core.train import train

    codes = {"QD706": False, "QD711": False, "QD712": False}
    with pytest.raises(UsageError, match="none of the 12 rows"):
        train(hollow, ROWS, tmp_path / "out", max_length=8, progress=False, fixes=codes)
    with pytest.raises(UsageError, match="QD999"):
        train(hollow, ROWS, tmp_path / "out", progress=False, fixes={"QD999": False})


def test_an_adapter_of_another_base_is_refused_by_its_widths(hollow: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/other", "r": 4}))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({name: torch.zeros(4, 4096)}, str(folder / "adapter_model.safetensors"))
    assert "4096" in refuse(hollow, ROWS, tmp_path / "out", "another model", adapter=str(folder))


def test_an_adapter_of_another_base_is_refused_by_its_configuration(
    hollow: Path, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny("llama")), "r": 4}))
    assert "model_type" in refuse(hollow, ROWS, tmp_path / "out", "another model", adapter=str(folder))


def test_an_adapter_is_no_model_to_train(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    assert "--set adapter=" in refuse(folder, ROWS, tmp_path / "out", "is an adapter")


@pytest.fixture(scope="module")
def begun(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was ended after two of its steps."""
    from qlora_core.train import train

    output = tmp_path_factory.mktemp("begun") / "out"
    more: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "samples": 0}
    train(tiny("qwen3"), ROWS, output, progress=False, **more)
    return output


def test_a_run_is_not_overwritten_and_resume_is_named(begun: Path, tiny: Callable[..., Path]) -> None:
    refuse(tiny("qwen3"), ROWS, begun, "--resume")


def test_a_checkpoint_of_other_data_is_not_resumed(begun: Path, tiny: Callable[..., Path], tmp_path: Path) -> None:
    other = [*ROWS[:-1], {"instruction": "question", "output": "another answer"}]
    for output, resume in ((begun, True), (tmp_path / "new", str(begun / "checkpoint-2"))):
        assert "data" in refuse(tiny("qwen3"), other, output, "another run", resume=resume)


def test_a_checkpoint_of_another_model_is_not_resumed(begun: Path, hollow: Path) -> None:
    assert "base" in refuse(hollow, ROWS, begun, "another run", resume=True)


def test_an_adapter_only_checkpoint_is_not_resumed(begun: Path, tiny: Callable[..., Path], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(begun, tmp_path / "out")
    (tmp_path / "out" / "checkpoint-2" / "optimizer.pt").unlink()
    assert "optimizer" in refuse(tiny("qwen3"), ROWS, tmp_path / "out", "cannot be resumed", resume=True)
