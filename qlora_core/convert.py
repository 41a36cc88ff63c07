"""The original LLaVA layout (its authors' own key names) -> an ordinary transformers folder.

The names written are those of the llava-hf repositories, which every transformers since 4.36 reads. Weights are moved
file by file, so no more than one of them is in memory. Pickles are read with `weights_only=True` alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_core.errors import ModelProblem, show_size
from qlora_core.tensors import read_json
from qlora_doctor.errors import UsageError

TEXT_FIELDS = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "max_position_embeddings",
    "hidden_act",
    "tie_word_embeddings",
    "attention_bias",
    "sliding_window",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "initializer_range",
]
TEXT_TYPES = {"LlavaLlamaForCausalLM": "llama", "LlavaMistralForCausalLM": "mistral"}
MULTIPLE = 64
KEYS = (
    (re.compile(r"^model\.mm_projector\.0\."), "multi_modal_projector.linear_1."),
    (re.compile(r"^model\.mm_projector\.2\."), "multi_modal_projector.linear_2."),
    (re.compile(r"^model\.vision_tower\.vision_tower\.(vision_model\.)?"), "vision_tower.vision_model."),
    (re.compile(r"^model\.image_newline$"), "image_newline"),
    (re.compile(r"^(model\.(?:layers|embed_tokens|norm)\.|lm_head\.)"), r"language_model.\1"),
)
TEMPLATES = {
    "llama": (
        "{% for m in messages %}{{ m['role'] | upper }}: {% if m['content'] is string %}{{ m['content'] }}"
        "{% else %}{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
        "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}"
        "{% if m['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "mistral": (
        "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] if m['content'] is string else "
        "m['content'][0]['text'] }}</s>{% else %}[INST] {% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
        "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %} [/INST]{% endif %}"
        "{% endfor %}"
    ),
}


def convert(
    folder: str | Path,
    out: str | Path,
    *,
    vision_tower: str | None = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Writes an original LLaVA folder anew as a transformers folder, with its vision tower and processor; returns `out`.

    `vision_tower` is a CLIP folder or Hub name; left out: what the folder's `mm_vision_tower` names. `endpoint` and
    `cache_dir` are those of the tower's download.

    Raises:
        ModelProblem: not the original LLaVA layout, or a projector or language model that transformers does not have.
        UsageError: `out` is not empty, the disk is too full, the vision tower cannot be had.
    """
    folder, out = Path(folder).expanduser(), Path(out).expanduser()
    config = read_json(folder / "config.json")
    text_type = _text_type(folder, config)
    files = _weight_files(folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not an empty folder; give a new one")
    tower = _tower(vision_tower or str(config.get("mm_vision_tower", "")), endpoint, cache_dir)
    _room(out, [*files, *_weight_files(tower)])
    out.mkdir(parents=True, exist_ok=True)
    words, image_id, rows = _words(folder, int(config["vocab_size"]))
    index: dict[str, str] = {}
    own_tower = False
    for number, path in enumerate(files):
        moved = _moved(_read(path), rows)
        own_tower = own_tower or any(name.startswith("vision_tower.") for name in moved)
        _write(moved, out / f"model-{number:05}.safetensors", index)
    if not own_tower:
        for number, path in enumerate(_weight_files(tower)):
            _write(_tower_weights(_read(path)), out / f"vision-{number:05}.safetensors", index)
    following = "image_newline" in index
    made = _config(config, text_type, read_json(tower / "config.json"), image_id, rows, following)
    made["text_config"]["pad_token_id"] = words.pad_token_id
    total = sum((out / name).stat().st_size for name in set(index.values()))
    (out / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1), encoding="utf-8"
    )
    words.chat_template = words.chat_template or TEMPLATES[text_type]
    words.save_pretrained(out)
    # Last, so that a folder whose conversion was cut short is not taken for a model.
    (out / "config.json").write_text(json.dumps(made, indent=2), encoding="utf-8")
    _processor(out)
    return out


def _text_type(folder: Path, config: Mapping[str, Any]) -> str:
    architecture = str((config.get("architectures") or [""])[0])
    if "vision_config" in config or "mm_vision_tower" not in config:
        raise ModelProblem(f"{folder} is not in the original LLaVA layout (its config.json names no mm_vision_tower)")
    if architecture not in TEXT_TYPES:
        raise ModelProblem(
            f"{folder}: {architecture} has no twin in transformers; there is one for {', '.join(TEXT_TYPES)}"
        )
    projector = config.get("mm_projector_type", "linear")
    if projector != "mlp2x_gelu":
        raise ModelProblem(
            f"{folder}: a projector of the type {projector} has no twin in transformers, only mlp2x_gelu has"
        )
    return TEXT_TYPES[architecture]


def _weight_files(folder: Path) -> list[Path]:
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        found = sorted(folder.glob(pattern))
        if found:
            return found
    raise ModelProblem(f"{folder} holds neither safetensors nor pytorch_model.bin weights")


