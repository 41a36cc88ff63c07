"""QD32: the format and layout of a local model's weights: already quantised, another project's names, another model."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qlora_checks.common import at_least
from qlora_checks.model_parts import (
    GIB,
    by_transformers,
    config_of,
    family,
    model_of,
    names_are_known,
    original_llava,
    weight_files,
    weight_names,
)
from qlora_doctor.errors import UnknownArgument, UnknownFact
from qlora_doctor.facts import Facts, ModelFacts, known
from qlora_doctor.families import known_model
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, LoadKwarg
from qlora_doctor.registry import Check, check
from qlora_doctor.request import LoadRequest, Quantization

_SOUND = ["QD310", "QD314", "QD315", "QD316", "QD317"]
_PREFIXES = (
    ("base_model.model.", "PEFT", "merge_and_unload() and save_pretrained(), or save the adapter alone"),
    ("module.", "DistributedDataParallel or DeepSpeed", "save model.module, or rename the tensors"),
    ("_orig_mod.", "torch.compile", "save model._orig_mod, or rename the tensors"),
    ("_fsdp_wrapped_module.", "FSDP", "save with a full state dict"),
)
_LAVIS = ("visual_encoder.", "Qformer.bert.", "llm_model.", "t5_model.", "opt_model.")
_META = re.compile(r"(tok_embeddings\.weight|layers\.\d+\.(attention\.w[qkvo]|feed_forward\.w[123])\.)")


@check("QD320", needs=["model"], wants=["packages"], since="0.1", requires=["QD310"])
def quantizing_what_is_already_quantized(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """The folder's weights are quantised already, and the load asks for a bitsandbytes quantisation.

    The quantisation in config.json wins. Where it is bitsandbytes' own, the weights load as they were saved, and QLoRA
    trains on them; the config that the call passes is not used, so other bits than those saved are not what you get. Where it
    is another method (GPTQ, AWQ, FP8, ...), transformers from 4.57 on raises `ValueError: The model is quantized with ... but
    you are passing a BitsAndBytesConfig config`; before, it warned and ignored the config.

    An error where it raises, a warning where something else than asked for is loaded, information where the saved bits are
    those that are asked for. Silent where the load asks for no quantisation.

    Fix: the repository with the 16-bit weights, for QLoRA; or drop the argument and load what is there.

    Source: merge_quantization_configs in transformers 4.44, 4.57 and 5.23.
    """
    model = model_of(facts, request)
    saved = config_of(model).get("quantization_config")
    if not isinstance(saved, dict) or not by_transformers(request):
        return
    asked = _asked(request)
    if asked is None or asked.method != "bitsandbytes":
        return
    four, eight = (bool(saved.get(k) or saved.get(f"_{k}")) for k in ("load_in_4bit", "load_in_8bit"))
    method = saved.get("quant_method")
    if method == "bitsandbytes" or (method is None and (four or eight)):
        bits = 4 if four else 8
        yield Finding(
            "{model} was saved in {bits} bit by bitsandbytes: it loads as it was saved, and the quantization_config of the call "
            "is not used",
            {"model": model.name, "bits": bits, "asked": asked.bits},
            severity="info" if asked.bits in (None, bits) else "warning",
            site=request.site,
            fixes=(Advice("take the 16-bit weights if you want other settings"),),
        )
        return
    version = facts.version("transformers")
    if version is None:
        raise UnknownFact("version of transformers", "it is not installed")
    raises = at_least(version, "4.57")
    yield Finding(
        "{model} is already quantised ({method}), and transformers {transformers} {word}. For QLoRA take the repository "
        "with the 16-bit weights (often the same name without {method}), or drop quantization_config",
        {
            "model": model.name,
            "method": str(method or "unknown method")[:40],
            "transformers": str(version),
            "word": "raises ValueError when it is given a BitsAndBytesConfig"
            if raises
            else "ignores a BitsAndBytesConfig then",
        },
        severity="error" if raises else "warning",
        site=request.site,
        fixes=(
            Advice("take the 16-bit weights"),
            LoadKwarg("quantization_config", drop=True, applicability="display-only", site=request.site),
        ),
    )


def _asked(request: LoadRequest) -> Quantization | None:
    try:
        return request.quantization
    except UnknownArgument:
        if request.call.function.startswith("."):  # a folder on the command line: nothing is asked yet
            return None
        raise


@check("QD321", needs=["model"], since="0.1", requires=["QD310", "QD311"])
def original_llava_layout(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """The folder holds a LLaVA in the layout of its authors' own code, and transformers is to load it.

    The names of its weights are none that a transformers class has (`model.mm_projector.0.weight` where
    LlavaForConditionalGeneration has `multi_modal_projector.linear_1.weight`), its vision tower lies in another repository, and
    it has no processor. The load ends in a size mismatch, or goes on with random weights. Fine-tunes of liuhaotian's models have
    it too. Silent where the authors' own package loads it.

    Fix: the converted repository of llava-hf, for a published model; for a fine-tune `qlora-core convert DIR OUT`, which
    renames the weights, adds the vision tower that config.json names, and builds the processor. `load_quantized` does that by
    itself, once, and keeps the result in the doctor's cache folder.

    Source: facts run with a tiny checkpoint in this layout on 4.44.2, 4.57.6 and 5.23.0; haotian-liu/LLaVA #1831.
    """
    model = model_of(facts, request)
    evidence = original_llava(model)
    if not evidence or not by_transformers(request):
        return
    path = model.name.rstrip("/\\")
    last = re.split(r"[/\\]", path)[-1]
    twin = known_model("liuhaotian/" + last)
    command = f"qlora-core convert {_quoted(path)} {_quoted(path + '-hf')}"
    if model.origin == "hub":
        if known_model(model.name):
            return  # the checks that go by the name have said it, with the repository to take
        command = f"qlora-doctor download {path} --to {last} && qlora-core convert {last} {last}-hf"
    instead = f"take {twin.instead}, or convert the folder" if twin and twin.instead else "convert the folder"
    yield Finding(
        "{model} is in the original LLaVA layout ({evidence}), which no transformers class has: {instead} with "
        "`{command}` and load what that writes",
        {"model": model.name, "evidence": evidence, "instead": instead, "command": command},
        severity="error",
        site=request.site,
        fixes=(Advice("convert the folder, then load the converted one", command),),
    )


def _quoted(path: str) -> str:
    return path if re.fullmatch(r"[\w@%+=:,./~-]+", path) else "'" + path.replace("'", "'\\''") + "'"


@check("QD322", needs=["model"], since="0.1", requires=[*_SOUND, "QD311", "QD321"])
def weights_with_the_prefix_of_a_wrapper(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """The names of the weights begin with the name of a wrapper: `module.`, `base_model.model.`, `_orig_mod.`.

    Such a folder was saved from inside DistributedDataParallel, PEFT or torch.compile. transformers does not take the prefix
    off, so it finds none of its weights and initialises them all at random, with a warning among many. A PEFT checkpoint saved
    so also names the adapters (`lora_A`) among the weights.

    Fix: save again from the model inside the wrapper; for PEFT, merge first.
    """
    model = model_of(facts, request)
    names = weight_names(model)
    if not by_transformers(request):
        return
    if not names:
        _need_names(model)
        return
    for prefix, wrapper, way in _PREFIXES:
        with_it = [n for n in names if n.startswith(prefix)]
        if len(with_it) * 2 > len(names):
            yield Finding(
                "{count} of the {total} weights of {model} have names that begin with {prefix}: they were saved from inside "
                "{wrapper}, and transformers would find none of them. Save again: {way}",
                {
                    "model": model.name, "count": len(with_it), "total": len(names), "prefix": prefix, "wrapper": wrapper,
                    "way": way,
                },
                severity="error",
                site=request.site,
                fixes=(Advice(way),),
            )  # fmt: skip
            return


@check("QD323", needs=["model"], since="0.1", requires=[*_SOUND, "QD311", "QD321", "QD322"])
def weights_of_another_architecture(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """The names of the weights are those of another architecture than config.json states.

    A part that the architecture has (the vision tower, the projector, the Q-Former, the layers) and of which no weight is
    there is initialised at random. So are all, where the names are those of LAVIS (InstructBLIP's own code) or of Meta's
    consolidated checkpoints (`layers.0.attention.wq.weight`).

    Only the families that the doctor knows are judged by their parts; unknown where some of the names could not be read.

    Fix: the repository of the model in the transformers layout.
    """
    model = model_of(facts, request)
    if not by_transformers(request) or model.config is None:
        return
    names = weight_names(model)
    if not names:
        _need_names(model)
        return
    foreign = next((n for n in names if n.startswith(_LAVIS)), None)
    meta = next((n for n in names if _META.match(n)), None)
    known_family = family(model)
    layout = "LAVIS" if foreign else "Meta's own code" if meta else ""
    if foreign and known_family is None:
        return
    if layout:
        yield _not_ours(request, model, f"{foreign or meta} is a name of {layout}")
        return
    if known_family is None:
        return
    places = known_family.layout
    parts = [p.rpartition(".")[2] for p in (places.vision_tower, places.projector, places.qformer) if p]
    beside = re.compile(rf"(^|\.)({'|'.join(parts)})\.") if parts else None
    language = [n for n in names if beside is None or not beside.search(n)]
    for part in (*parts, "layers|block"):
        among = language if part == "layers|block" else names
        if any(re.search(rf"(^|\.)({part})\.", name) for name in among):
            continue
        if not names_are_known(model):
            raise UnknownFact("model.tensors", "not every header could be read")
        word = part.replace("|", " or ")
        yield _not_ours(request, model, f"none of them is named {word}, which {known_family.title} has")
        return


def _need_names(model: ModelFacts) -> None:
    """Raises UnknownFact where there are weights whose names cannot be read without opening a pickle."""
    files = weight_files(model)
    if files:
        pickled = files[0].name.endswith(".bin")
        why = f"{files[0].name} is a pickle, which is not opened" if pickled else files[0].detail or files[0].name
        raise UnknownFact("model.tensors", why)


def _not_ours(request: LoadRequest, model: ModelFacts, what: str) -> Finding:
    return Finding(
        "The weights of {model} are not those of its config.json ({type}): {what}, so they would be random. Take the "
        "repository of this model in the transformers layout",
        {"model": model.name, "type": config_of(model).get("model_type", "?"), "what": what},
        severity="error",
        site=request.site,
        fixes=(Advice("take the model in the transformers layout"),),
    )


@check("QD324", needs=["model", "disks"], since="0.1", requires=["QD310", "QD314"])
def no_room_for_the_conversion(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A folder must be converted before it loads, and the disk has no room for a second copy.

    `qlora-core convert` writes as many bytes as the original has, and the vision tower (0.6 GiB) beside them. Silent where
    nothing is to be converted.

    Fix: free the room, or convert to a folder on another disk.
    """
    model = model_of(facts, request)
    if not original_llava(model) or not by_transformers(request):
        return
    needed = sum(f.size for f in weight_files(model)) + int(0.6 * GIB)
    disk = next((d for d in facts.disks if d.purpose == "project"), None)
    if disk is None:
        raise UnknownFact("disks", "the disk of the project was not read")
    free = known(disk.free, f"free space of {disk.path}")
    if free < needed:
        yield Finding(
            "Converting {model} writes {needed} GiB, and {path} has {free} GiB free: free some room, or convert to another disk",
            {"model": model.name, "needed": f"{needed / GIB:.1f}", "free": f"{free / GIB:.1f}", "path": disk.path},
            severity="warning",
            site=request.site,
            fixes=(Advice("convert to a folder on a larger disk"),),
        )


@check("QD325", needs=["model", "host"], since="0.1", requires=["QD310", "QD314"])
def weight_file_larger_than_the_memory(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """One weight file is larger than the memory that this process may use (RAM, or the limit of its container).

    Weight files are mapped, not copied, so such a load often works, slowly: the same pages are read from disk again and
    again. A .bin file in the old format (before torch 1.6) is read whole and ends in a killed process.

    A warning for .bin, information for safetensors.

    Fix: smaller files (`save_pretrained(max_shard_size="2GB")`, made on a machine with more memory), or a higher limit of the
    container.
    """
    model = model_of(facts, request)
    largest = max(weight_files(model), key=lambda f: f.size, default=None)
    if largest is None:
        return
    limits = [n for n in (facts.host.memory_total, facts.host.memory_limit) if n]
    if not limits:
        raise UnknownFact("host.memory_total", "it could not be read")
    if largest.size > min(limits):
        yield Finding(
            "{file} of {model} has {size} GiB, and this process may use {room} GiB of memory: expect a slow load or a killed "
            "process; take a model with smaller files, or raise the limit",
            {
                "model": model.name,
                "file": largest.name,
                "size": f"{largest.size / GIB:.1f}",
                "room": f"{min(limits) / GIB:.1f}",
            },
            severity="warning" if largest.name.endswith(".bin") else "info",
            site=request.site,
            fixes=(Advice("take a model with smaller weight files"),),
        )


CHECKS: tuple[Check, ...] = (
    quantizing_what_is_already_quantized,
    original_llava_layout,
    weights_with_the_prefix_of_a_wrapper,
    weights_of_another_architecture,
    no_room_for_the_conversion,
    weight_file_larger_than_the_memory,
)
