"""Stops a training run at the first number that is not finite, before the optimizer takes the step that would spoil it.

For your own loop:

    guard = NanGuard("out")
    guard.start(model)
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        guard.check(loss, model, batch=batch)       # raises TrainingStopped; the adapter is still whole
        optimizer.step()
        optimizer.zero_grad()
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from qlora_core.errors import TrainingStopped

# Skips in a row that a float16 gradient scaler may take to find its scale: 2**16 is below 1 after 17.
SCALER_SKIPS = 20


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=4)


@dataclass(slots=True)
class NanGuard:
    """The guard of one run.

    Attributes:
        folder: where `last-finite` is written when the run is stopped; None keeps nothing on disk.
        name_rows: turns places in the dataset (from 0) into the user's own words ("train.jsonl row 17").
        say: told each warning once; the default warns. They are in `warnings` too.
        on_oom: given the peak bytes, says what would fit; its words become the remedy.
        patience: steps without a lower loss before that is said; 0 never says it.
        leak_bytes: growth of host memory over `patience` steps that is said; 0 never says it.
    """

    folder: str | Path | None = None
    name_rows: Callable[[Sequence[int]], Sequence[str]] | None = None
    say: Callable[[str], None] = _warn
    on_oom: Callable[[int], str] | None = None
    patience: int = 100
    leak_bytes: int = 2**30
    warnings: list[str] = field(default_factory=list)
    step: int = 0
    losses: deque[float] = field(default_factory=deque)
    _zeros: int = 0
    _skips: int = 0
    _memory: int = 0
    _said: set[str] = field(default_factory=set)

    def start(self, model: Any) -> None:
        """Looks at the adapters before the first step.

        Raises:
            TrainingStopped: nothing is trainable, an adapter is in float16, or it is not finite already.
        """
        from qlora_core.blame import spoiled

        kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad}
        if not kinds:
            self._stop(
                "adapter",
                "nothing in the model is trainable",
                cause="no adapter was attached, or it was loaded frozen",
                remedy="attach(model), or load_adapter(model, folder, trainable=True)",
            )
        if "float16" in kinds:
            self._stop(
                "adapter",
                "the adapter's weights are in float16",
                dtype="float16",
                cause="AdamW's epsilon (1e-8) is 0 in float16: where a gradient is 0 the update is 0/0, NaN at the second "
                "step, at every learning rate",
                remedy="keep adapters in float32: no .half() after get_peft_model, no autocast_adapter_dtype=False; "
                "p.data = p.data.float() for each trainable p repairs it",
            )
        if "bfloat16" in kinds:
            self._once(
                "bf16",
                "the adapter's weights are in bfloat16, which rounds most updates away at small learning rates; "
                "adapters belong in float32",
            )
        if bad := spoiled(model):
            self._stop(
                "adapter",
                f"{len(bad)} of the adapter's tensors are not finite before the first step ({bad[0]})",
                cause="it was saved after a NaN, or made from weights that are not finite",
                remedy="take an older checkpoint",
            )

    def check(
        self,
        loss: Any,
        model: Any,
        optimizer: Any = None,
        *,
        batch: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        rows: Sequence[int] | Sequence[Sequence[int]] = (),
        norm: Any = None,
        scaled: bool = False,
    ) -> float:
        """Between backward and clipping or `optimizer.step()`; returns the gradient norm.

        Args:
            loss: of this step, or of each of its micro-batches (a sequence).
            model: the model that was run.
            optimizer: not needed; its gradients are dropped where the run is stopped.
            batch: what the model was given: run once more to find the first bad module. One for each loss.
            rows: the batch's places in the dataset. One list for each loss.
            norm: the gradient norm, where you have it (clip_grad_norm_ returns it).
            scaled: a float16 gradient scaler skips steps with an infinite norm by itself: only many in a row stop.

        Raises:
            TrainingStopped: a loss or gradient is not finite, or no label is learned.
        """
        import torch

        self.step += 1
        values = [x.detach() if torch.is_tensor(x) else torch.tensor(float(x)) for x in _listed(loss)]
        if norm is None:
            norm = gradient_norm(model.parameters())
        if not torch.is_tensor(norm):
            norm = torch.tensor(float(norm))
        if hasattr(norm, "full_tensor"):
            # Sharded gradients (FSDP2) give a sharded norm; every process comes here, so all can put it together.
            norm = norm.full_tensor()
        place = values[0].device
        # One wait for the device, not one for each number.
        numbers: list[float]
        length: float
        *numbers, length = torch.stack([*(v.float().reshape(()) for v in values), norm.float().to(place)]).tolist()
        mean = fmean(numbers)
        batches = [batch] if isinstance(batch, Mapping) else list(batch or ())
        places = [list(r) for r in rows if not isinstance(r, int)] or [[r for r in rows if isinstance(r, int)]]
        if not (mean and math.isfinite(mean)) and not (length and math.isfinite(length)) and _all_masked(batches):
            self.step -= 1
            self.masked([row for part in places for row in part])
        first = next((at for at, number in enumerate(numbers) if not math.isfinite(number)), None)
        if first is not None:
            mine = places[first] if len(places) == len(numbers) else places[0]
            self._not_finite(
                "loss", f"the loss is {_word(numbers)}", model, optimizer, batches[first : first + 1], mine
            )
        if not math.isfinite(length):
            self._skips += 1
            if not scaled or self._skips > SCALER_SKIPS:
                mine = [row for part in places for row in part]
                self._not_finite("gradient", f"the gradient norm is {length}", model, optimizer, batches, mine)
            return length
        self._skips = 0
        self._watch(mean, length)
        return length

    def _not_finite(
        self,
        kind: str,
        what: str,
        model: Any,
        optimizer: Any,
        batches: Sequence[Mapping[str, Any]],
        rows: Sequence[int],
    ) -> None:
        from qlora_core.blame import blame

        found = blame(model, batches, kind, [*self.losses])
        if optimizer is not None:
            optimizer.zero_grad()
        self._stop(
            kind,
            what,
            model=model,
            rows=rows,
            module=found.module,
            dtype=found.dtype,
            cause=found.cause,
            remedy=found.remedy,
        )

    def masked(self, rows: Sequence[int] = ()) -> None:
        """Stops a run whose step has no label to learn from."""
        self.step += 1
        self._stop(
            "labels",
            "every label of the batch is masked (-100): the loss would be 0.0 and nothing would be learned",
            rows=rows,
            cause="the answers were cut off by max_length, or no turn of these rows is an assistant's",
            remedy="`qlora-core data` shows which part of each row is learned; raise max_length or drop these rows",
        )

    def _stop(self, kind: str, what: str, *, model: Any = None, rows: Sequence[int] = (), **more: Any) -> None:
        from qlora_core.checkpoints import keep_finite

        kept = keep_finite(model, self.folder) if model is not None and self.folder is not None else None
        where = str(kept) if kept else None
        raise TrainingStopped(kind, what, step=self.step, rows=self.named(rows), adapter=where, **more)

    def named(self, rows: Sequence[int]) -> Sequence[str]:
        """Places in the dataset in the user's words; without `name_rows` they are said as "row 17", counted from 1."""
        return self.name_rows(rows) if self.name_rows and rows else [f"row {row + 1}" for row in rows]

    def _watch(self, loss: float, norm: float) -> None:
        self._zeros = self._zeros + 1 if norm == 0.0 else 0
        if self._zeros == 3:
            self._once(
                "zero",
                "the gradient norm is exactly 0 for 3 steps: no gradient reaches the adapters. Reentrant activation "
                "checkpointing without gradients on the inputs does that (use_reentrant=False), and so does a model in "
                "which the adapters are not on the way to the loss",
            )
        self.losses.append(loss)
        if self.patience and len(self.losses) > self.patience:
            self.losses.popleft()
            self._look_back()
        if self.leak_bytes and self.patience and self.step % self.patience == 0:
            self._host_memory()

    def _look_back(self) -> None:
        past = [*self.losses]
        fifth = max(1, len(past) // 5)
        before, after = fmean(past[:fifth]), fmean(past[-fifth:])
        if self.step == self.patience + 1 and after >= before * 0.999 and self._zeros == 0:
            self._once(
                "flat",
                f"the loss has not fallen in {self.patience} steps ({before:.4g} -> {after:.4g}): the learning rate is "
                "too low or far too high, or the labels do not follow from the inputs",
            )

    def _host_memory(self) -> None:
        now = resident_bytes()
        if self._memory and now > self._memory + self.leak_bytes:
            grown = (now - self._memory) / 2**30
            self._once(
                "leak",
                f"this process grew by {grown:.1f} GiB of host memory in {self.patience} steps: something keeps every "
                "batch (a list of losses with their graphs, a dataset that caches decoded images, worker processes)",
            )
        # The first window holds caches and warm-up; growth counts from its end.
        self._memory = self._memory or now

    def has_said(self, key: str) -> bool:
        """Whether the warning `flat` (the loss does not fall), `zero` (no gradient), `leak` or `bf16` was given."""
        return key in self._said

    def _once(self, key: str, text: str) -> None:
        if key not in self._said:
            self._said.add(key)
            self.warnings.append(text)
            self.say(text)


def gradient_norm(parameters: Iterable[Any]) -> Any:
    """The norm of all gradients together, as a 0-dimensional tensor; 0 where there are none."""
    import torch

    grads = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(grads) if grads else torch.zeros(())


def resident_bytes() -> int:
    """What this process holds of host memory now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    import os

    return pages * os.sysconf("SC_PAGE_SIZE")


def cap_memory(limit: int, device: Any = None) -> bool:
    """Lets torch take at most `limit` bytes of a GPU, so that a smaller card can be tried. False on a CPU: no cap there.

    Raises:
        UsageError: the limit is not positive.
    """
    import torch

    from qlora_doctor.errors import UsageError

    if limit <= 0:
        raise UsageError(f"max_memory is {limit} bytes; it must be more than 0")
    if not torch.cuda.is_available() or (device is not None and torch.device(device).type != "cuda"):
        return False
    whole = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / whole), device)
    return True


def _listed(loss: Any) -> Sequence[Any]:
    return loss if isinstance(loss, (list, tuple)) else [loss]


def _all_masked(batches: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there are labels, and none of them is learned."""
    labels = [batch["labels"] for batch in batches if batch.get("labels") is not None]
    return bool(labels) and not any(bool((part != -100).any()) for part in labels)


def _word(numbers: Sequence[float]) -> str:
    bad = next(n for n in numbers if not math.isfinite(n))
    place = "" if len(numbers) == 1 else f" in micro-batch {list(numbers).index(bad) + 1} of {len(numbers)}"
    return f"{bad}{place}"
