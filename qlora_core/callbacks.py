"""What a run says while it trains: train_log.jsonl, a progress line, and the memory it took. Import it late: it brings torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

import torch
import transformers

from qlora_core.errors import show_size
from qlora_core.trainer import peak_resident_bytes
from qlora_doctor.i18n import said, tr

LOG = "train_log.jsonl"


@dataclass(slots=True)
class Meter:
    """What was measured of a run: losses by step, seconds of each step, tokens read, and the peak of memory in bytes."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    evals: list[tuple[int, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    tokens: int = 0
    device: str = "cpu"

    def start(self) -> None:
        """Begins to measure anew on a GPU; a host keeps one peak for the whole process."""
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()

    @property
    def peak(self) -> dict[str, int]:
        """`allocated` and `reserved` on the GPU; `resident` of the process on a CPU."""
        if self.device.startswith("cuda"):
            return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        return {"resident": peak_resident_bytes()}

    @property
    def step_seconds(self) -> float | None:
        """The median time of a step; the first, which warms caches, does not count."""
        times = sorted(self.seconds[1:] or self.seconds)
        return times[len(times) // 2] if times else None


class RunLog(transformers.TrainerCallback):  # type: ignore[misc]
    """Writes a line of JSON for each log, measures, and tells how far the run is.

    `out` None writes no file; `show` None prints nothing. Only the first process does either.
    """

    def __init__(self, meter: Meter, out: Path | None, show: TextIO | None) -> None:
        self.meter, self.out, self.show = meter, out, show
        self.began = self.step_began = self.last = perf_counter()
        self.first = self.seen = 0
        self.drawn = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = self.last = self.step_began = perf_counter()
        self.first, self.seen = state.global_step, state.num_input_tokens_seen
        self.meter.start()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step_began = perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.meter.seconds.append(perf_counter() - self.step_began)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        logs = dict(logs or {})
        if not state.is_world_process_zero or "train_loss" in logs:
            return
        logs = {k: v for k, v in logs.items() if not k.startswith("train_")}
        step = state.global_step
        if "loss" in logs:
            self.meter.losses.append((step, float(logs["loss"])))
            self.meter.norms.append(float(logs.get("grad_norm", 1.0)))
        if "eval_loss" in logs:
            self.meter.evals.append((step, float(logs["eval_loss"])))
        self.meter.tokens = int(state.num_input_tokens_seen)
        line = {"step": step, **{k: float(v) if torch.is_tensor(v) else v for k, v in logs.items()}}
        line |= {"tokens_per_second": round(self._speed(state), 1), "memory": self.meter.peak}
        if self.out is not None:
            with open(self.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self.show is not None:
            self._print(self._line(line, state))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.drawn and self.show is not None:
            print(file=self.show)

    def _speed(self, state: Any) -> float:
        now, tokens = perf_counter(), int(state.num_input_tokens_seen)
        speed = (tokens - self.seen) / max(1e-9, now - self.last)
        self.last, self.seen = now, tokens
        return speed

    def _line(self, logs: Mapping[str, Any], state: Any) -> str:
        done, total = state.global_step, max(1, state.max_steps)
        words = [f"step {done}/{total}"]
        words += [f"{n.replace('_', ' ')} {logs[n]:.4g}" for n in ("loss", "eval_loss") if n in logs]
        words += [f"{logs['tokens_per_second']:.0f} tokens/s", show_size(max(self.meter.peak.values()))]
        if done > self.first:
            left = (perf_counter() - self.began) / (done - self.first) * (total - done)
            words.append(tr("{clock} left", clock=_clock(left)))
        return "  ".join(said(word) for word in words)

    def _print(self, line: str) -> None:
        assert self.show is not None
        if not self.show.isatty():
            print(line, file=self.show, flush=True)
            return
        # One line that is drawn over; what is left of a longer one before it is cleared.
        self.drawn = True
        print(f"\r\x1b[2K{line}", end="", file=self.show, flush=True)


def screen(wanted: bool) -> TextIO | None:
    """Where progress goes: stderr, so that a result on stdout can be piped."""
    return sys.stderr if wanted else None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
