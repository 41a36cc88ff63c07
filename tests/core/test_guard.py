"""A run that cannot go well is stopped before the optimizer spoils the adapter, and says where, why and what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from training import arguments, collate, losses, make_rows, tiny_lora


@pytest.fixture
def model(tiny: Callable[..., Path]) -> Any:
    return tiny_lora(tiny("qwen3", "float32"))


def adapter(model: Any) -> dict[str, Any]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def stopped(trainer: Any) -> Any:
    from qlora_core.errors import TrainingStopped

    with pytest.raises(TrainingStopped) as caught:
        trainer.train()
    return caught.value


def test_a_nan_loss_stops_before_the_step_and_keeps_the_last_finite_adapter(
    model: Any, tmp_path: Path, tiny: Callable[..., Path]
) -> None:
    import torch

    from qlora_core.adapters import load_adapter
    from qlora_core.trainer import Trainer

    class Poisoned(Trainer):
        def compute_loss(self, *given: Any, **more: Any) -> Any:
            value = super().compute_loss(*given, **more)
            return value * float("nan") if self.state.global_step == 3 else value

    trainer = Poisoned(model=model, args=arguments(tmp_path), train_dataset=make_rows(), data_collator=collate)
    stop = stopped(trainer)
    assert (stop.kind, stop.step, stop.module) == ("loss", 4, "")
    assert "loss function" in stop.cause and "loss is nan" in str(stop)
    assert len(stop.rows) == 2 and all(row.startswith("row ") for row in stop.rows)
    assert len(losses(trainer)) == 3 and 0.0 not in losses(trainer)
    assert all(bool(torch.isfinite(p).all()) for p in adapter(model).values())
    again = load_adapter(tiny_base(tiny), stop.adapter, trainable=True)
    kept = adapter(again)
    assert kept.keys() == adapter(model).keys()
    assert all(torch.equal(kept[name], value) for name, value in adapter(model).items())


def tiny_base(tiny: Callable[..., Path]) -> Any:
    from qlora_core import load_quantized

    return load_quantized(tiny("qwen3", "float32"), device="cpu", dtype="float32", for_training=True, gate="off").model


def test_the_row_and_the_module_that_made_the_nan_are_named(model: Any, tmp_path: Path) -> None:
    import torch

    from qlora_core.guard import NanGuard
    from qlora_core.trainer import Trainer

    rows = make_rows()
    rows[5] = {"input_ids": [7, 8, 9, 10], "labels": [-100, 8, 9, 10]}
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = float("inf")
    guard = NanGuard(tmp_path, name_rows=lambda places: [f"facts.jsonl row {place + 1}" for place in places])
    args = arguments(tmp_path, train_sampling_strategy="sequential")
    trainer = Trainer(model=model, args=args, train_dataset=rows, data_collator=collate, guard=guard)
    stop = stopped(trainer)
    assert stop.step == 3 and stop.rows == ("facts.jsonl row 5", "facts.jsonl row 6")
    assert stop.module == "model.embed_tokens" and "weights of this module are not finite" in stop.cause


def test_of_accumulated_micro_batches_the_bad_one_is_named(model: Any, tmp_path: Path) -> None:
    import torch

    from qlora_core.trainer import Trainer

    rows = make_rows()
    rows[2] = {"input_ids": [7, 8, 9, 10], "labels": [-100, 8, 9, 10]}
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = float("nan")
    args = arguments(
        tmp_path, train_sampling_strategy="sequential", per_device_train_batch_size=1, gradient_accumulation_steps=4
    )
    stop = stopped(Trainer(model=model, args=args, train_dataset=rows, data_collator=collate))
    assert stop.rows == ("row 3",) and "micro-batch 3 of 4" in stop.what


def test_a_gradient_that_is_not_finite_stops_though_the_loss_is_finite(model: Any, tmp_path: Path) -> None:
    import torch

    from qlora_core.trainer import Trainer

    name, parameter = next((n, p) for n, p in model.named_parameters() if p.requires_grad and "layers.1" in n)
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    trainer = Trainer(model=model, args=arguments(tmp_path), train_dataset=make_rows(), data_collator=collate)
    stop = stopped(trainer)
    assert (stop.kind, stop.step) == ("gradient", 1) and stop.module and stop.module in name
    assert all(bool(torch.isfinite(p).all()) for p in adapter(model).values())


def test_a_run_without_a_label_is_refused_and_not_logged_as_loss_zero(model: Any, tmp_path: Path) -> None:
    from qlora_core.trainer import Trainer

    rows = [{"input_ids": row["input_ids"], "labels": [-100] * len(row["labels"])} for row in make_rows()]
    for route in ("auto", "plain", "answers"):
        args = arguments(tmp_path / route)
        trainer = Trainer(model=model, args=args, train_dataset=rows, data_collator=collate, loss=route)
        stop = stopped(trainer)
        assert (stop.kind, stop.step) == ("labels", 1) and "masked" in stop.what and losses(trainer) == []


def test_float16_adapters_are_refused_with_the_reason(tiny: Callable[..., Path], tmp_path: Path) -> None:
    import torch

    from qlora_core.trainer import Trainer

    model = tiny_lora(tiny("qwen3", "float32"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.half()
    trainer = Trainer(model=model, args=arguments(tmp_path), train_dataset=make_rows(), data_collator=collate)
    stop = stopped(trainer)
    assert stop.kind == "adapter" and "epsilon" in stop.cause and "float32" in stop.remedy
    assert next(p for p in model.parameters() if p.requires_grad).dtype == torch.float16


def test_an_adapter_that_was_saved_after_a_nan_does_not_start(model: Any) -> None:
    import torch

    from qlora_core.errors import TrainingStopped
    from qlora_core.guard import NanGuard

    name, parameter = next((n, p) for n, p in model.named_parameters() if p.requires_grad)
    with torch.no_grad():
        parameter[0, 0] = float("nan")
    with pytest.raises(TrainingStopped, match="not finite before the first step") as caught:
        NanGuard().start(model)
    assert name in str(caught.value)


def test_a_frozen_model_does_not_start(tiny: Callable[..., Path]) -> None:
    from qlora_core.errors import TrainingStopped
    from qlora_core.guard import NanGuard

    with pytest.raises(TrainingStopped, match="nothing in the model is trainable"):
        NanGuard().start(tiny_base(tiny))


def test_the_guard_works_in_a_loop_of_ones_own(model: Any, tmp_path: Path) -> None:
    import torch

    from qlora_core.errors import TrainingStopped
    from qlora_core.guard import NanGuard

    guard = NanGuard(tmp_path)
    guard.start(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    rows = make_rows()
    for step in range(3):
        batch = collate(rows[2 * step : 2 * step + 2])
        loss = model(**batch).loss
        if step == 2:
            loss = loss / 0.0
        loss.backward()
        if step == 2:
            with pytest.raises(TrainingStopped, match="the loss is inf"):
                guard.check(loss, model, optimizer, batch=batch, rows=[4, 5])
        else:
            assert guard.check(loss, model, optimizer, batch=batch) > 0
            optimizer.step()
            optimizer.zero_grad()
    assert (tmp_path / "last-finite" / "adapter_model.safetensors").is_file()
    assert all(p.grad is None for p in model.parameters())


def test_a_scaler_may_skip_a_few_steps_but_not_for_ever(model: Any) -> None:
    from qlora_core.errors import TrainingStopped
    from qlora_core.guard import SCALER_SKIPS, NanGuard

    guard = NanGuard()
    for _ in range(SCALER_SKIPS):
        guard.check(1.0, model, norm=float("inf"), scaled=True)
    with pytest.raises(TrainingStopped, match="gradient norm is inf"):
        guard.check(1.0, model, norm=float("inf"), scaled=True)


def test_running_out_of_memory_is_told_with_the_peak_and_a_way_out(model: Any, tmp_path: Path) -> None:
    import torch

    from qlora_core.guard import NanGuard
    from qlora_core.trainer import Trainer

    class Greedy(Trainer):
        def compute_loss(self, *given: Any, **more: Any) -> Any:
            if self.state.global_step == 3:
                torch.empty(2**50)
            return super().compute_loss(*given, **more)

    args = arguments(tmp_path, save_strategy="steps", save_steps=2)
    stop = stopped(Greedy(model=model, args=args, train_dataset=make_rows(), data_collator=collate))
    assert (stop.kind, stop.step) == ("memory", 4) and stop.peak_bytes > 50 * 2**20 and len(stop.rows) == 2
    assert "per_device_train_batch_size=1 with gradient_accumulation_steps=2" in stop.remedy
    assert stop.resumable and stop.adapter.endswith("checkpoint-2")
    guard = NanGuard(tmp_path / "x", on_oom=lambda peak: f"take --preset 8gb ({peak > 0})")
    greedy = Greedy(
        model=model, args=arguments(tmp_path / "x"), train_dataset=make_rows(), data_collator=collate, guard=guard
    )
    stop = stopped(greedy)
    assert stop.remedy == "take --preset 8gb (True)" and stop.adapter.endswith("last-finite") and not stop.resumable


def test_an_error_that_is_not_memory_is_left_alone(model: Any, tmp_path: Path) -> None:
    from qlora_core.trainer import Trainer

    class Broken(Trainer):
        def compute_loss(self, *given: Any, **more: Any) -> Any:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        Broken(model=model, args=arguments(tmp_path), train_dataset=make_rows(), data_collator=collate).train()


def test_a_loss_that_does_not_fall_is_said_once_with_a_cause(model: Any, tmp_path: Path) -> None:
    from qlora_core.guard import NanGuard
    from qlora_core.trainer import Trainer

    said: list[str] = []
    guard = NanGuard(tmp_path, say=said.append, patience=5)
    rows = [make_rows()[0]] * 8
    args = arguments(tmp_path, learning_rate=0.0, max_steps=12)
    Trainer(model=model, args=args, train_dataset=rows, data_collator=collate, guard=guard).train()
    assert len(said) == 1 and "has not fallen in 5 steps" in said[0] and guard.warnings == said


def test_a_run_that_learns_is_not_warned_about(model: Any, tmp_path: Path) -> None:
    from qlora_core.guard import NanGuard
    from qlora_core.trainer import Trainer

    guard = NanGuard(tmp_path, patience=5)
    trainer = Trainer(
        model=model, args=arguments(tmp_path), train_dataset=make_rows(), data_collator=collate, guard=guard
    )
    trainer.train()
    assert guard.warnings == [] and losses(trainer)[-1] < losses(trainer)[0]


def test_a_gradient_of_exactly_zero_is_said_with_a_cause(model: Any, tmp_path: Path) -> None:
    from qlora_core.guard import NanGuard
    from qlora_core.trainer import Trainer

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: gradient * 0.0)
    said: list[str] = []
    guard = NanGuard(tmp_path, say=said.append)
    Trainer(
        model=model, args=arguments(tmp_path), train_dataset=make_rows(), data_collator=collate, guard=guard
    ).train()
    assert len(said) == 1 and "no gradient reaches the adapters" in said[0]


def test_growing_host_memory_is_said(model: Any) -> None:
    from qlora_core.guard import NanGuard

    said: list[str] = []
    guard = NanGuard(say=said.append, patience=4, leak_bytes=20 * 2**20)
    kept = []
    for step in range(12):
        kept.append(bytearray(b"x" * 8 * 2**20))
        guard.check(10.0 - step, model, norm=1.0)
    assert len(said) == 1 and "host memory" in said[0]


def test_the_scope_report_counts_modules_and_parameters(tiny: Callable[..., Path]) -> None:
    from qlora_core.scope import lora_scope

    scope = lora_scope(tiny_lora(tiny("llava", "float32"), targets=r".*(language_model|vision_tower).*\.q_proj", r=2))
    assert set(scope.modules) == {"language model", "vision tower"} and scope.other_trainable == 0
    assert scope.parameters["language model"] == scope.modules["language model"] * 2 * (64 + 64)
    assert scope.dtypes == ("float32",) and "language model: 2 modules, 512 parameters" in str(scope)


def test_a_memory_cap_is_refused_where_it_is_no_number_and_said_where_there_is_no_gpu() -> None:
    from qlora_core.guard import cap_memory
    from qlora_doctor.errors import UsageError

    with pytest.raises(UsageError, match="more than 0"):
        cap_memory(0)
    assert cap_memory(2**30, "cpu") is False
