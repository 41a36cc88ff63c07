"""Times `qlora-doctor check --model` against a Hub on loopback with latency, and against a local folder of 7B size.

    python benchmarks/hub.py [--runs 5] [--latency 0.05] [--shards 20]

Figures are medians of whole processes: wall seconds and peak memory. `deep` is how many answers came one after the other.
The folder is sparse: the headers are real, the weights are holes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.hub_server import HubServer, hub_server


def write_model(folder: Path, shards: int) -> None:
    """A folder with the tensors of a 7B Llama in so many files, and nothing in them."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    for name in ("tokenizer.json", "generation_config.json"):
        (folder / name).write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "L", "pad_token": "<pad>"}))
    names = [
        f"model.layers.{n}.{p}.weight" for n in range(32) for p in ("q_proj", "k_proj", "v_proj", "o_proj", "gate")
    ]
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        header, end = {}, 0
        for name in names[shard::shards]:
            size = 4096 * 11008 * 2
            header[name] = {"dtype": "BF16", "shape": [4096, 11008], "data_offsets": [end, end + size]}
            end += size
            weight_map[name] = file
        raw = json.dumps(header).encode("ascii")
        with (folder / file).open("wb") as opened:
            opened.write(len(raw).to_bytes(8, "little") + raw)
            opened.truncate(8 + len(raw) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def timed(title: str, arguments: list[str], runs: int, environ: dict[str, str]) -> None:
    wall, peak = [], []
    for _ in range(runs):
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "qlora_doctor", "check", *arguments],
            env=environ,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, _, usage = os.wait4(process.pid, 0)
        wall.append(time.perf_counter() - start)
        peak.append(usage.ru_maxrss / 1024)
    print(f"{title:45} {statistics.median(wall):6.2f} s  {statistics.median(peak):6.0f} MB")


def deep(server: HubServer, latency: float) -> int:
    """How many waves of requests there were: a request that began after the one before had its answer begins a new one."""
    waves, end = 0, 0.0
    for when in server.times:
        if when >= end:
            waves, end = waves + 1, when + latency
    return waves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--shards", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, hub_server(Path(place) / "hub") as server:
        write_model(server.root / "tiny" / "model", options.shards)
        server.latency = options.latency
        environ = {**os.environ, "HF_ENDPOINT": server.address, "HF_HOME": f"{place}/home", "NO_PROXY": "127.0.0.1"}
        environ.pop("HF_HUB_OFFLINE", None)
        for select in (["--select", "QD2", "--select", "QD3"], []):
            what = "QD2 and QD3 only" if select else "all checks"
            server.times.clear()
            timed(
                f"{options.shards} shards on a Hub, {what}", ["--model", "tiny/model", *select], options.runs, environ
            )
            print(
                f"    {len(server.times) // options.runs} requests, {deep(server, options.latency) // options.runs} deep"
            )
            folder = str(server.root / "tiny" / "model")
            timed(f"the same folder here, {what}", ["--model", folder, *select], options.runs, environ)


if __name__ == "__main__":
    main()
