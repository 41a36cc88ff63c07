"""The same `train` in two processes: DDP and FSDP2 on gloo, real processes, held against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

Build = Callable[..., Path]
HERE = Path(__file__).parent
SETTINGS: Mapping[str, Any] = {
    "max_steps": 6, "learning_rate": 5e-3, "lora_r": 4, "progress": False, "samples": 0, "save_strategy": "steps",
    "save_steps": 3, "device": "cpu", "dtype": "float32", "train_sampling_strategy": "random", "report_to": "none",
    "gradient_accumulation_steps": 1,
}  # fmt: skip
RUNS: Mapping[str, tuple[int, Mapping[str, Any]]] = {
    "one": (1, {"per_device_train_batch_size": 2}),
    "ddp": (2, {"per_device_train_batch_size": 1}),
    "fsdp2": (2, {"per_device_train_batch_size": 1, "fsdp": "full_shard", "fsdp_config": {"version": 2}}),
}
SHARDED = pytest.param("fsdp2", marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def run(tiny: Build, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """`run("ddp")`: what the run saw, and its folder as `out`; each kind is run once, and once more when resumed."""
    root = tmp_path_factory.mktemp("distributed")
    colours = ("red", "blue", "green", "white")
    rows = [{"instruction": f"What colour is car {i}?", "output": f"it is {colours[i % 4]}."} for i in range(24)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "FSDP_", "RANK", "WORLD_SIZE"))}
    environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

    def go(kind: str, resume: str = "", **settings: Any) -> dict[str, Any]:
        processes, own = RUNS[kind]
        result = root / f"{kind}{resume}.json"
        if not result.exists():
            spec = {
                "model": str(tiny("qwen3")), "data": str(root / "rows.jsonl"), "out": str(root / kind),
                "result": str(result), "settings": {**SETTINGS, **own, **settings}, "fsdp": "fsdp" in kind,
                "resume": str(root / kind / resume) if resume else False,
            }  # fmt: skip
            (root / "spec.json").write_text(json.dumps(spec))
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
            words = [*(launcher if processes > 1 else []), str(HERE / "run_distributed.py"), str(root / "spec.json")]
            done = subprocess.run(
                [sys.executable, *words], env=environ, capture_output=True, text=True, timeout=280, check=False
            )
            assert done.returncode == 0 and result.exists(), done.stderr[-4000:]
        return {**json.loads(result.read_text()), "out": root / kind}

    return go


def adapter_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(folder / "adapter" / "adapter_model.safetensors")
    return tensors


@pytest.mark.parametrize("kind", ["ddp", SHARDED])
def test_two_processes_give_the_losses_and_the_adapter_of_one(run: Callable[..., Any], kind: str) -> None:
    import torch

    one, two = run("one"), run(kind)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4) and len(set(one["losses"])) == 6
    theirs, ours = adapter_of(one["out"]), adapter_of(two["out"])
    assert theirs.keys() == ours.keys()
    assert all(torch.allclose(theirs[name], ours[name], atol=1e-3) for name in theirs)


def test_ddp_wraps_the_model_and_shards_nothing(run: Callable[..., Any]) -> None:
    seen = run("ddp")
    assert seen["wrapper"] == "DistributedDataParallel" and seen["dtensors"] == 0


@pytest.mark.slow
def test_fsdp2_shards_every_weight_the_packed_4_bit_ones_too(run: Callable[..., Any]) -> None:
    seen = run("fsdp2")
    assert seen["fsdp2"] and seen["wrapper"].startswith("FSDP")
    assert seen["dtensors"] == seen["weights"] > 40


@pytest.mark.parametrize("kind", ["ddp", SHARDED])
def test_the_adapter_of_two_processes_loads_in_one(run: Callable[..., Any], kind: str) -> None:
    from qlora_core import load_quantized

    model, _ = load_quantized(run(kind)["out"] / "adapter", device="cpu", gate="off")
    assert any(float(p.detach().abs().max()) > 0 for n, p in model.named_parameters() if "lora_B" in n)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_resumed_run_of_two_processes_takes_the_steps_it_would_have_taken(run: Callable[..., Any], kind: str) -> None:
    whole = run(kind)["losses"]
    again = run(kind, resume="checkpoint-3")["losses"]
    assert again == pytest.approx(whole[-len(again) :], rel=1e-5) and len(again) == 3


@pytest.mark.parametrize("kind", ["one", "ddp", SHARDED])
def test_the_doctor_finds_nothing_at_a_sound_adapter_and_checkpoint(run: Callable[..., Any], kind: str) -> None:
    from qlora_checks import on_disk, on_disk_checkpoints
    from qlora_doctor.gather.model_files import read_models
    from qlora_doctor.gather.saved_runs import read_saved_runs
    from qlora_doctor.testing import facts, findings

    out = run(kind)["out"]
    folders = [str(out / "adapter"), str(out / "checkpoint-6")]
    saved = read_saved_runs(folders)
    assert all(one.tensors and one.run and one.base == "folder" for one in saved) and saved[1].state is not None
    base = (saved[0].adapter_config or {})["base_model_name_or_path"]
    known = facts({}, saved=saved, models=read_models([base]))
    for check in (*on_disk.CHECKS, *on_disk_checkpoints.CHECKS):
        assert findings(check, known) == ()


def test_only_the_first_process_writes(run: Callable[..., Any]) -> None:
    out = run("ddp")["out"]
    log = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line][:6] == [1, 2, 3, 4, 5, 6]
    assert not list(out.glob(".*")) and json.loads((out / "run.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_the_command_under_torchrun_prints_its_result_once(tiny: Build, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a question", "output": "an answer"}\n' * 8)
    words = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    command = [sys.executable, "-c", "from qlora_core.cli import main; main()", "train", str(tiny("qwen3"))]
    settings = {"max_steps": 2, "samples": 0, "save_strategy": "no", "device": "cpu", "dtype": "float32", "lora_r": 4}
    more = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    done = subprocess.run(
        [sys.executable, "-m", *words, *command, str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out"), *more],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("steps     2") == 1 and done.stderr.count("auditing 8 rows") == 1
    assert json.loads((tmp_path / "out" / "run.json").read_text())["result"]["rows_a_step"] % 2 == 0


def test_an_8_bit_optimizer_is_replaced_or_refused_where_weights_are_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    from qlora_core.distributed import settle_sharded
    from qlora_core.settings import Settings
    from qlora_doctor.errors import UsageError

    assert settle_sharded(Settings(), frozenset()) == (Settings(), ())
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert settle_sharded(Settings(), frozenset()) == (Settings(), ())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    settings, notes = settle_sharded(Settings(), frozenset())
    assert settings.optim == "adamw_torch" and "sharded" in notes[0]
    with pytest.raises(UsageError, match="adamw_torch"):
        settle_sharded(Settings(optim="paged_adamw_8bit"), frozenset({"optim"}))
