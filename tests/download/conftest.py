"""A Hub on loopback with one small model, and a download from it that loses its patience quickly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.download import Downloaded, Patience, download
from tests.hub_server import HubServer, hub_server

# Some seconds, where a user would be given minutes.
QUICK = Patience(connect=2, stall=0.7, floor=1000, attempts=8, first=0.01, longest=0.2)
MODEL = "org/tiny"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the user's address, token and proxy, nor the mirrors."""
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QLORA_DOCTOR_MIRRORS", "")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A running server with MODEL: a config, two shards and their index, a pickle, and what no load reads."""
    folder = tmp_path / "hub" / MODEL
    folder.mkdir(parents=True)
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for number, name in enumerate(shards):
        (folder / name).write_bytes(bytes((i * 7 + number) % 251 for i in range(20_000)))
    index = {"metadata": {}, "weight_map": {f"layer.{n}": name for n, name in enumerate(shards)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for name in ("pytorch_model.bin", "optimizer.bin", "README.md", "model.onnx", "modeling.py"):
        (folder / name).write_bytes(b"not for a load")
    with hub_server(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def fetch(hub: HubServer, tmp_path: Path) -> Callable[..., Downloaded]:
    """Downloads MODEL into the test's cache."""

    def run(*endpoints: str, **options: Any) -> Downloaded:
        options = {"cache": str(tmp_path / "cache"), "patience": QUICK, **options}
        return download(options.pop("name", MODEL), endpoints or (hub.address,), **options)

    return run
