"""QD1: the dtypes that a load names."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.common import suited_dtype, torch_dtype, without_bfloat16
from qlora_checks.quantization import four_bit_config
from qlora_checks.runs import decides_dtype
from qlora_doctor.errors import UnknownArgument
from qlora_doctor.facts import Facts
from qlora_doctor.families import family_of
from qlora_doctor.finding import Finding
from qlora_doctor.fix import LoadKwarg
from qlora_doctor.registry import Check, check
from qlora_doctor.request import LoadRequest, dtype_name
from qlora_doctor.source import Dotted, Value, show

_DTYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "torch.bfloat16": "bfloat16",
    "torch.float16": "float16",
    "torch.float32": "float32",
}


@check("QD103", needs=["packages"], since="0.1")
def dtype_that_torch_does_not_have(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A dtype given as a string that is no name in torch: `dtype="bf16"`, `dtype="torch.float16"`.

    transformers looks the string up in torch. `"bf16"` gives `AttributeError: module 'torch' has no attribute 'bf16'`
    in 5.23 (run), and a ValueError in 4.44 (source). `BitsAndBytesConfig(bnb_4bit_compute_dtype="bf16")` fails the same
    way when it is built, in every version since 4.30.

    Right are `torch.bfloat16` without quotes, `"bfloat16"`, and for the load itself `"auto"`.
    """
    names = [n for n in ("dtype", "torch_dtype") if n in request.call.arguments]
    for name in names:
        value = request.call.seen(name)
        right = _DTYPES.get(value) if isinstance(value, str) else None
        if right:
            yield _no_such_dtype(request, name, str(value), right, "load")
    config = request.call.arguments.get("quantization_config")
    value = getattr(config, "arguments", {}).get("bnb_4bit_compute_dtype")
    if isinstance(value, str) and value in _DTYPES:
        yield _no_such_dtype(request, "bnb_4bit_compute_dtype", value, _DTYPES[value], "quantization")


def _no_such_dtype(request: LoadRequest, name: str, value: str, right: str, target: str) -> Finding:
    site = request.site
    fix = LoadKwarg(name, torch_dtype(right), target="quantization" if target == "quantization" else "load", site=site)
    return Finding(
        "{model}: {name}={value} is looked up in torch, which has no such name, and the load fails with an "
        "AttributeError; write torch.{right} (or {right} in quotes)",
        evidence={"model": request.model_or, "name": name, "value": show(value), "right": right},
        severity="error",
        site=site,
        fixes=(fix,),
    )


@check("QD106", wants=["gpus", "environ"], since="0.1")
def float16_for_a_t5_model(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """InstructBLIP or BLIP-2 with a T5 language model, loaded in float16.

    T5 was trained in bfloat16; its feed-forward activations exceed what float16 can hold, and the result is inf or
    NaN. transformers keeps T5's `wo` in float32 for this reason, but only that layer. bfloat16 has the range.

    Only models whose name says T5 are judged. float16 with a Vicuna or OPT language model is fine.
    """
    name = request.call.seen("pretrained_model_name_or_path")
    family = family_of(name) if isinstance(name, str) else None
    if family is None or family.model_type not in ("instructblip", "blip-2") or "t5" not in str(name).lower():
        return
    for keyword in ("dtype", "torch_dtype"):
        if request.call.seen(keyword) not in (Dotted("torch.float16"), Dotted("torch.half"), "float16"):
            continue
        yield Finding(
            "{model}: float16 overflows in T5 (inf or NaN losses); pass {keyword}=torch.bfloat16, or float32 on a GPU "
            "without bfloat16",
            evidence={"model": str(name), "keyword": keyword},
            severity="warning",
            site=request.site,
            fixes=(LoadKwarg(keyword, torch_dtype(suited_for_t5(facts)), applicability="unsafe", site=request.site),),
        )


def suited_for_t5(facts: Facts) -> str:
    """bfloat16, or float32 where a GPU has no bfloat16 units."""
    return "bfloat16" if suited_dtype(facts)[0] == "bfloat16" else "float32"


@check("QD114", needs=["gpus"], wants=["environ"], since="0.1")
def bfloat16_without_hardware(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """bfloat16 asked for on a GPU that has no bfloat16 units (compute capability below 8.0: Turing, Volta, Pascal).

    PyTorch emulates it there: it runs, but much slower than float16. Mixed-precision training with `bf16=True` is
    refused by transformers on such a card; that is a check of its own (QD6).

    Judged are the dtype of the load and `bnb_4bit_compute_dtype`. `torch.cuda.is_bf16_supported()` in an if/else is
    read as two loads, and the bfloat16 branch is then not taken on such a card, so it is not judged.

    Fix: float16, or float32 for models that overflow in it (T5).
    """
    old = without_bfloat16(facts)
    if not old or decides_dtype(request.when):
        return
    found: list[tuple[str, str]] = [
        (name, "load") for name in ("dtype", "torch_dtype") if _is_bfloat16(request.call.seen(name))
    ]
    try:
        config = four_bit_config(request)
    except UnknownArgument:
        config = None
    if config is not None and _is_bfloat16(config.seen("bnb_4bit_compute_dtype")):
        found.append(("bnb_4bit_compute_dtype", "quantization"))
    for name, target in found:
        yield Finding(
            "{model}: {name}=torch.bfloat16, but {gpus} has no bfloat16 units: it is emulated and slow; pass "
            "torch.float16",
            evidence={"model": request.model_or, "name": name, "gpus": old},
            severity="warning",
            site=request.site,
            fixes=(
                LoadKwarg(
                    name,
                    torch_dtype("float16"),
                    target="quantization" if target == "quantization" else "load",
                    applicability="unsafe",
                    site=request.site,
                ),
            ),
        )


def _is_bfloat16(value: Value) -> bool:
    try:
        return dtype_name(value) == "bfloat16"
    except UnknownArgument:
        return False


CHECKS: tuple[Check, ...] = (dtype_that_torch_does_not_have, float16_for_a_t5_model, bfloat16_without_hardware)
