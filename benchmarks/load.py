"""`load_quantized` against the bare `from_pretrained` with the same BitsAndBytesConfig: seconds and peak memory.

    python benchmarks/load.py [MODEL_DIR ...] [--rounds N]

Both run in one process, interleaved, after one load of each that is not counted (imports, file cache). Peak memory
is taken in a fresh process each, because a process's peak never goes down. Without folders, tiny models are built.
The goal: at most 5 % or 0.3 s more time, whichever is larger, and at most 5 % more memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any


def bare(folder: Path, plan: dict[str, Any]) -> Any:
    """What a careful user writes by hand: processor and model, the same quantisation, nothing looked at."""
    import torch
    import transformers

    dtype = getattr(torch, plan["dtype"])
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=plan["kept"],
    )
    processor = getattr(transformers, plan["processor"]).from_pretrained(folder)
    model = getattr(transformers, plan["class"]).from_pretrained(
        folder, quantization_config=config, dtype=dtype, device_map={"": plan["device"]}
    )
    return model, processor


def ours(folder: Path) -> Any:
    from qlora_core import load_quantized

    return load_quantized(folder)


def plan_of(folder: Path) -> dict[str, Any]:
    """The settings that ours chose, so that the bare load gets the same."""
    loaded = ours(folder)
    kept = loaded.model.config.quantization_config.llm_int8_skip_modules
    vision = hasattr(loaded.processor, "image_processor")
    return {
        "dtype": loaded.report.dtype,
        "device": loaded.report.device,
        "kept": kept,
        "class": type(loaded.model).__name__,
        "processor": "AutoProcessor" if vision else "AutoTokenizer",
    }


def peak(folder: Path, plan: dict[str, Any], which: str) -> int:
    """Peak resident bytes of one load in a fresh process."""
    code = [sys.executable, __file__, "--one", which, str(folder), json.dumps(plan)]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    return int(done.stdout.strip().splitlines()[-1])


def one(which: str, folder: Path, plan: dict[str, Any]) -> None:
    kept = bare(folder, plan) if which == "bare" else ours(folder)
    scale = 1 if sys.platform == "darwin" else 1024
    assert kept is not None
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    plan = plan_of(folder)
    bare(folder, plan)
    times: dict[str, list[float]] = {"bare": [], "ours": []}
    phases: dict[str, list[float]] = {}
    for index in range(rounds):
        order = ("bare", "ours") if index % 2 == 0 else ("ours", "bare")
        for which in order:
            gc.collect()
            start = perf_counter()
            loaded = bare(folder, plan) if which == "bare" else ours(folder)
            times[which].append(perf_counter() - start)
            if which == "ours":
                for name, value in loaded.report.seconds.items():
                    phases.setdefault(name, []).append(value)
            del loaded
    memory = {which: peak(folder, plan, which) for which in times}
    middle = {which: statistics.median(values) for which, values in times.items()}
    extra = middle["ours"] - middle["bare"]
    return {
        "model": folder.name,
        "seconds": {w: round(v, 4) for w, v in middle.items()},
        "extra_seconds": round(extra, 4),
        "phases": {name: round(statistics.median(values), 4) for name, values in phases.items()},
        "peak_mib": {w: round(v / 2**20, 1) for w, v in memory.items()},
        "within": extra <= max(0.3, 0.05 * middle["bare"]) and memory["ours"] <= 1.05 * memory["bare"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if given.one:
        which, folder, plan = given.one
        one(which, Path(folder), json.loads(plan))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folders = given.folders
        if not folders:
            from qlora_core.tiny import build

            folders = [build(kind, Path(temporary) / kind) for kind in ("llava", "qwen3", "instructblip_t5")]
        rows = [measure(folder, given.rounds) for folder in folders]
    if given.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(
        f"{'model':<18}{'bare s':>9}{'ours s':>9}{'more s':>9}{'bare MiB':>10}{'ours MiB':>10}  goal   phases of ours"
    )
    for row in rows:
        phases = ", ".join(f"{k} {v:.3f}" for k, v in row["phases"].items())
        print(
            f"{row['model']:<18}{row['seconds']['bare']:>9.3f}{row['seconds']['ours']:>9.3f}{row['extra_seconds']:>9.3f}"
            f"{row['peak_mib']['bare']:>10.0f}{row['peak_mib']['ours']:>10.0f}  "
            f"{'met' if row['within'] else 'MISSED':<6} {phases}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
