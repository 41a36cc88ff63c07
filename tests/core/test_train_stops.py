"""A run that cannot go on, as a person meets it: the command line in a process of its own, its words and its exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

# Everything is imported before the limit, so that it meets the training and not a library.
STARTER = """
import sys, resource, warnings
warnings.simplefilter("ignore")
import accelerate, bitsandbytes, datasets, peft, torch, transformers
from qlora_core.cli import main
room = int(sys.argv.pop(1))
if room:
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + room, held + room))
main()
"""


def command(*words: object, room: int = 0) -> subprocess.CompletedProcess[str]:
    """`qlora-core WORDS`; `room` is the address space in bytes that it may take beyond its libraries, 0 for any."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", STARTER, str(room), *map(str, words)],
        capture_output=True, text=True, env=environment, check=False, timeout=300,
    )  # fmt: skip


def sets(**settings: Any) -> list[str]:
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def write(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def poisoned(copied: Callable[..., Path]) -> Path:
    """A model with one broken row in its embedding: finite, but its square is not."""
    import transformers
    from safetensors.torch import load_file, save_file

    folder = copied("qwen3")
    bad = transformers.AutoTokenizer.from_pretrained(folder).encode("~")[-1]
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][bad] = 3e38
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_run_that_turns_nan_is_stopped_with_its_rows_and_the_last_finite_adapter(
    poisoned: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    rows = [{"prompt": f"What colour is car {n}?", "completion": "the car is red."} for n in range(16)]
    rows[9]["prompt"] = "What colour is ~?"
    output = tmp_path / "out"
    done = command(
        "train", poisoned, write(tmp_path / "rows.jsonl", rows), "--output", output,
        *sets(train_sampling_strategy="sequential", per_device_train_batch_size=2, gradient_accumulation_steps=1,
              logging_steps=1, samples=0, save_strategy="no", lora_r=4),
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "training stopped at step 5" in done.stderr and "rows.jsonl row 9, rows.jsonl row 10" in done.stderr
    assert "nan" in done.stderr and str(output / "last-finite") in done.stderr
    kept = load_file(output / "last-finite" / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert any(tensor.any() for name, tensor in kept.items() if "lora_B" in name), "what four steps taught is in it"
    losses = [json.loads(line) for line in (output / "train_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in losses] == [1, 2, 3, 4] and not (output / "adapter").exists()
    assert json.loads((output / "run.json").read_text())["status"] == "stopped"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to RLIMIT_AS")
def test_memory_that_runs_out_in_a_run_is_told_with_what_fits(tiny: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} " + "what colour is the car? " * 40, "completion": "red."} for n in range(96)]
    output = tmp_path / "out"
    done = command(
        "train", tiny("qwen3"), write(tmp_path / "rows.jsonl", rows), "--output", output,
        *sets(per_device_train_batch_size=96, gradient_accumulation_steps=1, samples=0, lora_r=4,
              attn_implementation="eager"),
        room=450 * 2**20,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "training stopped at step 1: memory ran out on a batch of 96 rows" in done.stderr, done.stderr
    assert "and 88 more" in done.stderr and "DefaultCPUAllocator" in done.stderr
    way = re.search(r"--set per_device_train_batch_size=(\d+) .*--set gradient_accumulation_steps=(\d+)", done.stderr)
    assert way and int(way[1]) < 96 and int(way[1]) * int(way[2]) == 96, done.stderr
    assert json.loads((output / "run.json").read_text())["stopped"]["kind"] == "memory"
    assert [p.name for p in output.iterdir()] == ["run.json"], "an adapter that took no step is not worth a folder"
