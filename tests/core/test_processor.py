"""The processor: rebuilt where files are missing, with the right number of image tokens, never silently a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

VISION = (
    "llava",
    "llava_next",
    "instructblip_t5",
    "instructblip_vicuna",
    "blip2_opt",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
)
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
Copied = Callable[..., Path]
Batch = Callable[..., dict[str, Any]]


def processor_change(report: Any) -> str:
    return " ".join(c.after for c in report.changes if c.code == "processor")


@pytest.mark.parametrize("kind", VISION)
def test_a_processor_without_its_files_is_rebuilt_and_gives_the_same_inputs(
    kind: str, tiny: Callable[..., Path], copied: Copied, batch: Batch
) -> None:
    import torch

    from qlora_core import load_quantized

    model, whole = load_quantized(tiny(kind), gate="off")
    loaded = load_quantized(copied(kind, without=PROCESSOR_FILES), gate="off")
    assert processor_change(loaded.report)
    expected, got = batch(kind, model, whole), batch(kind, loaded.model, loaded.processor)
    assert set(expected) == set(got)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    with torch.no_grad():
        assert torch.isfinite(loaded.model(**got).logits).all()


@pytest.mark.parametrize("kind", VISION)
def test_a_rebuilt_processor_is_saved_and_read_again_by_the_loader(kind: str, copied: Copied, batch: Batch) -> None:
    from qlora_core import load_quantized

    folder = copied(kind, without=PROCESSOR_FILES)
    first = load_quantized(folder, gate="off")
    first.processor.save_pretrained(folder)
    second = load_quantized(folder, gate="off")
    assert "rebuilt" not in processor_change(second.report)
    assert type(second.processor).__name__ == type(first.processor).__name__
    assert set(batch(kind, second.model, second.processor)) == set(batch(kind, first.model, first.processor))


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("llava", "patch_size"),
        ("llava", "vision_feature_select_strategy"),
        ("llava", "num_additional_image_tokens"),
        ("instructblip_t5", "num_query_tokens"),
        ("blip2_opt", "num_query_tokens"),
    ],
)
def test_a_setting_that_the_files_leave_open_is_taken_from_the_model(kind: str, setting: str, copied: Copied) -> None:
    from qlora_core import load_quantized

    folder = copied(kind)
    path = folder / "processor_config.json"
    saved = json.loads(path.read_text())
    right = saved.pop(setting)
    path.write_text(json.dumps(saved))
    loaded = load_quantized(folder, gate="off")
    assert getattr(loaded.processor, setting) == right
    assert [c.why for c in loaded.report.changes if c.code == "processor"] == [f"they leave {setting} open"]


@pytest.mark.parametrize("kind", ["llava", "llava_next", "qwen2_vl"])
def test_files_as_transformers_4_wrote_them_are_read(
    kind: str, tiny: Callable[..., Path], copied: Copied, batch: Batch
) -> None:
    import torch

    from qlora_core import load_quantized

    model, whole = load_quantized(tiny(kind), gate="off")
    folder = copied(kind, without=PROCESSOR_FILES)
    whole.image_processor.save_pretrained(folder)
    assert (folder / "preprocessor_config.json").is_file()
    loaded = load_quantized(folder, gate="off")
    expected, got = batch(kind, model, whole), batch(kind, loaded.model, loaded.processor)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_sound_processor_is_left_alone(tiny: Callable[..., Path]) -> None:
    from qlora_core import load_quantized

    assert not processor_change(load_quantized(tiny("llava"), gate="off").report)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed, so AutoProcessor works")
@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_qwen_vl_takes_images_without_torchvision_and_fails_with_the_step_switched_off(
    kind: str, tiny: Callable[..., Path], batch: Batch
) -> None:
    from qlora_core import load_quantized

    loaded = load_quantized(tiny(kind), gate="off")
    assert "pixel_values" in batch(kind, loaded.model, loaded.processor)
    assert processor_change(loaded.report) == "image-only processor"
    with pytest.raises((AttributeError, ImportError, OSError, ValueError)):
        load_quantized(tiny(kind), gate="off", fixes={"processor": False})


def test_without_the_processor_step_a_folder_without_its_files_does_not_load(copied: Copied) -> None:
    from qlora_core import load_quantized

    with pytest.raises(OSError, match="image processor"):
        load_quantized(copied("llava", without=PROCESSOR_FILES), gate="off", fixes={"processor": False})


def test_a_tokenizer_as_last_resort_comes_with_a_warning(copied: Copied) -> None:
    import shutil

    from transformers import AutoConfig

    from qlora_core.checkpoint import read_folder
    from qlora_core.processor import load_processor

    folder = copied("instructblip_t5", without=PROCESSOR_FILES)
    shutil.rmtree(folder / "qformer_tokenizer")
    config = json.loads((folder / "config.json").read_text())
    # The Q-Former's own vocabulary is another than the language model's, and its tokenizer cannot be had offline.
    config["qformer_config"]["vocab_size"] = 400
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        built = load_processor(read_folder(str(folder), folder), AutoConfig.from_pretrained(folder))
    assert not hasattr(built.processor, "image_processor")
    assert "images given to it are dropped" in built.warnings[0]


@pytest.mark.parametrize(("pad", "expected"), [(None, "<pad>"), ("</s>", "<pad>"), ("<unk>", "<unk>")])
def test_the_pad_token_becomes_one_that_is_not_eos(pad: str | None, expected: str, copied: Copied) -> None:
    from qlora_core import load_quantized

    folder = copied("qwen3")
    path = folder / "tokenizer_config.json"
    saved = json.loads(path.read_text())
    saved["pad_token"] = pad
    path.write_text(json.dumps({k: v for k, v in saved.items() if v is not None}))
    loaded = load_quantized(folder, gate="off")
    words = loaded.processor
    assert words.pad_token == expected
    assert [c.code for c in loaded.report.changes if c.code == "pad-token"] == ([] if pad == "<unk>" else ["pad-token"])
    assert len(words(["a", "a longer one"], padding=True)["input_ids"][0]) > 1
    assert loaded.model.get_input_embeddings().weight.shape[0] == 325


def test_without_the_pad_step_padding_fails(copied: Copied) -> None:
    from qlora_core import load_quantized

    folder = copied("qwen3")
    path = folder / "tokenizer_config.json"
    saved = json.loads(path.read_text())
    saved.pop("pad_token")
    path.write_text(json.dumps(saved))
    words = load_quantized(folder, gate="off", fixes={"pad-token": False}).processor
    if words.pad_token is not None:
        pytest.skip("this transformers chooses a pad token by itself")
    with pytest.raises(ValueError, match="padding token"):
        words(["a", "a longer one"], padding=True)
