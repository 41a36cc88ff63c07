"""transformers.Trainer in which the silent failures cannot happen: import it late, it brings torch along.

What differs: the loss skips what nobody learns from (`loss.py`), every step is guarded before the optimizer moves
(`guard.py`), checkpoints are whole or absent (`checkpoints.py`), and a resumed run sees the very batches and random
numbers that an uninterrupted one would have.
"""

from __future__ import annotations

import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import DistributedType
from transformers import trainer_utils

from qlora_core import checkpoints
from qlora_core import loss as losses
from qlora_core.errors import TrainingStopped
from qlora_core.guard import NanGuard, gradient_norm, resident_bytes
from qlora_core.order import ROWS, Collated, LengthOrder, Numbered, lengths_of
from qlora_doctor.errors import UsageError


class Trainer(transformers.Trainer):  # type: ignore[misc]
    """As transformers.Trainer, with four more keywords.

    Args:
        guard: of this run; None makes one that keeps the last finite adapter under `output_dir`.
        loss: "auto", "plain", "chunked" or "answers" (see `loss.choose`); `route` says what was taken and why.
        save_epochs: a checkpoint every so many epochs, beside what `save_strategy` says.
        run: what identifies this run beside its settings (data, model); a checkpoint of another is not resumed.

    Raises:
        UsageError: a loss that this model cannot take, or a checkpoint that cannot be resumed.
        TrainingStopped: from `train`, see there.
    """

    # While a checkpoint is being written: the folder that stands for the output folder.
    _writing: Path | None = None
    data_collator: Any

    def __init__(
        self,
        *given: Any,
        guard: NanGuard | None = None,
        loss: str = "auto",
        save_epochs: int | None = None,
        run: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(*given, **more)
        self.guard = guard or NanGuard(self.args.output_dir)
        self.route = self._route(loss)
        if not self.is_world_process_zero() or self.is_fsdp_enabled:
            # One process writes; and a sharded adapter is not in any one of them.
            self.guard.folder = None
        self.save_epochs = save_epochs
        self.extra_run = dict(run or {})
        # A NaN shown as 0.0 is how a spoilt run passes for a good one.
        self.args.logging_nan_inf_filter = False
        if self.route.name != "plain":
            self.model_accepts_loss_kwargs = True
        # The count must be of the positions that `losses.supervised` gives.
        self._loss_shifts_labels = losses.shifts_labels(self.model)
        if not self._loss_shifts_labels and self.route.name == "plain":
            # T5 answers with a mean whatever it is told; transformers takes that for a share of the whole batch.
            self.model_accepts_loss_kwargs = False
        self._micro: list[torch.Tensor] = []
        self._batches: list[tuple[dict[str, Any], list[int]]] = []
        self._norm: Any = None
        self._learned: list[torch.Tensor] = []
        self._per_token: int | None = None
        self._loss_only = False
        self._signal = 0
        self.add_callback(_Steps(self))

    def _route(self, wanted: str) -> losses.Route:
        if self.compute_loss_func is not None:
            return losses.Route("plain", "compute_loss_func wants the logits")
        if self.args.n_gpu > 1:
            return losses.Route(
                "plain", "DataParallel copies the model to each GPU; start one process for each instead"
            )
        return losses.choose(self.model, wanted)

    def train(self, resume_from_checkpoint: Any = None, *given: Any, **more: Any) -> Any:
        """Trains. `resume_from_checkpoint`: a folder, or True for the newest whole checkpoint of `output_dir`.

        Raises:
            TrainingStopped: a loss or gradient was not finite, memory or disk ran out, or a signal ended it (its
                `exit_code` is 143 or 130); what was learned is kept and named.
            UsageError: the checkpoint cannot be resumed, with what is missing or differs.
        """
        run = Path(self.args.output_dir)
        if self.is_world_process_zero() and run.is_dir():
            checkpoints.sweep(run)
        if resume_from_checkpoint is True:
            found = checkpoints.latest(run)
            if found is None:
                raise UsageError(f"{run} has no checkpoint that can be resumed")
            resume_from_checkpoint = str(found)
        if resume_from_checkpoint:
            checkpoints.judge_resume(Path(resume_from_checkpoint), self.describe())
        self.guard.start(self.model)
        # A walk over all modules at every step costs as much as the optimizer.
        self._learned = [p for p in self.model.parameters() if p.requires_grad]
        with self._signals():
            try:
                done = super().train(resume_from_checkpoint or None, *given, **more)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                raise self._memory_stopped(error) from error
            finally:
                self._batches, self._micro, self._norm = [], [], None
        if self._signal:
            raise self._signal_stopped()
        return done

    def describe(self) -> dict[str, Any]:
        """What identifies this run: written into each checkpoint, and compared when one is resumed."""
        args = self.args
        config = getattr(self.model, "peft_config", {}).get("default")
        rows = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None
        settings = {
            "rows": rows,
            "seed": args.seed,
            "batch": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "optim": str(getattr(args.optim, "value", args.optim)),
            "learning_rate": args.learning_rate,
            "order": str(args.train_sampling_strategy),
            "model": str(getattr(self.model.config, "_name_or_path", "")),
            "model_type": str(getattr(self.model.config, "model_type", "")),
        }
        if config is not None:
            targets = config.target_modules
            settings["r"] = config.r
            settings["targets"] = targets if isinstance(targets, str) else sorted(targets or ())
        return {**settings, **self.extra_run}

    # -- the loss -----------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        inputs = {name: value for name, value in inputs.items() if name != ROWS}
        thrifty = "labels" in inputs and self.label_smoother is None and (not return_outputs or self._loss_only)
        if self.route.name == "answers" and thrifty:
            inputs = losses.answer_columns(inputs)
        if self.route.name != "chunked" or not thrifty:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        value = losses.chunked_call(model, inputs, num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # The count is of all processes, and their gradients are averaged.
            value = value * self.accelerator.num_processes
        return (value, {"loss": value}) if return_outputs else value

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, *given: Any, **more: Any) -> Any:
        self._loss_only = prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, *given, **more)
        finally:
            self._loss_only = False

    # -- the guard ----------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        rows = inputs.pop(ROWS, None)
        self._batches.append((inputs, [] if rows is None else rows.tolist()))
        value: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._micro.append(value)
        return value

    def _clip_grad_norm(self, model: Any) -> Any:
        if not self._own_norm(model):
            return super()._clip_grad_norm(model)
        norm = self._guarded_norm()
        torch.nn.utils.clip_grads_with_norm_(self._learned, self.args.max_grad_norm, norm)
        return norm

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is None and self._own_norm(model):
            return self._guarded_norm()
        self._norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return self._norm

    def _own_norm(self, model: Any) -> bool:
        """Whether the gradients are plain tensors of this process; sharded and scaled ones stay with accelerate."""
        kinds = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
        plain = self.accelerator.distributed_type in kinds and getattr(self.accelerator, "scaler", None) is None
        return plain and not self._has_mixed_mesh_grads(model)

    def _guarded_norm(self) -> Any:
        # Asked before clipping, which would spread one NaN over all gradients and hide where it was.
        self._norm = gradient_norm(self._learned)
        self.before_step()
        return self._norm

    def before_step(self) -> None:
        """Asks the guard, between the last backward and the optimizer's step; once a step."""
        if not self._micro:
            return
        self.guard.step = self.state.global_step
        scaler = getattr(self.accelerator, "scaler", None)
        batches, rows = [batch for batch, _ in self._batches], [rows for _, rows in self._batches]
        self.guard.check(self._micro, self.model, batch=batches, rows=rows, norm=self._norm, scaled=scaler is not None)
        self._micro, self._batches = [], []

    def _memory_stopped(self, error: BaseException) -> TrainingStopped:
        shape = self._batches[-1][0].get("input_ids") if self._batches else None
        rows = self._batches[-1][1] if self._batches else []
        what = "memory ran out"
        if shape is not None:
            what += f" on a batch of {shape.shape[0]} rows x {shape.shape[1]} tokens"
        self.model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
            torch.cuda.empty_cache()
        else:
            peak = peak_resident_bytes()
        remedy = self.guard.on_oom(peak) if self.guard.on_oom else self._thriftier()
        return TrainingStopped(
            "memory",
            what,
            step=self.state.global_step + 1,
            rows=self.guard.named(rows),
            cause=str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__,
            remedy=remedy,
            peak_bytes=peak,
            **self._kept(),
        )

    def _thriftier(self) -> str:
        args, ways = self.args, []
        if args.per_device_train_batch_size > 1:
            ways.append(
                f"per_device_train_batch_size={args.per_device_train_batch_size // 2} with "
                f"gradient_accumulation_steps={args.gradient_accumulation_steps * 2} (the same learning)"
            )
        if not getattr(losses.unwrap(self.model), "is_gradient_checkpointing", False):
            ways.append("activation checkpointing")
        if self.route.name == "plain":
            ways.append('loss="auto"')
        return "; ".join([*ways, "a smaller max_length", "a smaller r"])

    def _kept(self) -> dict[str, Any]:
        """The newest whole checkpoint; without one, the adapter as it is now, where it has learned anything."""
        found = checkpoints.latest(Path(self.args.output_dir))
        if found is not None:
            return {"adapter": str(found), "resumable": True}
        if not self.state.global_step:
            return {}
        kept = checkpoints.keep_finite(self.model, self.guard.folder) if self.guard.folder else None
        return {"adapter": str(kept) if kept else None}

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        # The same number for each token of the run; counting all parameters at every step costs 3 % of a small one.
        if self._per_token is None:
            ids = torch.zeros((1, 1), dtype=torch.long)
            self._per_token = int(super().floating_point_ops({"input_ids": ids}))
        ids = inputs.get("input_ids")
        return 0 if ids is None else self._per_token * ids.numel()

    # -- the data -----------------------------------------------------------------------------------------------

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> Any:
        rest = (batch_size, sampler_fn, is_training, dataloader_key)
        if not is_training or isinstance(dataset, torch.utils.data.IterableDataset):
            return super()._get_dataloader(dataset, description, *rest)
        if hasattr(dataset, "column_names"):
            dataset = self._remove_unused_columns(dataset, description=description)
        plain: Any = self.data_collator
        self.data_collator = Collated(self._get_collator_with_removed_columns(plain, description=description))
        try:
            return super()._get_dataloader(Numbered(dataset), description, *rest)
        finally:
            self.data_collator = plain

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        dataset = dataset.items if isinstance(dataset, Numbered) else dataset
        if self.args.train_sampling_strategy != "group_by_length" or not hasattr(dataset, "__len__"):
            return super()._get_train_sampler(dataset)
        lengths, kinds = lengths_of(dataset)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthOrder(lengths, batch, kinds=kinds, seed=seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if self.args.train_sampling_strategy != "group_by_length" or not hasattr(eval_dataset, "__len__"):
            return super()._get_eval_sampler(eval_dataset)
        return torch.utils.data.SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    # -- checkpoints and signals --------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._writing) if self._writing is not None else str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(super()._get_output_dir(trial))
        place = run / f"checkpoint-{self.state.global_step}"
        self._writing = checkpoints.staging(place)
        push, self.args.push_to_hub = self.args.push_to_hub, False
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            run.mkdir(parents=True, exist_ok=True)
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._settle(self._writing / place.name, place)
        except Exception as error:
            if not checkpoints.is_write_error(error):
                raise
            raise checkpoints.write_stopped(error, run, self.state.global_step) from error
        finally:
            self.args.push_to_hub, self.args.save_total_limit = push, limit
            if self.args.should_save:
                shutil.rmtree(self._writing, ignore_errors=True)
            self._writing = None
        self.accelerator.wait_for_everyone()
        if push:
            self._push_from_checkpoint(str(place))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            trainer_utils.rotate_checkpoints(
                output_dir=str(run), save_total_limit=limit, best_model_checkpoint=best, use_mtime=False
            )

    def _settle(self, written: Path, place: Path) -> None:
        if self.state.best_model_checkpoint == str(written):
            self.state.best_model_checkpoint = str(place)
            self.state.save_to_json(str(written / checkpoints.STATE_FILE))
        checkpoints.write_run(written, self.describe())
        checkpoints.settle(written, place)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask for a checkpoint and an end; a second SIGINT ends at once."""
        self._signal = 0
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, _: Any) -> None:
            if self._signal and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._signal = number

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                # None: it was installed by something that is not Python, and cannot be given back.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def asked_to_stop(self) -> bool:
        """Whether any process of the run got a signal; all must agree, since saving is done together."""
        if self.args.world_size > 1:
            flag = torch.tensor([float(self._signal)], device=self.args.device)
            self._signal = int(self.accelerator.gather(flag).max().item())
        return bool(self._signal)

    def _signal_stopped(self) -> TrainingStopped:
        name = signal.Signals(self._signal).name
        return TrainingStopped(
            "signal",
            f"{name} received",
            step=self.state.global_step,
            remedy="resume with the same command and --resume",
            exit_code=128 + self._signal,
            **self._kept(),
        )


class _Steps(transformers.TrainerCallback):  # type: ignore[misc]
    """Calls the trainer at the two moments at which it must act."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.before_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if self.trainer.asked_to_stop():
            control.should_save = control.should_training_stop = True
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        every = self.trainer.save_epochs
        done = state.epoch or 0.0
        # A run that ends within an epoch comes here too.
        if every and abs(done - round(done)) < 1e-6 and round(done) % every == 0:
            control.should_save = True
        return control


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception is memory running out, on a GPU or on the host."""
    text = str(error)
    words = ("CUDA out of memory", "DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in text for word in words)


def peak_resident_bytes() -> int:
    """The most host memory this process ever held; what it holds now where the system keeps no peak."""
    try:
        import resource
    except ImportError:
        return resident_bytes()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
