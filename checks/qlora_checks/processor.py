"""QD3: the processor."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from qlora_checks.common import at_least
from qlora_checks.runs import calls_named, edit_span, takes_images
from qlora_doctor.errors import UnknownFact
from qlora_doctor.facts import Facts
from qlora_doctor.families import family_of, known_model
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, Edit, Fix, SourceEdit
from qlora_doctor.registry import Check, check
from qlora_doctor.request import LoadRequest, Requests
from qlora_doctor.source import Call, Fallback, Script

_PROCESSORS = ("Processor", "ProcessorFast", "FeatureExtractor")
_IMAGES = ("images", "image", "videos", "pixel_values")
_TOKENIZERS = ("Tokenizer", "TokenizerFast")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Packages of the field that hold no processor for the script; a module beyond these may make the inputs.
_HARMLESS = _words(
    "torch transformers peft bitsandbytes accelerate datasets trl numpy pandas PIL tqdm wandb tensorboard "
    "evaluate sklearn scipy matplotlib requests yaml safetensors huggingface_hub tokenizers sentencepiece einops "
    "deepspeed rich click fire absl psutil pynvml jsonlines dotenv loguru omegaconf hydra gradio IPython google"
)


@check("QD301", needs=["script"], since="0.1", requires=["QD303"])
def tokenizer_in_place_of_a_processor(facts: Facts, request: Requests) -> Iterator[Finding]:
    """A vision-language model is loaded, and the script makes its inputs with a tokenizer alone.

    A tokenizer knows nothing of images. In transformers 5 `tokenizer(text, images=image)` is accepted and the image
    dropped without a word; in 4.x it raises `TypeError: ... unexpected keyword argument 'images'`. A model that is
    trained on a tokenizer's ids has no `pixel_values` and learns from the text only, without an error (run on 5.23.0,
    4.57.6 and 4.44.2).

    An error where images are handed to the tokenizer; else a warning where the script shows any sign of images (it
    imports Pillow, or an argument speaks of images), and information where text alone may be meant. Silent where the script uses any processor or image processor or torchvision, where another
    module of the project is imported (it may hold the processor), and where it cannot be known whether the model takes
    images.

    Fix: `processor = AutoProcessor.from_pretrained(model)`, and `processor(text=..., images=...)`.

    Source: facts run with tiny LLaVA, Qwen-VL, InstructBLIP and BLIP-2 models on the three versions.
    """
    script = facts.script
    wrong = list(_images_to_a_tokenizer(script))
    for call in wrong:
        yield Finding(
            "A tokenizer ({tokenizer}) is called with images: they are {fate}. Use AutoProcessor.from_pretrained, and "
            "processor(text=..., images=...)",
            {"tokenizer": _class_of_origin(call), "fate": _fate(facts)},
            severity="error",
            site=call.site,
            fixes=(Advice("Make the inputs with AutoProcessor.from_pretrained(...)"),),
        )
    if wrong:
        return
    loads = [load for load in request.loads if takes_images(load)]
    tokenizers = [c for c in _pretrained(script) if _class_of(c).endswith(_TOKENIZERS) and _may_serve(c, loads)]
    if not loads or not tokenizers or _sees_images(script) or _others(script):
        return
    call = tokenizers[0]
    yield Finding(
        "{model} takes images, but the script has only a tokenizer for it ({tokenizer}): images are {fate}, and the "
        "model learns from, or answers to, the text alone. Use AutoProcessor.from_pretrained, and processor(text=..., images=...)",
        {"model": loads[0].model_or, "tokenizer": _class_of(call), "fate": _fate(facts)},
        severity="warning" if _about_images(script) or request.trains else "info",
        site=call.site,
        fixes=(Advice("Make the inputs with AutoProcessor.from_pretrained(...)"),),
    )


def _may_serve(tokenizer: Call, loads: list[LoadRequest]) -> bool:
    """Whether a tokenizer is, or may be, that of one of the loaded models; one of another repository serves that one."""
    name = tokenizer.seen("pretrained_model_name_or_path")
    models = [load.call.seen("pretrained_model_name_or_path") for load in loads]
    return not isinstance(name, str) or any(not isinstance(m, str) or m == name for m in models)


def _images_to_a_tokenizer(script: Script) -> Iterator[Call]:
    """The calls of transformers' own tokenizers with images; one with code of its repository may take them."""
    if any(_class_of(c).endswith(_TOKENIZERS) and c.seen("trust_remote_code") for c in _pretrained(script)):
        return
    for call in calls_named(script, ".__call__"):
        if _class_of_origin(call).endswith(_TOKENIZERS) and not call.arguments.keys().isdisjoint(_IMAGES):
            yield call


def _pretrained(script: Script) -> tuple[Call, ...]:
    return calls_named(script, ".from_pretrained")


def _class_of_origin(call: Call) -> str:
    return call.origin.rpartition(".from_pretrained")[0].rpartition(".")[2]


def _class_of(call: Call) -> str:
    parts = call.function.split(".")
    return parts[-2] if len(parts) > 1 else ""


def _sees_images(script: Script) -> bool:
    """Whether the script imports or calls anything that makes pixels of images."""
    if script.imports_module("torchvision"):
        return True
    names = [i.name for i in script.imports] + [part for c in script.calls for part in c.function.split(".")]
    return any(
        name.endswith(_PROCESSORS) or "ImageProcessor" in name or name == "process_vision_info" for name in names
    )


