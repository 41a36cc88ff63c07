"""What lies under the name that the user gave: an ordinary model folder, or something else that will not load."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from qlora_core.errors import ModelProblem
from qlora_core.tensors import names, read_json, shapes
from qlora_doctor.errors import UsageError
from qlora_doctor.families import BY_TYPE, Family, known_model

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?\Z")
_ORIGINAL_CLASSES = ("LlavaLlamaForCausalLM", "LlavaMistralForCausalLM")
_NOT_LINEAR = re.compile(r"embed|lm_head|shared|position|query_tokens|wte|wpe|relative_attention_bias|\.norm")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model folder whose config.json was read. `adapter` is set where the name was that of an adapter."""

    name: str
    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", ""))

    @property
    def family(self) -> Family | None:
        return BY_TYPE.get(self.model_type)

    @property
    def quantized(self) -> int | None:
        """The bits of a folder that was saved quantised by bitsandbytes; None for an ordinary one."""
        saved = self.config.get("quantization_config")
        if not isinstance(saved, Mapping):
            return None
        return 4 if saved.get("load_in_4bit") or saved.get("_load_in_4bit") else 8

    @property
    def original(self) -> str:
        """What shows that this is the layout of LLaVA's own code, which no transformers class loads; "" where nothing does."""
        config = self.config
        marks = [key for key in ("mm_vision_tower", "mm_projector_type", "mm_hidden_size") if key in config]
        architectures = [str(a) for a in config.get("architectures") or ()]
        if (marks and "vision_config" not in config) or any(a in _ORIGINAL_CLASSES for a in architectures):
            return f"its config.json has {marks[0] if marks else architectures[0]}"
        if self.model_type in ("llava", "llava_next") and "vision_config" not in config:
            return "its config.json has no vision_config"
        return ""

    @property
    def native(self) -> bool:
        """Whether no code of the repository is needed: the family is one that we know."""
        return self.family is not None

    def has(self, *names: str) -> bool:
        """Whether one of these files is in the folder."""
        return any((self.folder / name).is_file() for name in names)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor, from the headers of the safetensors files; {} where there are none."""
        return shapes(self.folder)

    def bytes(self, bits: int, keep: tuple[str, ...] = ("lm_head",), dtype: str = "bfloat16") -> int | None:
        """About what the weights take in memory with `bits`; None where the folder does not say."""
        shapes = self.shapes()
        if not shapes or self.quantized:
            return None
        full = 4.0 if dtype == "float32" else 2.0
        per_weight = {4: 0.5157, 8: 1.01, 16: full}[bits]
        total = 0.0
        for name, shape in shapes.items():
            size = math.prod(shape)
            kept = (
                len(shape) != 2 or _NOT_LINEAR.search(name) or any(re.search(rf"(^|\.)(?:{k})\.", name) for k in keep)
            )
            total += size * (full if kept else per_weight)
        return int(total)


def is_local(name: str, argument: str = "model") -> bool:
    """Whether the name is a path rather than a repository of the Hub.

    Raises:
        UsageError: it is neither a folder that exists nor a name that the Hub could know.
    """
    path = Path(name).expanduser()
    if path.exists():
        return True
    if _HUB_NAME.match(name) and not name.startswith((".", "~")):
        return False
    beside = sorted(p.name for p in path.parent.iterdir() if p.is_dir()) if path.parent.is_dir() else []
    near = get_close_matches(path.name, beside, 3, 0.5) or beside[:5]
    hint = f"; {path.parent} holds {', '.join(near)}" if near else ""
    raise UsageError(f"{argument}={name!r}: there is no such folder{hint}. Give a folder or a Hub name (owner/name)")


def read_folder(name: str, folder: Path, *, original_too: bool = False) -> Checkpoint:
    """The checkpoint in a local folder. `original_too`: one in the original LLaVA layout as well, for who converts it.

    Raises:
        ModelProblem: a file instead of a folder, no config.json, a config.json that cannot be read, GGUF, GPTQ, AWQ,
            an adapter, the original LLaVA layout.
    """
    if folder.is_file():
        if folder.suffix == ".gguf":
            raise ModelProblem(_gguf(name))
        raise ModelProblem(f"{name} is a file; give the folder that holds config.json and the weights")
    has_config = (folder / "config.json").is_file()
    has_adapter = (folder / "adapter_config.json").is_file()
    if has_config and has_adapter:
        raise ModelProblem(
            f"{name} holds both config.json and adapter_config.json, so it could be a model or an adapter. "
            f"Load one with the other: load_quantized(BASE, adapter={name!r}), or move adapter_config.json away"
        )
    if not has_config:
        if any(folder.glob("*.gguf")):
            raise ModelProblem(_gguf(name))
        files = sorted(p.name for p in folder.iterdir())[:6]
        raise ModelProblem(
            f"{name} has no config.json, so it is no model folder (it holds {', '.join(files) or 'nothing'}). "
            "Give the folder that save_pretrained or the download wrote"
        )
    checkpoint = Checkpoint(name, folder, read_json(folder / "config.json"))
    if not (original_too and checkpoint.original):
        _refuse_other_formats(checkpoint)
    return checkpoint


def check_keys(checkpoint: Checkpoint) -> None:
    """Holds the names of the weights against the parts of the family, before gigabytes are read.

    Raises:
        ModelProblem: the original LLaVA layout; a part without one weight; a file that is missing or cut short.
    """
    found = names(checkpoint.folder)
    family = checkpoint.family
    if not found or family is None:
        return
    original = next((name for name in found if "mm_projector" in name), None)
    if original is not None:
        raise ModelProblem(original_llava(checkpoint.name, f"it holds {original}"))
    parts = [
        p.rpartition(".")[2] for p in (family.layout.vision_tower, family.layout.projector, family.layout.qformer) if p
    ]
    for part in (*parts, "layers|block"):
        if not any(re.search(rf"(^|\.)({part})\.", name) for name in found):
            word = part.replace("|", " or ")
            raise ModelProblem(
                f"{checkpoint.name} has no weights named {word}, which {family.title} needs; they would be random. "
                f"Its weights are named like {min(found)}: it is another model, or was saved by other code"
            )


def check_adapter(name: str) -> None:
    """Raises UsageError where a local folder is no adapter."""
    folder = Path(name).expanduser()
    if is_local(name, "adapter") and not (folder / "adapter_config.json").is_file():
        raise UsageError(f"adapter={name!r} holds no adapter_config.json; give the folder that save_pretrained wrote")


def adapter_base(folder: Path) -> str | None:
    """The base model that an adapter folder names; None where the folder is no adapter."""
    path = folder / "adapter_config.json"
    if not path.is_file() or (folder / "config.json").is_file():
        return None
    base = read_json(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelProblem(
            f"{folder} is an adapter that does not name its base model; "
            f"name it: load_quantized(BASE, adapter={str(folder)!r})"
        )
    return base


def _refuse_other_formats(checkpoint: Checkpoint) -> None:
    config, name = checkpoint.config, checkpoint.name
    saved = config.get("quantization_config")
    if isinstance(saved, Mapping):
        method = str(saved.get("quant_method", "bitsandbytes"))
        if method != "bitsandbytes":
            raise ModelProblem(
                f"{name} is already quantised with {method}; QLoRA needs the 16-bit weights. "
                f"Use the repository that it was made from (often the same name without -{method.upper()})"
            )
    if checkpoint.original:
        raise ModelProblem(original_llava(name, checkpoint.original))
    if not checkpoint.model_type and not config.get("auto_map"):
        raise ModelProblem(f"{name}/config.json names no model_type, so nothing says which class loads it")


def original_llava(name: str, evidence: str) -> str:
    """What to say of a checkpoint in the layout of LLaVA's own code."""
    known = known_model(name)
    instead = known.instead if known and known.instead else "the converted one of llava-hf (llava-hf/llava-1.5-7b-hf)"
    return (
        f"{name} is in the original LLaVA layout ({evidence}): no transformers class has these weight names, so every "
        f"weight would be random. Use {instead}, or convert the folder with `qlora-core convert`"
    )


def _gguf(name: str) -> str:
    return (
        f"{name} is GGUF, which is for llama.cpp; QLoRA needs the 16-bit weights. Use the repository that it was made "
        "from, or convert it (python -m qlora_core.examples.smollm2 shows how)"
    )
