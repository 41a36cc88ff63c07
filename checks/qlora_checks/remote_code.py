"""QD1: code from the model's repository."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.common import at_least, installed_version, is_auto, of_transformers
from qlora_doctor.errors import UnknownArgument
from qlora_doctor.facts import Facts
from qlora_doctor.families import family_of, known_model
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, Fix, LoadKwarg
from qlora_doctor.registry import Check, check
from qlora_doctor.request import LoadRequest

# Text models beyond the families whose repositories have never brought code: the start of the name, what transformers
# calls them, and its first version with them.
_NATIVE: tuple[tuple[str, str, str], ...] = (
    *((start, "Llama", "4.28") for start in (
        "meta-llama/", "huggyllama/", "nousresearch/llama-2-", "nousresearch/meta-llama-3-", "nousresearch/meta-llama-3.1-",
        "tinyllama/", "lmsys/vicuna-", "huggingfacetb/smollm-", "huggingfacetb/smollm2-",
    )),
    ("mistralai/mistral-7b-", "Mistral", "4.34"),
    ("huggingfaceh4/zephyr-7b-", "Mistral", "4.34"),
    ("mistralai/mixtral-", "Mixtral", "4.36"),
    ("facebook/opt-", "OPT", "4.19"),
    ("google/gemma-2-", "Gemma 2", "4.42"),
    ("google/gemma-2b", "Gemma", "4.38"),
    ("google/gemma-7b", "Gemma", "4.38"),
    ("google/flan-t5-", "T5", "4.0"),
    ("eleutherai/gpt-neox-", "GPT-NeoX", "4.21"),
    ("eleutherai/pythia-", "GPT-NeoX", "4.21"),
    ("bigscience/bloom", "BLOOM", "4.20"),
)  # fmt: skip


def native(name: str) -> tuple[str, str] | None:
    """What transformers calls the model that a repository's name stands for, and its first version with it."""
    family = family_of(name)
    if family is not None:
        return family.title, family.minimum
    low = name.strip("/").lower()
    return next(((title, since) for start, title, since in _NATIVE if low.startswith(start)), None)


@check("QD102", needs=["packages"], since="0.1")
def trust_remote_code_without_need(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """`trust_remote_code=True` where it changes nothing, or could only do harm.

    A concrete class (`LlavaForConditionalGeneration`) ignores it: with a warning up to transformers 4.48, silently
    later. An Auto class acts on it only if the repository's config has an `auto_map`; then the repository's code
    replaces the native class, in every version that was opened (4.30 to 5.22), even where transformers has the
    architecture itself. The official Qwen2, Qwen2.5, Qwen3, Qwen-VL, llava-hf and Salesforce repositories, Llama, Mistral, Gemma,
    OPT, T5, GPT-NeoX and BLOOM have none. It does not conflict with quantisation, as a guide has it: on 5.23, 4.57 and 4.44 it made no difference to a 4-bit load.

    So it is a note: today nothing changes; the day the repository (or a copy of it) brings code, that code runs on your
    machine. Models that the doctor does not know may need it and are not judged.

    Fix: drop it.
    """
    if request.call.get("trust_remote_code") is not True or not of_transformers(request):
        return
    version = installed_version(facts, "transformers")
    drop = LoadKwarg("trust_remote_code", drop=True, site=request.site)
    evidence = {"model": request.model_or, "class_name": request.class_name, "transformers": str(version)}
    if not is_auto(request):
        yield Finding(
            "trust_remote_code=True has no effect on {class_name}: a concrete class never takes code from the "
            "repository; drop it",
            evidence=evidence,
            severity="info",
            site=request.site,
            fixes=(drop,),
        )
        return
    known = native(request.model)
    if known is None or not at_least(version, known[1]):
        return
    yield Finding(
        "{model}: transformers {transformers} has {family} itself, so trust_remote_code=True adds nothing; if the "
        "repository ever brings code of its own, that code would run here in place of the native class; drop it",
        evidence={**evidence, "family": known[0]},
        severity="info",
        site=request.site,
        fixes=(drop,),
    )


@check("QD107", since="0.1")
def quantized_load_of_remote_code_model(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A quantised load of a model that only runs with code from its repository, and has a native successor.

    Qwen-VL, Qwen-VL-Chat and the first Qwen (7B) have no class in transformers. Their repository's code was written
    for transformers 4.31/4.32 (so their model cards say) and reaches into parts that later versions moved. Without
    `trust_remote_code=True` the load is a ValueError that asks for it.

    A warning where the code is trusted, because it may work with the transformers it was written for; an error where it
    is not.

    Fix: the native successor. For Qwen-VL that is Qwen2-VL, with AutoModelForImageTextToText and its processor; prompts
    and adapters do not carry over.
    """
    name = request.call.seen("pretrained_model_name_or_path")
    model = known_model(name) if isinstance(name, str) else None
    if model is None or model.layout != "remote-code" or not of_transformers(request) or request.quantization is None:
        return
    trusted = True
    try:
        trusted = request.call.get("trust_remote_code") is True
    except UnknownArgument:
        pass
    vision = "-VL" in model.name
    fixes: tuple[Fix, ...]
    if vision:
        fixes = (Advice(f"load {model.instead} with AutoModelForImageTextToText and its AutoProcessor"),)
    else:
        fixes = (
            LoadKwarg(
                "pretrained_model_name_or_path", model.instead, applicability="unsafe", site=request.site
            ),
        )  # fmt: skip
    yield Finding(
        "{model} has no class in transformers: it runs with its repository's code, written for transformers 4.31/4.32, "
        "or not at all; its native successor is {instead}"
        if trusted
        else "{model} has no class in transformers, and without trust_remote_code=True the load is a ValueError; its "
        "native successor, which needs no foreign code, is {instead}",
        evidence={"model": model.name, "instead": model.instead},
        severity="warning" if trusted else "error",
        site=request.site,
        fixes=fixes,
    )


CHECKS: tuple[Check, ...] = (trust_remote_code_without_need, quantized_load_of_remote_code_model)