def _about_images(script: Script) -> bool:
    """Whether anything in the script speaks of images."""
    if any(script.imports_module(top) for top in ("PIL", "cv2", "imageio", "skimage", "decord", "av")):
        return True
    values = [v for c in script.calls for v in c.arguments.values()]
    return any(isinstance(v, str) and ("image" in v.lower() or "vqa" in v.lower()) for v in values)


def _others(script: Script) -> bool:
    """Whether a module is imported that is neither of Python nor of the field: it may make the inputs."""
    tops = {i.module.partition(".")[0] for i in script.imports}
    return any(top not in _HARMLESS and top not in sys.stdlib_module_names for top in tops)


def _fate(facts: Facts) -> str:
    try:
        version = facts.version("transformers")
    except UnknownFact:
        version = None
    if version is None:
        return "dropped or refused, by version"
    return "dropped without a word" if at_least(version, "5.0") else "refused with a TypeError, or never passed"


@check("QD302", needs=["script"], since="0.1")
def processor_of_a_repository_without_one(facts: Facts) -> Iterator[Finding]:
    """A processor is asked of a repository that is known to hold no processor files.

    The original LLaVA repositories (`liuhaotian/llava-...`) have neither `processor_config.json` nor
    `preprocessor_config.json`; their image processor is that of a CLIP repository, chosen in the authors' own code.
    `AutoProcessor.from_pretrained` raises `OSError: Can't load image processor for ...` (5.x, 4.57; in 4.44 `... does
    not appear to have a file named preprocessor_config.json`). A tokenizer in its place is no way out: it drops the
    images. The same repositories cannot be loaded by transformers' LLaVA class either.

    Silent where the call stands in a try that falls back to something else; the fallback is judged on its own.

    Fix: the converted repository, `llava-hf/...`, which holds weights and processor.

    Source: facts run on 5.23.0, 4.57.6 and 4.44.2; haotian-liu/LLaVA #1831.
    """
    guarded = [f.first.site for f in facts.script.fallbacks]
    for call in calls_named(facts.script, ".from_pretrained"):
        name = call.seen("pretrained_model_name_or_path")
        model = known_model(name) if isinstance(name, str) else None
        if model is None or model.processor or model.layout != "original-llava" or call.site in guarded:
            continue
        if not _class_of(call).endswith(_PROCESSORS):
            continue
        edits = tuple(
            edit_span(call.site, "pretrained_model_name_or_path:value", repr(model.instead), f"use {model.instead}")
        )
        yield Finding(
            "{model} holds no processor files: {call} raises OSError. Use {instead}, the same model converted, with its "
            "processor",
            {"model": name, "call": f"{_class_of(call)}.from_pretrained", "instead": model.instead},
            severity="error",
            site=call.site,
            fixes=edits or (Advice(f"Use {model.instead}"),),
        )


@check("QD303", needs=["script"], since="0.1")
def processor_falls_back_to_a_tokenizer(facts: Facts, request: Requests) -> Iterator[Finding]:
    """A try loads the processor, and its except takes a tokenizer instead.

    It hides the one error that would have said what is wrong (a missing file, a missing Pillow or torchvision, a
    repository in the original LLaVA layout), and goes on with something that drops every image: in transformers 5
    `tokenizer(text, images=image)` is accepted and the image ignored; ids without `pixel_values` train on the text
    alone, without an error. "The warning is normal" is wrong in every version that was run.

    A warning where the model takes images, or where nothing is known of it. Silent where every model that the script
    loads is a text model: there AutoProcessor itself returns the tokenizer.

    Fix: let the error through. Applied, the handler's body becomes `raise`.

    Source: facts run on 5.23.0, 4.57.6 and 4.44.2.
    """
    for fallback in facts.script.fallbacks:
        first, second = _class_of(fallback.first), _class_of(fallback.second)
        if not first.endswith(_PROCESSORS) or not second.endswith(_TOKENIZERS) or _text_only(fallback, request.loads):
            continue
        yield Finding(
            "When {first}.from_pretrained fails, the script goes on with {second}, which drops every image: the model "
            "is then trained or asked on text alone. Let the error through and cure it: {hint}",
            {"first": first, "second": second, "hint": _hint(fallback)},
            severity="warning",
            site=fallback.site,
            fixes=_raise_instead(fallback),
        )


def _text_only(fallback: Fallback, loads: tuple[LoadRequest, ...]) -> bool:
    name = fallback.first.seen("pretrained_model_name_or_path")
    if isinstance(name, str):
        family = family_of(name)
        if family is not None:
            return not family.vision
    seen = [takes_images(load) for load in loads]
    if any(seen):
        return False
    return bool(loads) and all(
        load.class_name == "AutoModelForCausalLM" or takes_images(load) is False for load in loads
    )


def _hint(fallback: Fallback) -> str:
    name = fallback.first.seen("pretrained_model_name_or_path")
    model = known_model(name) if isinstance(name, str) else None
    if model is not None and model.instead:
        return f"{name} has no processor, {model.instead} has"
    return "the repository must hold a processor, and Pillow must be installed"


def _raise_instead(fallback: Fallback) -> tuple[Fix, ...]:
    site = fallback.site
    place = None if site is None else site.spans.get("handler")
    if site is None or place is None or not site.sha256:
        return (Advice("Take the except branch out, so that the error is seen"),)
    edit = Edit(place[0], place[1], "raise")
    what = "raise instead of falling back to a tokenizer"
    return (SourceEdit(site.path, site.sha256, (edit,), what=what, cell=site.cell, applicability="unsafe"),)


CHECKS: tuple[Check, ...] = (
    tokenizer_in_place_of_a_processor,
    processor_of_a_repository_without_one,
    processor_falls_back_to_a_tokenizer,
)
