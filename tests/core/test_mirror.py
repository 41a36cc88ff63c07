"""Loads through a mirror while the Hub's own address is dead, and of LLaVA's own layout, by name and from the cache."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qlora_core import LoadBlocked, load_quantized
from qlora_core.errors import ModelProblem
from qlora_doctor.errors import UsageError
from tests.core.test_convert import original
from tests.hub_server import dead_address, hub_server

Build = Callable[..., Path]
FINETUNE = "someone/llava-finetune"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A mirror that the settings name, and a dead address in the place of the Hub."""
    for name, folder in (("HF_HOME", "home"), ("QLORA_DOCTOR_CACHE", "doctor"), ("XDG_CONFIG_HOME", "settings")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", dead_address())
    with hub_server(tmp_path / "hub") as server:
        monkeypatch.setenv("QLORA_DOCTOR_MIRRORS", server.address)
        yield server


@pytest.fixture
def finetune(mirror: Any) -> Any:
    """A tiny LLaVA in its authors' layout as a repository, and its vision tower as another; returns the model itself."""
    for owner in ("someone", "openai"):
        (mirror.root / owner).mkdir()
    folder = mirror.root / FINETUNE
    model = original("llava", folder, mirror.root / "openai" / "clip-tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "openai/clip-tiny"}))
    return model


def test_an_original_llava_loads_by_its_name_through_the_mirror_with_the_same_logits(
    mirror: Any, finetune: Any, batch: Callable[..., dict[str, Any]]
) -> None:
    import torch

    loaded = load_quantized(FINETUNE, bits=16, dtype="float32")
    (change,) = (c for c in loaded.report.changes if c.code == "convert-layout")
    assert "original LLaVA layout" in change.why
    assert not [w for w in loaded.report.warnings if "QD202" in w or "QD321" in w]
    inputs = batch("llava", loaded.model, loaded.processor)
    with torch.no_grad():
        after, wanted = loaded.model(**inputs).logits, finetune(**inputs).logits
    assert float((after - wanted).abs().max()) < 1e-5


def test_the_second_load_converts_and_downloads_nothing_and_is_4_bit(mirror: Any, finetune: Any) -> None:
    first = load_quantized(FINETUNE, endpoint=mirror.address)
    assert first.report.verification is not None and first.report.verification.quantized == 14
    mirror.asked.clear()
    again = load_quantized(FINETUNE, endpoint=mirror.address)
    assert [c.after for c in again.report.changes if c.code == "convert-layout"] == [
        c.after for c in first.report.changes if c.code == "convert-layout"
    ]
    assert not [path for path, _ in mirror.asked if path.endswith((".safetensors", ".bin")) and "clip" in path]


def test_with_the_step_switched_off_the_gate_refuses_and_names_the_command(mirror: Any, finetune: Any) -> None:
    with pytest.raises(LoadBlocked, match="qlora-core convert"):
        load_quantized(FINETUNE, endpoint=mirror.address, fixes={"convert-layout": False})


def test_an_original_llava_that_lies_in_the_cache_is_converted_and_not_downloaded_anew(
    mirror: Any, finetune: Any, tmp_path: Path
) -> None:
    name = "liuhaotian/llava-v1.5-7b"
    (mirror.root / "liuhaotian").mkdir()
    shutil.copytree(mirror.root / FINETUNE, mirror.root / name)
    from qlora_core.fetch import fetch

    fetch(name, endpoint=mirror.address)
    mirror.asked.clear()
    loaded = load_quantized(name, endpoint=mirror.address)
    assert any(c.code == "convert-layout" for c in loaded.report.changes)
    assert not [path for path, _ in mirror.asked if "llava" in path and "/resolve/" in path]


def test_an_ordinary_model_comes_through_the_mirror_and_no_token_with_it(
    mirror: Any, tiny: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    shutil.copytree(tiny("qwen3"), mirror.root / "org" / "tiny")
    loaded = load_quantized("org/tiny")
    assert loaded.report.verification is not None and not loaded.report.verification.problems
    assert mirror.asked and not any(token for _, token in mirror.asked)


def test_a_repository_without_weights_is_a_problem_of_the_model(mirror: Any) -> None:
    folder = mirror.root / "org" / "gguf"
    folder.mkdir(parents=True)
    (folder / "model.Q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelProblem, match="GGUF"):
        load_quantized("org/gguf", gate="off", endpoint=mirror.address)


def test_a_dead_hub_without_a_mirror_is_one_clear_error_and_no_list_of_doubts(
    mirror: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QLORA_DOCTOR_MIRRORS", "")
    with pytest.raises(UsageError, match="nothing listens there") as caught:
        load_quantized("org/tiny")
    assert "is unknown" not in str(caught.value)


@pytest.mark.parametrize("gate", ["off", "fix"])
def test_modelscope_without_its_library_says_what_to_install_and_asks_no_hub(
    mirror: Any, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(UsageError, match=r"pip install .*modelscope"):
        load_quantized("modelscope:org/tiny", gate=gate)
    assert mirror.asked == []


def test_a_model_of_modelscope_is_loaded_from_the_folder_that_its_library_gives(
    mirror: Any, tiny: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own server is not here; what stands in its place gives what its two functions give (1.40 was run)."""
    import hashlib

    folder = tiny("qwen3")
    api, snapshot = ModuleType("modelscope.hub.api"), ModuleType("modelscope.hub.snapshot_download")

    class HubApi:
        def get_model_files(self, name: str, revision: str, recursive: bool) -> list[dict[str, Any]]:
            return [
                {"Path": p.name, "Size": p.stat().st_size, "Sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
                for p in folder.iterdir()
            ]

    api.HubApi = HubApi  # type: ignore[attr-defined]
    snapshot.snapshot_download = lambda name, **options: str(folder)  # type: ignore[attr-defined]
    for name, module in (
        ("modelscope", ModuleType("modelscope")),
        ("modelscope.hub", ModuleType("modelscope.hub")),
        ("modelscope.hub.api", api),
        ("modelscope.hub.snapshot_download", snapshot),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    loaded = load_quantized("modelscope:org/tiny")
    assert loaded.report.verification is not None and not loaded.report.verification.problems
    assert loaded.report.model == "modelscope:org/tiny" and mirror.asked == []
