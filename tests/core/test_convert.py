"""The original LLaVA layout, converted: the same logits as before, and a folder that every check passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_core import ModelProblem, load_quantized
from qlora_core.convert import convert
from qlora_doctor.errors import UsageError

Batch = Callable[..., dict[str, Any]]
NAMES = (
    ("model.language_model.", "model."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
)


def original(
    kind: str, folder: Path, tower: Path, *, image_token: bool = True, pickled: bool = False, own_tower: bool = False
) -> Any:
    """Writes a tiny LLaVA in its authors' layout, its vision tower beside it; returns the model it was made from."""
    import torch
    import transformers
    from safetensors.torch import save_file

    from qlora_core import tiny

    words = tiny.tokenizer(kind)
    model = tiny.model(kind, words).eval()
    config = model.config
    vision = transformers.CLIPVisionModel(config.vision_config)
    inner = {n.removeprefix("model.vision_tower."): t for n, t in model.state_dict().items() if "vision_tower" in n}
    vision.load_state_dict(
        {n: inner[n if n in inner else n.removeprefix("vision_model.")] for n in vision.state_dict()}
    )
    vision.save_pretrained(tower)
    state = {n: t.detach().clone() for n, t in model.state_dict().items() if "vision_tower" not in n}
    for new, old in NAMES:
        state = {n.replace(new, old, 1) if n.startswith(new) else n: t for n, t in state.items()}
    if own_tower:
        prefix = "model.vision_tower.vision_tower.vision_model."
        state |= {prefix + n.removeprefix("vision_model."): t for n, t in vision.state_dict().items()}
    folder.mkdir()
    if pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        names = sorted(state)
        index: dict[str, str] = {}
        for number, part in enumerate((names[::2], names[1::2])):
            name = f"model-0000{number + 1}-of-00002.safetensors"
            save_file({n: state[n].contiguous() for n in part}, folder / name, {"format": "pt"})
            index |= dict.fromkeys(part, name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    text = config.text_config.to_dict()
    flat: dict[str, Any] = {
        k: v for k, v in text.items() if isinstance(v, (int, float, str, bool)) and k != "model_type"
    }
    flat |= {
        "model_type": "llava",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_vision_tower": str(tower),
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": 64,
        "torch_dtype": "float32",
    }
    if kind == "llava_next":
        flat |= {"image_grid_pinpoints": config.image_grid_pinpoints, "mm_patch_merge_type": "spatial_unpad"}
    (folder / "config.json").write_text(json.dumps(flat))
    if image_token:
        words.save_pretrained(folder)
    else:
        # As the real one: `<image>` is no token of the vocabulary yet.
        words.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            path = folder / name
            path.write_text(path.read_text().replace("<image>", "<unused>"))
    return model


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
@pytest.mark.parametrize(
    "source", [{}, {"pickled": True}, {"own_tower": True}], ids=["safetensors", "pickle", "own tower"]
)
def test_a_converted_checkpoint_gives_the_same_logits(
    kind: str, source: dict[str, bool], tmp_path: Path, batch: Batch
) -> None:
    import torch

    before = original(kind, tmp_path / "original", tmp_path / "tower", **source)
    folder = convert(tmp_path / "original", tmp_path / "out")
    loaded = load_quantized(folder, bits=16, dtype="float32", gate="off")
    assert not [c for c in loaded.report.changes if c.code == "processor"]
    inputs = batch(kind, loaded.model, loaded.processor)
    with torch.no_grad():
        after, wanted = loaded.model(**inputs).logits, before(**inputs).logits
    assert after.shape == wanted.shape
    assert float((after - wanted).abs().max()) < 1e-5


def test_a_vocabulary_without_an_image_token_gets_one_and_the_old_words_keep_their_logits(
    tmp_path: Path, batch: Batch
) -> None:
    import torch

    before = original("llava", tmp_path / "original", tmp_path / "tower", image_token=False)
    loaded = load_quantized(convert(tmp_path / "original", tmp_path / "out"), bits=16, dtype="float32", gate="off")
    rows = loaded.model.get_input_embeddings().weight.shape[0]
    assert loaded.model.config.image_token_index == 325 and rows == 384
    table = loaded.model.get_input_embeddings().weight.detach()
    assert float((table[325] - table[:325].mean(0)).abs().max()) < 1e-5
    words = loaded.processor.tokenizer("a red cat", return_tensors="pt")
    words.pop("token_type_ids", None)
    with torch.no_grad():
        after, wanted = loaded.model(**words).logits, before(**words).logits
    assert float((after[..., :325] - wanted).abs().max()) < 1e-5
    assert int((batch("llava", loaded.model, loaded.processor)["input_ids"] == 325).sum()) == 4


def test_the_converted_folder_loads_in_4_bit_through_the_gate_and_has_a_chat_template(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from qlora_core.cli import main

    original("llava", tmp_path / "original", tmp_path / "tower")
    with pytest.raises(ModelProblem, match="original LLaVA layout"):
        load_quantized(tmp_path / "original", gate="off", fixes={"convert-layout": False})
    run = CliRunner().invoke(main, ["convert", str(tmp_path / "original"), str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    loaded = load_quantized(tmp_path / "out")
    assert loaded.report.verification is not None and loaded.report.verification.quantized == 14
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    assert loaded.processor.apply_chat_template(asked, add_generation_prompt=True).count("<image>") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mm_projector_type": "linear"}, "only mlp2x_gelu"),
        ({"architectures": ["LlavaMptForCausalLM"]}, "has no twin"),
        ({"mm_vision_tower": None}, "not in the original LLaVA layout"),
        ({"mm_vision_tower": "./nowhere"}, "vision tower ./nowhere cannot be had"),
    ],
)
def test_what_cannot_be_converted_is_refused_and_nothing_is_written(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "original"
    original("llava", folder, tmp_path / "tower")
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(UsageError, match=said):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    original("llava", tmp_path / "original", tmp_path / "tower")
    with pytest.raises(UsageError, match="not an empty folder"):
        convert(tmp_path / "original", tmp_path / "tower")
