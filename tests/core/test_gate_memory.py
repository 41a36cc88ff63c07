"""The gate and the memory plan: a load that cannot fit is refused, or made smaller, before a weight is downloaded.

The world's edge is made up: NVIDIA's library tells of a small card, and torch is a build for CUDA that must not be imported.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.gather import probe
from qlora_doctor.memory.known import MODELS
from tests.hub_server import hub_server

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
from qlora_core import load_quantized
try:
    load_quantized(sys.argv[1], **json.loads(sys.argv[2]))
except Exception as error:
    print(type(error).__name__, error)
"""
REACHED = "torch was imported: the gate had let the load through"
Load = Callable[..., str]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """`load(model, total=8, free=7, **arguments)`: what a load on a machine with such a card says, in a process of its own."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or probe.nvidia_traces():
        pytest.skip("no C compiler, or a driver of its own here")
    driver, torch = tmp_path / "driver", tmp_path / "python" / "torch"
    driver.mkdir()
    torch.mkdir(parents=True)
    (tmp_path / "cuda.c").write_text("int cuInit(unsigned flags) { return 0; }\n")
    stub = ROOT / "tests" / "gather" / "nvml_stub.c"
    for source, name in ((stub, "libnvidia-ml.so.1"), (tmp_path / "cuda.c", "libcuda.so.1")):
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(driver / name), str(source)], check=True)
    (torch / "__init__.py").write_text(f"raise ImportError({REACHED!r})\n")
    (torch / "version.py").write_text("__version__ = '2.13.0'\ncuda = '13.0'\nhip = None\nxpu = None\n")
    for name, value in (("LD_LIBRARY_PATH", driver), ("NVML_ANSWERS", tmp_path / "gpus.json"), ("HF_HOME", tmp_path)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (torch.parent, ROOT, ROOT / "checks"))))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)

    def run(model: str, total: int = 8, free: int = 7, **arguments: Any) -> str:
        gpu = {
            "name": "NVIDIA GeForce RTX 4060",
            "major": 8,
            "minor": 9,
            "total": total,
            "free": free,
            "mig": 0,
            "mode": 0,
        }
        answers = {"driver": "580.95.05", "cuda": 13000, "gpus": [gpu]}
        (tmp_path / "gpus.json").write_text(json.dumps(answers))
        # The hole holds no tensors, which is another check's matter.
        command = [sys.executable, "-c", PROGRAM, model, json.dumps({"fixes": {"QD323": False}, **arguments})]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        return done.stdout

    return run


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with hub_server(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def folder(place: Path, stem: str, **config: Any) -> Path:
    """A model of a shipped shape as its publisher lays it out; its weights are a hole behind a good header."""
    place.mkdir(parents=True)
    shape = json.loads((MODELS / f"{stem}.json").read_text(encoding="utf-8"))["config"]
    (place / "config.json").write_text(json.dumps({**shape, **config}))
    (place / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    (place / "tokenizer.json").write_text("{}")
    size = 64 * 2**20
    tensors = {"lm_head.weight": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}
    for name in ("model.embed_tokens", "model.layers.0.mlp.up_proj", "visual.blocks.0.attn.qkv", "visual.merger.mlp.0"):
        tensors[f"{name}.weight"] = {"dtype": "BF16", "shape": [0], "data_offsets": [size, size]}
    header = json.dumps(tensors).encode()
    with (place / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    return place


def test_a_model_of_the_hub_that_cannot_fit_is_refused_with_the_figures_and_nothing_is_downloaded(
    load: Load, hub: Any, tmp_path: Path
) -> None:
    folder(hub.root / "someone" / "big", "qwen2.5-32b")
    said = load("someone/big")
    assert said.startswith("LoadBlocked") and "QD501 someone/big: its 4-bit weights alone take 17.9 GiB" in said
    assert "NVIDIA GeForce RTX 4060 has 8.0 GiB" in said and "qlora-doctor plan --gpu 8gb" in said
    assert not list(tmp_path.rglob("blobs/*.incomplete")) and not (tmp_path / "hub" / "models--someone--big").exists()


def test_a_folder_that_cannot_fit_is_refused_before_torch_is_imported(load: Load, tmp_path: Path) -> None:
    said = load(str(folder(tmp_path / "model", "qwen2.5-14b")))
    assert said.startswith("LoadBlocked") and "QD501" in said and REACHED not in said


def test_a_model_that_fits_goes_through_the_gate(load: Load, tmp_path: Path) -> None:
    said = load(str(folder(tmp_path / "model", "qwen3-8b")))
    assert REACHED in said and "QD5" not in said


def test_8_bits_that_do_not_fit_are_refused_and_4_are_offered(load: Load, tmp_path: Path) -> None:
    said = load(str(folder(tmp_path / "model", "qwen3-8b")), bits=8)
    assert said.startswith("LoadBlocked") and "its 8-bit weights alone take 8.8 GiB" in said
    assert "these would load instead: bits=4" in said


def test_16_bits_that_do_not_fit_are_refused_too(load: Load, tmp_path: Path) -> None:
    said = load(str(folder(tmp_path / "model", "qwen3-8b")), bits=16)
    assert said.startswith("LoadBlocked") and "16-bit weights alone take 15.3 GiB" in said and "bits=4" in said


def test_the_vision_tower_is_quantised_where_only_that_makes_the_load_fit(load: Load, tmp_path: Path) -> None:
    model = str(folder(tmp_path / "model", "qwen2.5-vl-7b-instruct"))
    assert REACHED in load(model, total=6, free=6)
    assert load(model, total=4, free=4).startswith("LoadBlocked")


def test_with_the_gate_only_reporting_nothing_is_refused(load: Load, tmp_path: Path) -> None:
    assert REACHED in load(str(folder(tmp_path / "model", "qwen2.5-14b")), gate="report")


def test_a_quantised_load_of_which_a_part_would_go_to_the_cpu_is_put_on_the_card(load: Load, tmp_path: Path) -> None:
    model = str(folder(tmp_path / "model", "qwen3-8b"))
    assert REACHED in load(model, total=6, free=6, device_map="auto")