def _read(path: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        tensors: dict[str, Any] = load_file(path)
        return tensors
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if release < (2, 6):
        raise UsageError(
            f"{path} is a pickle, and torch {torch.__version__} does not read those safely: update to torch 2.6"
        )
    return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))


def _moved(tensors: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The tensors of one file under their new names; embedding and head filled up to `rows` rows."""
    moved = {}
    for name, tensor in tensors.items():
        if name.endswith(("rotary_emb.inv_freq", "position_ids")):
            continue
        for pattern, new in KEYS:
            renamed, count = pattern.subn(new, name)
            if count:
                break
        else:
            raise ModelProblem(f"{name} is no weight of LLaVA that we know; the folder was made by other code")
        if renamed.endswith(("embed_tokens.weight", "lm_head.weight")):
            tensor = _filled(tensor, rows)
        moved[renamed] = tensor
    return moved


def _filled(tensor: Any, rows: int) -> Any:
    """More rows, each the mean of those there: a new token says nothing in particular."""
    import torch

    more = rows - tensor.shape[0]
    if more <= 0:
        return tensor
    return torch.cat([tensor, tensor.float().mean(0, keepdim=True).to(tensor.dtype).repeat(more, 1)])


def _tower_weights(tensors: Mapping[str, Any]) -> dict[str, Any]:
    inner = {n.removeprefix("vision_model."): t for n, t in tensors.items() if not _OTHER_HALF.match(n)}
    return {f"vision_tower.vision_model.{n}": t for n, t in inner.items() if not n.endswith("position_ids")}


_OTHER_HALF = re.compile(r"(text_model|text_projection|visual_projection|logit_scale)")


def _write(tensors: Mapping[str, Any], path: Path, index: dict[str, str]) -> None:
    from safetensors.torch import save_file

    if tensors:
        save_file({n: t.contiguous() for n, t in tensors.items()}, path, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, path.name))


def _tower(name: str, endpoint: str | None, cache_dir: str | os.PathLike[str] | None) -> Path:
    from qlora_core.checkpoint import is_local
    from qlora_core.fetch import fetch

    if not name:
        raise UsageError("the folder names no vision tower; give one: vision_tower=openai/clip-vit-large-patch14-336")
    try:
        if is_local(name, "vision_tower"):
            return Path(name).expanduser()
        return fetch(name, endpoint=endpoint, cache_dir=cache_dir)
    except UsageError as error:
        raise UsageError(f"the vision tower {name} cannot be had: {error}") from error


def _room(out: Path, files: list[Path]) -> None:
    need = sum(path.stat().st_size for path in files)
    folder = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UsageError(f"{out} needs {show_size(need)} and {folder} has {show_size(free)} free")


def _words(folder: Path, vocabulary: int) -> tuple[Any, int, int]:
    """The tokenizer with `<image>` and a pad token, the id of `<image>`, and how many rows the embedding needs."""
    import transformers

    words = transformers.AutoTokenizer.from_pretrained(folder)
    if "<image>" not in words.get_vocab():
        words.add_tokens([transformers.AddedToken("<image>", special=True, normalized=False)], special_tokens=True)
    if words.pad_token is None or words.pad_token == words.eos_token:
        words.add_special_tokens({"pad_token": "<pad>"})
    rows = max(vocabulary, len(words))
    if rows > vocabulary:
        rows = -(-rows // MULTIPLE) * MULTIPLE
    return words, int(words.convert_tokens_to_ids("<image>")), rows


def _config(
    config: Mapping[str, Any], text_type: str, tower: Mapping[str, Any], image_id: int, rows: int, following: bool
) -> dict[str, Any]:
    text = {k: config[k] for k in TEXT_FIELDS if config.get(k) is not None}
    vision = dict(tower.get("vision_config") or tower)
    kept = {
        k: v for k, v in vision.items() if not isinstance(v, (dict, list)) and not k.startswith(("_", "transformers"))
    }
    made: dict[str, Any] = {
        "model_type": "llava_next" if following else "llava",
        "architectures": ["LlavaNextForConditionalGeneration" if following else "LlavaForConditionalGeneration"],
        "text_config": {**text, "model_type": text_type, "vocab_size": rows},
        "vision_config": {**kept, "model_type": "clip_vision_model"},
        "image_token_index": image_id,
        "vision_feature_layer": config.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": "full"
        if config.get("mm_vision_select_feature") == "cls_patch"
        else "default",
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "torch_dtype": config.get("torch_dtype") or config.get("dtype") or "float16",
    }
    if following and config.get("image_grid_pinpoints"):
        made["image_grid_pinpoints"] = config["image_grid_pinpoints"]
    return made


def _processor(out: Path) -> None:
    import transformers

    from qlora_core.checkpoint import read_folder
    from qlora_core.processor import load_processor

    built = load_processor(read_folder(str(out), out), transformers.AutoConfig.from_pretrained(out))
    built.processor.save_pretrained(out)
