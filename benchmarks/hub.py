"""Times `qlora-doctor check --model` against a Hub on loopback with latency, and against a local folder of 7B size.

    python benchmarks/hub.py [--runs 5] [--latency 0.05] [--shards 20]
    python benchmarks/hub.py --matrix

Figures are of whole processes: wall seconds (median, maximum), peak memory, and the least seconds of CPU. `deep` is how many answers came one after
the other. `cold` knows nothing of the repository, `warm` has asked for it before. The weights are on a second host, to which
the Hub redirects. The folder is sparse: the headers are real, the weights are holes. `--matrix` prints what `check` makes of
each way in which a Hub can misbehave, as a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
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


def timed(title: str, arguments: list[str], runs: int, environ: dict[str, str], before: Callable[[], None]) -> None:
    wall, peak, work = [], [], []
    for _ in range(runs):
        before()
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
        work.append(usage.ru_utime + usage.ru_stime)
    print(
        f"{title:45} {statistics.median(wall):6.2f} s (max {max(wall):.2f})  {max(peak):6.0f} MB  {min(work):5.2f} s of CPU"
    )


def deep(times: Sequence[float], latency: float) -> int:
    """How many waves of requests there were: a request that began after the one before had its answer begins a new one."""
    waves, end = 0, 0.0
    for when in sorted(times):
        if when >= end:
            waves, end = waves + 1, when + latency
    return waves


def speed(runs: int, latency: float, shards: int) -> None:
    with (
        tempfile.TemporaryDirectory() as place,
        hub_server(Path(place) / "hub") as server,
        hub_server(Path(place) / "hub") as storage,
    ):
        write_model(server.root / "tiny" / "model", shards)
        server.latency = storage.latency = latency
        server.storage = storage.address
        kept = Path(place) / "kept"
        environ = {
            **os.environ,
            "HF_ENDPOINT": server.address,
            "HF_HOME": f"{place}/home",
            "NO_PROXY": "127.0.0.1",
            "QLORA_DOCTOR_CACHE": str(kept),
        }
        environ.pop("HF_HUB_OFFLINE", None)

        def cold() -> None:
            # What is known of the installed packages is another matter, and stays.
            shutil.rmtree(kept / "hub", ignore_errors=True)
            warm()

        def warm() -> None:
            server.times.clear()
            storage.times.clear()

        for select in (["--select", "QD2", "--select", "QD3"], []):
            what = "QD2 and QD3" if select else "all checks"
            for word, before in (("cold", cold), ("warm", warm)):
                title = f"{shards} shards on a Hub, {what}, {word}"
                timed(title, ["--model", "tiny/model", *select], runs, environ, before)
                times = [*server.times, *storage.times]
                print(f"    {len(times)} requests, {deep(times, latency)} deep")
            folder = str(server.root / "tiny" / "model")
            timed(f"the same folder here, {what}", ["--model", folder, *select], runs, environ, warm)


def matrix() -> None:
    from qlora_doctor.examine import Question, examine
    from tests.models.conftest import NAME, TEXT_NAMES, Folder
    from tests.models.matrix import MATRIX

    print("| the Hub | where | seconds | code | what `check` says |\n|---|---|---|---|---|")
    for row in MATRIX:
        with tempfile.TemporaryDirectory() as place, hub_server(Path(place) / "hub") as server:
            folder = Folder(server.root / "tiny" / "model")
            folder.json("config.json", {"model_type": "llama"})
            folder.json("tokenizer.json", {"version": "1.0"})
            folder.json("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "pad_token": "<pad>"})
            folder.weights(*TEXT_NAMES)
            with hub_server(server.root) as storage:
                row.arrange(server, storage)
                os.environ |= {
                    "HF_ENDPOINT": server.address,
                    "HF_HOME": f"{place}/home",
                    "NO_PROXY": "127.0.0.1",
                    "QLORA_DOCTOR_CACHE": f"{place}/kept",
                }
                start = time.perf_counter()
                answer = examine(Question(model=NAME, select=("QD2", "QD3")))
                took = time.perf_counter() - start
                hosts = {server.address: "HUB", storage.address: "STORAGE", hub_host(server): "HUB"}
        for found in answer.verdict.findings:
            text = found.text
            for address, name in hosts.items():
                text = text.replace(address, name)
            text = text.replace(hub_host(storage), "STORAGE")
            print(f"| {row.wrong} | {row.where} | {took:.1f} | {found.code} | {text} |")


def hub_host(server: HubServer) -> str:
    return server.address.partition("//")[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--matrix", action="store_true")
    options = parser.parse_args()
    if options.matrix:
        matrix()
    else:
        speed(options.runs, options.latency, options.shards)


if __name__ == "__main__":
    main()
