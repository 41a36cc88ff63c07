"""Checkpoints are whole or absent, and a resumed run is the run that was not interrupted, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from training import arguments, collate, losses, make_rows, tiny_lora

PROGRAM = Path(__file__).parent / "run_training.py"
STEPS = 30


def make(
    folder: Path, out: Path, *, callbacks: Sequence[Any] = (), lora: dict[str, Any] | None = None, **settings: Any
):
    from qlora_core.trainer import Trainer

    mine = {name: settings.pop(name) for name in ("save_epochs", "run", "rows") if name in settings}
    rows = mine.pop("rows", None) or make_rows()
    return Trainer(
        model=tiny_lora(folder, **{"dropout": 0.1, **(lora or {})}),
        args=arguments(out, **settings),
        train_dataset=rows,
        data_collator=collate,
        callbacks=list(callbacks),
        **mine,
    )


def stop_after(step: int) -> Any:
    import transformers

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            control.should_training_stop = state.global_step >= step
            return control

    return Stop()


CASES = {
    "random order": {},
    "by length": {"train_sampling_strategy": "group_by_length"},
    "accumulated": {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 1},
    "8-bit AdamW, cosine": {"optim": "adamw_bnb_8bit", "lr_scheduler_type": "cosine"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(
    case: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    import torch

    # 24 rows in batches of 2: step 12 ends an epoch; 13 is inside the second.
    settings = {"max_steps": 16, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 20, **CASES[case]}
    folder = tiny("qwen3", "float32")
    whole = make(folder, tmp_path / "whole", **settings)
    whole.train()
    for step in (5, 12, 13) if case == "random order" else (13,):
        out = tmp_path / f"cut{step}"
        make(folder, out, callbacks=[stop_after(step)], **settings).train()
        torch.manual_seed(999)
        again = make(folder, out, **settings)
        again.train(True)
        assert losses(again) == losses(whole), f"cut at step {step}"
        ours, theirs = (dict(t.model.named_parameters()) for t in (again, whole))
        assert all(torch.equal(ours[n], p) for n, p in theirs.items() if p.requires_grad)


def start(folder: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "checks")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), str(folder), str(out), str(STEPS), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.split() == ["step", str(step)]:
            return
    raise AssertionError(process.stderr.read() if process.stderr else "")


def history(out: Path) -> list[float]:
    state = json.loads((out / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.fixture(scope="module")
def uninterrupted(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    out = tmp_path_factory.mktemp("whole")
    process = start(tiny("qwen3", "float32"), out)
    printed, error = process.communicate(timeout=120)
    assert process.returncode == 0, printed + error
    return history(out)


def test_a_run_killed_at_random_moments_goes_on_as_if_it_had_not_been(
    tiny: Callable[..., Path], tmp_path: Path, uninterrupted: list[float]
) -> None:
    from qlora_core import checkpoints

    seed = int(os.environ.get("QLORA_TEST_SEED", random.randrange(10**6)))
    print(f"QLORA_TEST_SEED={seed}")
    draw = random.Random(seed)
    folder = tiny("qwen3", "float32")
    at = 0
    for _ in range(2):
        at = draw.randint(at + 3, at + 12)
        process = start(folder, tmp_path, "--resume")
        wait_for(process, at)
        time.sleep(draw.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        # What is there is whole: each can be resumed, and its weights can be read.
        for path in checkpoints.checkpoints(tmp_path):
            assert checkpoints.missing(path) == []
    process = start(folder, tmp_path, "--resume")
    printed, error = process.communicate(timeout=120)
    assert process.returncode == 0, printed + error
    assert history(tmp_path) == uninterrupted
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_saves_and_ends_with_its_code(
    name: str, code: int, tiny: Callable[..., Path], tmp_path: Path, uninterrupted: list[float]
) -> None:
    from qlora_core import checkpoints

    folder = tiny("qwen3", "float32")
    process = start(folder, tmp_path)
    wait_for(process, 7)
    process.send_signal(getattr(signal, name))
    printed, error = process.communicate(timeout=120)
    assert process.returncode == code, printed + error
    newest = checkpoints.latest(tmp_path)
    assert newest is not None and f"stopped signal {newest}" in printed
    state = json.loads((newest / "trainer_state.json").read_text())
    done = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert 7 <= state["global_step"] < STEPS and done == uninterrupted[: len(done)]


def test_a_full_disk_is_said_and_leaves_the_older_checkpoints_whole(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from qlora_core import checkpoints
    from qlora_core.errors import TrainingStopped

    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1400k", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        settings = {"save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch", "max_steps": 12}
        trainer = make(tiny("qwen3", "float32"), disk / "run", **settings)
        with pytest.raises(TrainingStopped, match="the disk is full") as caught:
            trainer.train()
        older = checkpoints.checkpoints(disk / "run")
        assert caught.value.kind == "disk" and "save_total_limit" in caught.value.remedy
        assert older and caught.value.adapter == str(older[-1]) and len(older) == caught.value.step - 1
        assert all(checkpoints.missing(path) == [] for path in older)
        assert [p.name for p in (disk / "run").iterdir() if p.name.startswith(".")] == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_write_that_fails_for_another_reason_is_not_called_a_full_disk(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    import resource

    from qlora_core.errors import TrainingStopped

    trainer = make(tiny("qwen3", "float32"), tmp_path, save_strategy="steps", save_steps=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(TrainingStopped, match="could not be written") as caught:
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.kind == "disk" and "full" not in str(caught.value) and caught.value.adapter is None


@pytest.fixture
def cut(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """A run of 6 steps with a checkpoint at 3 and at 6."""
    make(tiny("qwen3", "float32"), tmp_path / "run", max_steps=6, save_strategy="steps", save_steps=3).train()
    return tmp_path / "run"


def test_a_checkpoint_without_its_optimizer_is_refused_with_what_is_missing(
    cut: Path, tiny: Callable[..., Path]
) -> None:
    from qlora_doctor.errors import UsageError

    (cut / "checkpoint-6" / "optimizer.pt").unlink()
    trainer = make(tiny("qwen3", "float32"), cut, max_steps=8)
    with pytest.raises(UsageError, match=r"optimizer\.pt: the optimizer's state"):
        trainer.train(str(cut / "checkpoint-6"))
    trainer.train(True)
    assert len(losses(trainer)) == 8


def test_a_checkpoint_of_weights_alone_is_refused_with_its_reason(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from qlora_doctor.errors import UsageError

    folder = tiny("qwen3", "float32")
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    make(folder, tmp_path, save_only_model=True, **settings).train()
    with pytest.raises(UsageError, match="save_only_model"):
        make(folder, tmp_path, **settings).train(str(tmp_path / "checkpoint-2"))
    with pytest.raises(UsageError, match="no checkpoint that can be resumed"):
        make(folder, tmp_path, **settings).train(True)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learning_rate": 1e-3}, "learning_rate: 0.005 there, 0.001 here"),
        ({"per_device_train_batch_size": 4}, "batch: 2 there, 4 here"),
        ({"rows": 30}, "rows: 24 there, 30 here"),
        ({"lora": {"r": 8}}, "r: 4 there, 8 here"),
        ({"run": {"data": "b"}}, "data: 'a' there, 'b' here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(
    change: dict[str, Any], named: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    from qlora_doctor.errors import UsageError

    folder = tiny("qwen3", "float32")
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    make(folder, tmp_path, run={"data": "a"}, **settings).train()
    if "rows" in change:
        change = {"rows": make_rows(change["rows"])}
    with pytest.raises(UsageError, match="written by another run") as caught:
        make(folder, tmp_path, **{"run": {"data": "a"}, **settings, **change}).train(True)
    assert named in str(caught.value)


def test_a_checkpoint_every_second_epoch_and_no_more_than_the_limit(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny("qwen3", "float32")
    make(
        folder, tmp_path, rows=make_rows(6), max_steps=-1, num_train_epochs=5, save_epochs=2, save_total_limit=1
    ).train()
    # 3 steps an epoch; at the end transformers saves nothing by itself here.
    assert [p.name for p in sorted(tmp_path.glob("checkpoint-*"))] == ["checkpoint-12"]


def test_the_best_checkpoint_is_known_by_its_final_name_and_loaded_at_the_end(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    from qlora_core.trainer import Trainer

    args = arguments(
        tmp_path,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        save_total_limit=1,
    )
    rows = make_rows()
    trainer = Trainer(
        model=tiny_lora(tiny("qwen3", "float32")),
        args=args,
        train_dataset=rows,
        eval_dataset=rows[:4],
        data_collator=collate,
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path and best.is_dir()
    state = json.loads((best / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(best)


def test_what_a_killed_writer_left_is_swept_and_a_replaced_folder_comes_back(tmp_path: Path) -> None:
    from qlora_core import checkpoints

    (tmp_path / ".checkpoint-4.writing").mkdir()
    (tmp_path / ".last-finite.old").mkdir()
    (tmp_path / ".last-finite.old" / "adapter_model.safetensors").write_bytes(b"x")
    assert checkpoints.sweep(tmp_path) == [".checkpoint-4.writing", ".last-finite.old"]
    assert [p.name for p in tmp_path.iterdir()] == ["last-finite"]


def test_length_order_holds_each_row_once_pads_little_and_never_mixes_pictures_with_text() -> None:
    from qlora_core.order import LengthOrder

    draw = random.Random(3)
    lengths = [draw.randint(5, 400) for _ in range(403)]
    kinds = [draw.randint(0, 1) for _ in lengths]
    order = LengthOrder(lengths, 4, kinds=kinds, seed=5)
    first = list(order)
    assert sorted(first) == list(range(403)) and list(order) == first
    batches = [first[at : at + 4] for at in range(0, 400, 4)]
    mixed = [b for b in batches if len({kinds[i] for i in b}) > 1]
    assert len(mixed) <= 1
    padded = sum(4 * max(lengths[i] for i in b) for b in batches)
    assert padded < 1.1 * sum(lengths[i] for b in batches for i in b)
    assert max(lengths) in [lengths[i] for i in batches[0]]
    order.set_epoch(1)
    assert list(order) != first
