"""Wrong arguments and wrong folders: a clear error with a way out, before anything long runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_core import ModelProblem, load_quantized
from qlora_doctor.errors import UsageError

Copied = Callable[..., Path]


def edit(folder: Path, name: str = "config.json", **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder: Path | str, **arguments: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load_quantized(folder, **arguments)
    return str(caught.value)


def test_a_path_that_does_not_exist_is_named_with_what_lies_beside_it(tiny: Callable[..., Path]) -> None:
    folder = tiny("qwen3")
    said = refused(folder.parent / "qwen33")
    assert "there is no such folder" in said and folder.name in said


def test_a_folder_without_a_config_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    assert "has no config.json" in refused(tmp_path) and "weights.bin" in refused(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "is not JSON"),
        (b"<html>log in</html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (b"[1]", "holds list, not an object"),
        (b'{"a": "\xff"}', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_a_config_that_is_not_one_is_named(text: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text)
    assert said in refused(tmp_path)


def test_a_config_without_a_model_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "names no model_type" in refused(tmp_path)


def test_a_folder_that_is_model_and_adapter_at_once_says_how_to_load_each(copied: Copied) -> None:
    folder = copied("qwen3")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    assert "adapter=" in refused(folder)


def test_an_adapter_that_does_not_name_its_base_says_how_to(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "does not name its base model" in refused(tmp_path)


def test_an_adapter_folder_without_an_adapter_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    assert "holds no adapter_config.json" in refused(tiny("qwen3"), adapter=tmp_path, gate="off")


def test_an_adapter_of_another_model_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from qlora_core import NotVerified, attach

    model, _ = load_quantized(tiny("llava"), for_training=True, gate="off")
    attach(model, r=4).save_pretrained(tmp_path)
    with pytest.raises((NotVerified, UsageError), match="adapter"):
        load_quantized(tiny("qwen3"), adapter=tmp_path, gate="off")


def test_gguf_is_named_as_a_file_and_as_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    assert "is GGUF" in refused(path) and "is GGUF" in refused(tmp_path)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8"])
def test_another_quantisation_is_named_with_the_way_out(method: str, copied: Copied) -> None:
    folder = copied("qwen3")
    edit(folder, quantization_config={"quant_method": method})
    assert f"already quantised with {method}" in refused(folder)


@pytest.mark.parametrize("bits", [3, 0, True, "4", 4.5])
def test_other_bits_are_refused(bits: Any, tiny: Callable[..., Path]) -> None:
    assert "4, 8, or 16" in refused(tiny("qwen3"), bits=bits)


@pytest.mark.parametrize("dtype", ["int8", "bf17", "float64"])
def test_another_dtype_is_refused_with_those_that_work(dtype: str, tiny: Callable[..., Path]) -> None:
    said = refused(tiny("qwen3"), dtype=dtype)
    assert "bfloat16, float16, float32" in said and (dtype != "int8" or "bits=8" in said)


@pytest.mark.parametrize("device", ["cuda:97", "gpu", 97, "mps:3"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device: Any, tiny: Callable[..., Path]) -> None:
    assert "here are cpu" in refused(tiny("qwen3"), device=device, gate="off")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"gate": "maybe"}, '"fix", "report" or "off"'),
        ({"dtype": "bfloat16", "torch_dtype": "float16"}, "contradict"),
        ({"load_in_8bit": True}, "give bits=8"),
        ({"quantization_config": {"load_in_8bit": True}}, "give bits=8"),
        ({"quantization_config": object()}, "load_quantized quantises with bitsandbytes"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(
    arguments: dict[str, Any], said: str, tiny: Callable[..., Path]
) -> None:
    assert said in refused(tiny("qwen3"), **arguments)


def test_old_spellings_are_understood_and_listed(tiny: Callable[..., Path]) -> None:
    report = load_quantized(tiny("qwen3"), torch_dtype="float32", load_in_4bit=True, gate="off").report
    assert report.dtype == "float32"
    assert {c.argument for c in report.changes if c.code == "old-arguments"} == {"torch_dtype", "load_in_4bit"}


def test_too_little_memory_is_refused_with_the_bits_that_fit(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlora_core.hardware.free_memory", lambda device: 200_000)
    said = refused(tiny("qwen3"), bits=16, gate="off", dtype="bfloat16")
    assert "takes about" in said and "bits=4 takes" in said


def test_an_architecture_that_transformers_does_not_know_is_named(copied: Copied) -> None:
    folder = copied("qwen3")
    edit(folder, model_type="qwen99")
    assert "'qwen99'" in refused(folder, gate="off")


def test_code_of_a_repository_is_never_run_unasked(copied: Copied) -> None:
    folder = copied("qwen3")
    edit(folder, model_type="ours", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})
    (folder / "code.py").write_text("raise SystemExit('this ran')")
    assert "Read that code" in refused(folder, gate="off")


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["LlavaLlamaForCausalLM"]},
        {"vision_config": None, "mm_vision_tower": "openai/clip-vit-large-patch14-336"},
    ],
)
def test_the_original_llava_layout_is_refused_by_its_config_with_the_reason(
    changes: dict[str, Any], copied: Copied
) -> None:
    folder = copied("llava")
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(ModelProblem, match="original LLaVA layout") as caught:
        load_quantized(folder)
    assert "llava-hf" in str(caught.value)


def test_nothing_of_this_needs_torch() -> None:
    code = (
        "import sys\nfrom qlora_core import load_quantized\nfrom qlora_doctor.errors import UsageError\n"
        "for bad in (dict(model='./nowhere'), dict(model='a/b', bits=3), dict(model='a/b', dtype='int8')):\n"
        "    try: load_quantized(**bad)\n    except UsageError: pass\n    else: sys.exit(3)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Writes the weights of a folder anew after `change`."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_the_original_llava_layout_is_refused_by_its_keys_with_the_reason(copied: Copied) -> None:
    folder = copied("llava")

    def original(tensors: dict[str, Any]) -> dict[str, Any]:
        names = (("model.language_model.", "model."), ("model.multi_modal_projector.linear_1", "model.mm_projector.0"))
        renamed = {}
        for name, tensor in tensors.items():
            for new, old in (
                *names,
                ("language_model.model.", "model."),
                ("multi_modal_projector.linear_2", "mm_projector.2"),
            ):
                name = name.replace(new, old)
            if "vision_tower" not in name:
                renamed[name] = tensor.contiguous()
        return renamed

    rewrite(folder, original)
    said = refused(folder, gate="off")
    assert "original LLaVA layout" in said and "mm_projector" in said and "qlora-core convert" in said


def test_a_part_without_any_weight_is_named_before_the_weights_are_read(copied: Copied) -> None:
    folder = copied("instructblip_t5")
    rewrite(folder, lambda t: {k: v for k, v in t.items() if "language_projection" not in k})
    assert "no weights named language_projection" in refused(folder, gate="off")


def test_weight_files_that_are_not_whole_are_named(copied: Copied) -> None:
    folder = copied("qwen3")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for content, said in (
        (whole[:-100], "is cut short"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b"<html>" * 9, "no safetensors file"),
        (whole[:4], "no safetensors file"),
        ((2).to_bytes(8, "little") + b"[]", "cannot be read"),
    ):
        path.write_bytes(content)
        assert said in refused(folder, gate="off"), said


def test_a_weight_file_that_the_index_names_and_the_folder_lacks_is_named(copied: Copied) -> None:
    folder = copied("qwen3")
    index = {
        "weight_map": {"model.norm.weight": "model.safetensors", "lm_head.weight": "model-00002-of-00002.safetensors"}
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks 1 of its weight files: model-00002-of-00002.safetensors" in refused(folder, gate="off")
