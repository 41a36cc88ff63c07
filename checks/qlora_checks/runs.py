"""What the checks of training ask of a run: which trainer, which model, what the script does by hand."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.common import bnb_quantization
from qlora_doctor.errors import UnknownArgument
from qlora_doctor.facts import Facts, Unknown
from qlora_doctor.families import BY_CLASS, Family, family_of, known_model
from qlora_doctor.fix import Applicability, Edit, SourceEdit
from qlora_doctor.request import LoadRequest, TrainRequest
from qlora_doctor.source import Call, Script, Site, Value

# Classes that load only models which take images.
VISION_AUTO = frozenset(
    {"AutoModelForImageTextToText", "AutoModelForVision2Seq", "AutoModelForMultimodalLM", "LlavaLlamaForCausalLM"}
)
VISION_CLASSES = frozenset(
    {
        "BlipForConditionalGeneration",
        "Gemma3ForConditionalGeneration",
        "Idefics2ForConditionalGeneration",
        "Idefics3ForConditionalGeneration",
        "InternVLForConditionalGeneration",
        "LlavaOnevisionForConditionalGeneration",
        "MllamaForConditionalGeneration",
        "PaliGemmaForConditionalGeneration",
        "Qwen2_5OmniForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
        "SmolVLMForConditionalGeneration",
        "VipLlavaForConditionalGeneration",
    }
)


def script_of(facts: Facts) -> Script | None:
    """The script that is being judged, or None where the request comes from elsewhere. Never raises."""
    state = facts.state("script")
    return None if isinstance(state, Unknown) else state


def by_trl(request: TrainRequest) -> bool:
    """Whether one of TRL's trainers trains (SFTTrainer, or a class of the script built on it)."""
    return request.trainer.function.startswith("trl.")


def by_trainer(request: TrainRequest) -> bool:
    """Whether transformers' Trainer, or anything built on it, trains; False for a loop of the script's own."""
    return by_trl(request) or request.trainer.function.startswith("transformers.")


def bits_of(request: TrainRequest) -> int | None:
    """4 or 8 where the trained model was loaded so by bitsandbytes, None where it was not quantised.

    Raises:
        UnknownArgument: it cannot be known which load the trained model came from, or what that load asks for.
    """
    if request.load is None:
        raise UnknownArgument("model", "the load of the trained model cannot be followed")
    quantization = bnb_quantization(request.load)
    return None if quantization is None else quantization.bits


def family_of_load(load: LoadRequest | None) -> Family | None:
    """The model family, by the class that loads or by the model's name; None where neither tells. Never raises."""
    if load is None:
        return None
    by_class = BY_CLASS.get(load.class_name)
    if by_class is not None:
        return by_class
    name = load.call.seen("pretrained_model_name_or_path")
    return family_of(name) if isinstance(name, str) else None


def takes_images(load: LoadRequest) -> bool | None:
    """Whether the loaded model takes images; None where neither its class nor its name tells. Never raises."""
    if load.class_name in VISION_AUTO | VISION_CLASSES:
        return True
    family = family_of_load(load)
    if family is not None:
        return family.vision
    name = load.call.seen("pretrained_model_name_or_path")
    known = known_model(name) if isinstance(name, str) else None
    if known is not None and known.layout == "original-llava":
        return True
    # AutoModelForCausalLM takes remote-code models of every kind; a concrete class of another family is text.
    return None if load.class_name.startswith("Auto") else False


def decides_dtype(when: str) -> bool:
    """Whether a branch is chosen by the precision or by what the card can do: it is then taken where it fits."""
    low = when.lower()
    return any(word in low for word in ("bf16", "bfloat16", "fp16", "float16", "half", "dtype", "capability", "ampere"))


def is_true(call: Call | None, name: str) -> bool | None:
    """Whether an argument is True: False where it is absent or anything else, None where it cannot be known."""
    if call is None:
        return None
    try:
        return call.get(name) is True
    except UnknownArgument:
        return None


def checkpoints(settings: Call) -> bool:
    """Whether the training arguments switch checkpointing on, under the old name or the new (5.2x).

    Raises:
        UnknownArgument: it cannot be known.
    """
    return any(settings.get(name) is True for name in ("gradient_checkpointing", "activation_checkpointing"))


def positional(call: Call) -> bool:
    """Whether arguments are passed by position that the reader could not name."""
    return any(name.startswith(("#", "*")) for name in call.arguments)


def calls_named(script: Script | None, *functions: str) -> tuple[Call, ...]:
    """The calls of a script whose function is, or ends in, one of `functions`; none without a script."""
    return () if script is None else script.called(*functions)


def literal(value: Value) -> str | None:
    """A string argument, lower case; None for anything else (an enum member counts by its last name)."""
    if isinstance(value, str):
        return value.lower()
    name = getattr(value, "name", None)
    return name.rpartition(".")[2].lower() if isinstance(name, str) else None


def edit_span(site: Site | None, span: str, text: str, what: str, *, safe: bool = False) -> Iterator[SourceEdit]:
    """The edit that puts `text` in place of one span of a call; nothing where the script's bytes are not known."""
    place = None if site is None else site.spans.get(span)
    if site is None or place is None or not site.sha256:
        return
    yield SourceEdit(
        site.path,
        site.sha256,
        (Edit(place[0], place[1], text),),
        what=what,
        cell=site.cell,
        applicability="safe" if safe else "unsafe",
    )


def edit_append(site: Site | None, text: str, what: str, *, safe: bool = False) -> Iterator[SourceEdit]:
    """The edit that adds an argument behind the last one of a call; nothing where that place is not known."""
    if site is None or not site.sha256:
        return
    spans = [span for name, span in site.spans.items() if ":" not in name and name != "()"]
    inside = [end for start, end in spans if site.start <= start < site.end]
    if not inside:
        return
    edit = Edit(max(inside), max(inside), f", {text}")
    applicability: Applicability = "safe" if safe else "unsafe"
    yield SourceEdit(site.path, site.sha256, (edit,), what=what, cell=site.cell, applicability=applicability)
