"""Tiny model folders, written with the standard library alone: sound ones, which each test then breaks in one place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import HubServer, hub_server

NAME = "tiny/model"
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 4}
LLAVA = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "text_config": {"model_type": "llama", "vocab_size": 8},
    "vision_config": {"model_type": "clip_vision_model", "patch_size": 14},
}
LAYER = "layers.0.self_attn.q_proj.weight"
TEXT_NAMES = ("model.embed_tokens.weight", f"model.{LAYER}", "lm_head.weight")
LLAVA_NAMES = (
    "language_model.model.embed_tokens.weight",
    f"language_model.model.{LAYER}",
    "language_model.lm_head.weight",
    "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
    "multi_modal_projector.linear_1.weight",
)


def safetensors(names: Mapping[str, tuple[int, ...]], dtype: str = "BF16", extra: bytes = b"") -> bytes:
    """A safetensors file of zeros."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in names.items():
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode("utf-8")
    return len(raw).to_bytes(8, "little") + raw + bytes(end) + extra


class Folder:
    """A model folder that a test writes to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)

    def __str__(self) -> str:
        return str(self.path)

    def json(self, name: str, data: Any) -> None:
        (self.path / name).write_text(json.dumps(data), encoding="utf-8")

    def change(self, name: str, **values: Any) -> None:
        """Sets (or, with None, takes out) keys of one of the JSON files."""
        data = json.loads((self.path / name).read_bytes())
        self.json(name, {k: v for k, v in {**data, **values}.items() if v is not None})

    def write(self, name: str, raw: bytes) -> None:
        (self.path / name).write_bytes(raw)

    def remove(self, *names: str) -> None:
        for name in names:
            (self.path / name).unlink()

    def weights(self, *names: str, file: str = "model.safetensors", shape: tuple[int, ...] = (8, 4)) -> None:
        self.write(file, safetensors({n: shape for n in names}))

    def shards(self, *names: str, suffix: str = ".safetensors") -> list[str]:
        """One file for each name, and the index; takes the single file away."""
        (self.path / "model.safetensors").unlink(missing_ok=True)
        stem = "model" if suffix == ".safetensors" else "pytorch_model"
        files = [f"{stem}-{n + 1:05}-of-{len(names):05}{suffix}" for n in range(len(names))]
        for name, file in zip(names, files, strict=True):
            self.write(file, safetensors({name: (8, 4)}) if suffix == ".safetensors" else b"PK\x03\x04" + END)
        index = {"metadata": {"total_size": 64 * len(names)}, "weight_map": dict(zip(names, files, strict=True))}
        self.json(f"{stem}{suffix}.index.json", index)
        return files


END = b"PK\x05\x06" + bytes(18)
Make = Callable[..., Folder]


@pytest.fixture
def llama(tmp_path: Path) -> Folder:
    """A sound text model."""
    folder = Folder(tmp_path / "llama")
    _words(folder)
    folder.json("config.json", LLAMA)
    folder.weights(*TEXT_NAMES)
    return folder


@pytest.fixture
def llava(tmp_path: Path) -> Folder:
    """A sound LLaVA, as transformers 5 saves it: processor_config.json alone."""
    folder = Folder(tmp_path / "llava")
    _words(folder)
    folder.json("config.json", LLAVA)
    folder.json(
        "processor_config.json",
        {"processor_class": "LlavaProcessor", "patch_size": 14, "image_processor": {"size": {"shortest_edge": 28}}},
    )
    folder.write("chat_template.jinja", b"{{ messages }}")
    folder.weights(*LLAVA_NAMES)
    return folder


@pytest.fixture
def original(tmp_path: Path) -> Folder:
    """A LLaVA in the layout of its authors."""
    folder = Folder(tmp_path / "llava-v1.5-7b")
    _words(folder)
    folder.json(
        "config.json",
        {
            "model_type": "llava",
            "architectures": ["LlavaLlamaForCausalLM"],
            "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        },
    )
    folder.weights(*TEXT_NAMES, "model.mm_projector.0.weight", "model.mm_projector.2.weight")
    return folder


def _words(folder: Folder) -> None:
    folder.json("tokenizer.json", {"version": "1.0"})
    folder.json(
        "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "added_tokens_decoder": {"2": {"content": "</s>"}, "3": {"content": "<pad>"}},
        },
    )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with one sound model, an empty cache, and an environment that points to both."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_DISABLE_XET", "QLORA_DOCTOR_MIRRORS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QLORA_DOCTOR_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = Folder(tmp_path / "hub" / "tiny" / "model")
    folder.json("config.json", {"model_type": "llama"})
    folder.weights(*TEXT_NAMES)
    with hub_server(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server
