"""QD1: the load request: dtype, layout, device map."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.common import (
    at_least,
    bnb_quantization,
    installed_version,
    is_auto,
    of_transformers,
    suited_dtype,
    torch_dtype,
)
from qlora_doctor.facts import Facts, Unknown
from qlora_doctor.families import BY_CLASS, known_model
from qlora_doctor.finding import Finding, Severity
from qlora_doctor.fix import Advice, LoadKwarg
from qlora_doctor.registry import Check, check
from qlora_doctor.request import LoadRequest
from qlora_doctor.source import show

_READ_UP_TO = "5.23"
_FORCED = (
    "{model}: this {bits}-bit load names no dtype. transformers {transformers} then casts what is not quantised to "
    "float16, so nothing fails; pass {keyword}={value} to say it ({why})"
)
_FOLLOWED = (
    "{model}: this {bits}-bit load names no dtype. transformers {transformers} then follows the checkpoint, so nothing "
    "fails, but a float32 checkpoint keeps its unquantised parts in float32; pass {keyword}={value} to say it ({why})"
)


@check("QD101", needs=["packages"], wants=["gpus", "environ"], since="0.1")
def quantized_load_without_dtype(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A 4-bit or 8-bit load that does not say which dtype the unquantised weights get.

    Norms, embeddings and the output layer stay unquantised. What they get when the call names no dtype depends on
    transformers: 4.30 to 4.57 force float16 (a log line says so), 5.x takes the dtype of the checkpoint. Neither
    crashes: 24 load cases on 5.23, and the source of every minor from 4.30 on, were looked at. A guide that blames a
    segmentation fault on the missing dtype met a checkpoint whose keys did not match (see QD104).

    So this is never more than a note. It is worth naming: on 4.x float16 can overflow in a model that was trained in
    bfloat16, and on 5.x a float32 checkpoint keeps float32 and costs memory.

    Fix: pass `dtype` (transformers 4.56 and newer) or `torch_dtype` (older): bfloat16 unless a GPU here has no
    bfloat16 units (compute capability below 8.0).
    """
    quantization = bnb_quantization(request)
    if quantization is None or request.source == "command line" or request.call.has("dtype", "torch_dtype"):
        return
    version = installed_version(facts, "transformers")
    if not at_least(version, "4.30"):
        return
    value, why = suited_dtype(facts)
    keyword = "dtype" if at_least(version, "4.56") else "torch_dtype"
    yield Finding(
        _FOLLOWED if at_least(version, "5.0") else _FORCED,
        evidence={
            "model": request.model_or,
            "bits": quantization.bits,
            "transformers": str(version),
            "keyword": keyword,
            "value": f"torch.{value}",
            "why": why,
            "read_up_to": _READ_UP_TO,
        },
        severity="info",
        site=request.site,
        fixes=(LoadKwarg(keyword, torch_dtype(value), site=request.site),),
    )


_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")


@check("QD104", since="0.1")
def original_llava_layout(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A LLaVA repository in its authors' own layout, loaded with a transformers class.

    The repositories of liuhaotian name the weights `model.layers.*` and `model.mm_projector.*`, hold no vision tower
    and no image processor. Their config says `model_type: llava`, so transformers builds its own LLaVA, finds not one
    matching key, and every weight is left as it was initialised. What follows depends on the versions, all of it run
    on a rebuilt tiny checkpoint: transformers 5.23 only logs it and gives a random model that is not even 4-bit (the
    first forward fails with an empty AssertionError); 4.57 with bitsandbytes 0.48 dies with exit code 139 on a CPU;
    4.44 in 8-bit fails with `"normal_kernel_cpu" not implemented for 'Char'`; unquantised it trains a random model
    without a word. Naming a dtype changes none of this.

    It does not apply where LLaVA's own package loads the model (`llava.model.builder.load_pretrained_model`), nor to
    the tokenizer, which is a sound Llama tokenizer. In a settings file, where the class is not known, it is a warning.

    Fix: the converted repository under llava-hf, which has a processor too.
    """
    name = request.call.seen("pretrained_model_name_or_path")
    model = known_model(name) if isinstance(name, str) else None
    settings = request.source == "config" and request.call.function == ".from_pretrained"
    if model is None or model.layout != "original-llava" or not (settings or of_transformers(request)):
        return
    script = facts.state("script")
    if is_auto(request) and not isinstance(script, Unknown) and script.imports_module("llava"):
        return
    fixes: list[LoadKwarg | Advice] = [
        LoadKwarg("pretrained_model_name_or_path", model.instead, applicability="unsafe", site=request.site)
    ]
    right = next((c for c, f in BY_CLASS.items() if f.model_type == model.model_type), "")
    if not settings and request.class_name not in (right, "AutoModelForImageTextToText", "AutoModelForVision2Seq"):
        fixes.append(Advice(f"load it with {right} or AutoModelForImageTextToText"))
    yield Finding(
        "{model} is in LLaVA's own layout: {class_name} finds none of its keys there and leaves every weight random "
        "(exit code 139, 'Char' or an empty AssertionError follow, or training on noise); load {instead} instead",
        evidence={
            "model": model.name,
            "class_name": "transformers" if settings else request.class_name,
            "instead": model.instead,
        },
        severity="warning" if settings else "error",
        site=request.site,
        fixes=tuple(fixes),
    )


@check("QD105", needs=["script"], wants=["gpus"], since="0.1")
def device_map_auto_in_distributed_run(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """`device_map="auto"` in a script that is launched as several processes.

    `auto` spreads one copy of the model over all GPUs that the process can see. Under torchrun or `accelerate launch`
    every process does so, and training stops: `You can't train a model that has been loaded with device_map='auto' in
    any distributed mode` (accelerate 1.15, `Accelerator.prepare_model`; it looks whether the map names more than one
    device).

    So it is an error where two or more GPUs are seen, a warning where the GPUs are not known, and a note where there is
    at most one, because `auto` then means that one. A call that an if/else gives another device map is not judged.

    Fix: put each process's copy on its own GPU.
    """
    value = request.call.seen("device_map")
    if _by_rank(request.when) or value not in _SPREAD or not facts.script.distributed:
        return
    gpus = facts.state("gpus")
    severity: Severity = "warning" if isinstance(gpus, Unknown) else "error" if len(gpus) > 1 else "info"
    yield Finding(
        "device_map={value} in a script that runs as several processes ({launcher}): each spreads its copy over all "
        "GPUs that it sees, and with more than one GPU training is refused; give each process its own GPU",
        evidence={"value": show(value), "launcher": facts.script.distributed},
        severity=severity,
        site=request.site,
        fixes=(Advice('pass device_map={"": int(os.environ.get("LOCAL_RANK", 0))}'),),
    )


def _by_rank(when: str) -> bool:
    """Whether a branch is chosen by how many processes or devices there are."""
    words = ("rank", "world", "distributed", "ddp", "device", "gpu", "fsdp", "deepspeed", "zero", "multi", "parallel")
    return any(word in when.lower() for word in words)


CHECKS: tuple[Check, ...] = (
    quantized_load_without_dtype,
    original_llava_layout,
    device_map_auto_in_distributed_run,
)
