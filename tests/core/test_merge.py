"""`merge`: the saved model is base + adapter, or nothing is saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

Build = Callable[..., Path]


@pytest.fixture(scope="module")
def adapter(tiny: Build, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`adapter(kind)`: an adapter with large random weights on the 4-bit model; `adapter(kind, use_dora=True)` another."""
    root = tmp_path_factory.mktemp("adapters")

    def make(kind: str, scale: float = 0.05, **lora: Any) -> Path:
        import torch

        from qlora_core import attach, load_quantized

        folder = root / "-".join([kind, str(scale), *lora])
        if folder.exists():
            return folder
        model, processor = load_quantized(tiny(kind), device="cpu", dtype="float32", for_training=True, gate="off")
        torch.manual_seed(0)
        model = attach(model, r=4, **lora)
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.data.normal_(0, scale)
        model.peft_config["default"].base_model_name_or_path = str(tiny(kind))
        model.save_pretrained(str(folder))
        processor.save_pretrained(str(folder))
        return folder

    return make


@pytest.mark.parametrize(
    ("kind", "lora"),
    [("qwen3", {}), ("qwen3", {"use_rslora": True}), ("qwen2", {"use_dora": True}), ("qwen2_vl", {}), ("llava", {}),
     ("instructblip_t5", {}), ("instructblip_vicuna", {})],
)  # fmt: skip
def test_the_merged_model_on_disk_answers_as_base_and_adapter_and_has_no_adapter(
    adapter: Callable[..., Path], tmp_path: Path, kind: str, lora: dict[str, Any]
) -> None:
    from qlora_core import load_quantized
    from qlora_core.merge import merge

    done = merge(adapter(kind, **lora), tmp_path / "out", gate="off")
    assert done.layers > 0 and done.difference <= done.tolerance and done.effect > 2 * done.tolerance
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names and "adapter_config.json" not in names
    model, _ = load_quantized(tmp_path / "out", bits=16, device="cpu", gate="off")
    assert not any("lora" in name for name, _ in model.named_modules())


def test_a_weight_is_rounded_once(adapter: Callable[..., Path], tiny: Build, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from qlora_core.merge import merge

    merge(adapter("qwen3"), tmp_path / "out", gate="off")
    name = "model.layers.0.self_attn.q_proj"
    base = load_file(tiny("qwen3") / "model.safetensors")[f"{name}.weight"].float()
    lora = load_file(adapter("qwen3") / "adapter_model.safetensors")
    a, b = (lora[f"base_model.model.{name}.lora_{letter}.weight"].float() for letter in "AB")
    exact = (base + 2 * (b @ a)).to(torch.bfloat16)
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[f"{name}.weight"], exact)


def test_a_merge_that_loses_the_adapter_is_refused_and_leaves_nothing(
    adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import LoraLayer

    from qlora_core.errors import NotVerified
    from qlora_core.merge import merge

    # A library that merges nothing: the failure that the comparison is there for.
    for kind in (LoraLayer, *LoraLayer.__subclasses__()):
        if "merge" in vars(kind):
            monkeypatch.setattr(kind, "merge", lambda self, **_: None)
    with pytest.raises(NotVerified, match="differ by"):
        merge(adapter("qwen3"), tmp_path / "out", gate="off")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_does_nothing_is_told(adapter: Callable[..., Path], tmp_path: Path) -> None:
    from qlora_core.merge import merge

    done = merge(adapter("qwen3", scale=0.0), tmp_path / "out", gate="off")
    assert done.effect == 0.0 and any("learned little" in w for w in done.warnings)


def test_another_base_is_refused(adapter: Callable[..., Path], tiny: Build, tmp_path: Path) -> None:
    from qlora_core.errors import NotVerified
    from qlora_core.merge import merge
    from qlora_doctor.errors import UsageError

    with pytest.raises(NotVerified, match=r"does not fit|another model"):
        merge(adapter("qwen3"), tmp_path / "out", base=tiny("instructblip_t5"), gate="off")
    named = tmp_path / "named"
    shutil.copytree(adapter("qwen3"), named)
    config = json.loads((named / "adapter_config.json").read_text())
    (named / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "Qwen/Qwen3-0.6B"}))
    with pytest.raises(UsageError, match=r"trained on Qwen/Qwen3-0\.6B, not on Qwen/Qwen3-1\.7B"):
        merge(named, tmp_path / "out", base="Qwen/Qwen3-1.7B")
    assert not (tmp_path / "out").exists()


def test_too_little_disk_is_said_before_anything_is_loaded(
    adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qlora_core import merge as module
    from qlora_doctor.errors import UsageError

    full = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    said: list[str] = []
    with pytest.raises(UsageError, match="give an --output on another disk"):
        module.merge(adapter("qwen3"), tmp_path / "out", gate="off", say=said.append)
    assert said == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "holds no adapter_config.json"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "holds no adapter_model.safetensors"),
        (lambda f: _config(f, peft_type="IA3"), "IA3 adapter"),
        (lambda f: _config(f, base_model_name_or_path=None), "--base"),
        (lambda f: _config(f, base_model_name_or_path="/no/such/model"), "which is not here"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_a_usage_error(
    adapter: Callable[..., Path], tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    from qlora_core.merge import merge
    from qlora_doctor.errors import UsageError

    folder = tmp_path / "adapter"
    shutil.copytree(adapter("qwen3"), folder)
    spoil(folder)
    with pytest.raises(UsageError, match=words):
        merge(folder, tmp_path / "out", gate="off")


def _config(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_command_prints_the_proof_and_the_llama_cpp_commands(adapter: Callable[..., Path], tmp_path: Path) -> None:
    from qlora_core.cli import main

    words = ["merge", "--adapter", str(adapter("qwen3")), "--output", str(tmp_path / "out"), "--gate", "off"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "verified  logits differ by" in result.stdout and "convert_hf_to_gguf.py" in result.stdout
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 2 and "is not empty" in again.stderr
