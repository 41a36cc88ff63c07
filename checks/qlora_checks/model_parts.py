"""What several checks ask of a model folder: the files that a load will read, the names of the weights, the family."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qlora_doctor.errors import UnknownFact
from qlora_doctor.facts import Facts, ModelFacts, StoredFile
from qlora_doctor.families import BY_TYPE, Family
from qlora_doctor.request import LoadRequest

_ORIGINAL_CLASSES = ("LlavaLlamaForCausalLM", "LlavaMistralForCausalLM", "LlavaQwenForCausalLM", "LlavaMptForCausalLM")
# Arguments with which other files are read than those that lie at the top of the folder under their usual names.
_ELSEWHERE = ("subfolder", "variant", "gguf_file", "config", "state_dict", "key_mapping")
GIB = 2**30


def model_of(facts: Facts, request: LoadRequest) -> ModelFacts:
    """The model of this load.

    Raises:
        UnknownFact: an argument sends the load to other files than those that were looked at.
    """
    elsewhere = (*_ELSEWHERE, "revision") if facts.model.origin == "hub" else _ELSEWHERE
    for name in elsewhere:
        if request.call.arguments.get(name) not in (None, ""):
            raise UnknownFact("model", f"{name}= sends the load to other files than those that were looked at")
    readable(facts.model, "config.json")
    return facts.model


def readable(model: ModelFacts, *names: str) -> None:
    """Raises UnknownFact where one of these files is there and could not be looked at, so that nobody takes it for absent."""
    for name in names:
        file = model.file(name)
        if file is not None and file.fault in ("unreadable", "outside"):
            raise UnknownFact(name, file.detail)


def by_transformers(request: LoadRequest) -> bool:
    """Whether transformers itself loads the folder, as far as can be seen: a class of its own, or one that calls it."""
    top = request.call.function.partition(".")[0]
    return top in ("", "transformers", "unsloth", "peft", "qlora_core", "trl")


def config_of(model: ModelFacts) -> Mapping[str, Any]:
    """The configuration; empty where there is none (another check says so)."""
    return model.config or {}


def model_type(model: ModelFacts) -> str:
    value = config_of(model).get("model_type")
    return value if isinstance(value, str) else ""


def family(model: ModelFacts) -> Family | None:
    return BY_TYPE.get(model_type(model))


def weight_files(model: ModelFacts) -> tuple[StoredFile, ...]:
    """The files that from_pretrained reads for the weights, those that are missing too; empty where it finds none."""
    for entry in ("model.safetensors", "pytorch_model.bin"):
        if entry == "pytorch_model.bin" and model.index:
            break
        if model.has(entry):
            return tuple(f for f in model.files if f.name == entry)
    shards = set(model.weight_map.values())
    return tuple(f for f in model.files if f.name in shards)


def weight_names(model: ModelFacts) -> tuple[str, ...]:
    """The names of the tensors, sorted: of the headers, else of the index; empty where neither could be read."""
    return tuple(sorted(model.tensors or model.weight_map))


def names_are_known(model: ModelFacts) -> bool:
    """Whether every tensor's name is known: all headers were read, or an index names them."""
    return bool(model.weight_map) or (bool(model.tensors) and model.complete)


def original_llava(model: ModelFacts) -> str:
    """What shows that a checkpoint is in the layout of LLaVA's own code; "" where nothing does."""
    config = config_of(model)
    for name in weight_names(model):
        if "mm_projector" in name:
            return f"it holds {name}"
    architectures = config.get("architectures")
    names = [a for a in architectures if isinstance(a, str)] if isinstance(architectures, list) else []
    own = next((a for a in names if a in _ORIGINAL_CLASSES), "")
    if own:
        return f"its config.json names {own}"
    if isinstance(config.get("mm_vision_tower"), str) and "vision_config" not in config:
        return "its config.json has mm_vision_tower"
    return ""


def other_format(model: ModelFacts) -> str:
    """The checkpoint of other software that lies in a folder without weights of transformers; "" for none."""
    names = [f.name for f in model.files]
    if any(n.endswith(".gguf") for n in names):
        return "GGUF files, which are for llama.cpp"
    if any(re.match(r"consolidated.*\.(pth|safetensors)\Z", n) for n in names):
        return "the authors' own consolidated checkpoint (consolidated.*), whose tensors have other names"
    if any(n.endswith((".h5", ".msgpack")) for n in names):
        return "TensorFlow or Flax weights"
    if any(re.search(r"(zero_pp_rank|mp_rank_|bf16_zero|__\d+_\d+\.distcp)", n) for n in names):
        return "the parts of a DeepSpeed or FSDP checkpoint"
    return ""


def listed(names: tuple[str, ...] | list[str], most: int = 3) -> str:
    """Names for a message: the first few, and how many more."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
