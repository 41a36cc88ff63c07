"""QD1: the BitsAndBytesConfig."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qlora_checks.common import at_least, bnb_quantization, nvidia, suited_dtype, torch_dtype
from qlora_doctor.errors import UnknownArgument
from qlora_doctor.facts import Facts, Unknown
from qlora_doctor.finding import Finding
from qlora_doctor.fix import LoadKwarg
from qlora_doctor.registry import Check, check
from qlora_doctor.request import LoadRequest, dtype_name
from qlora_doctor.source import Call, Unresolved, Value, show


def config_of(request: LoadRequest) -> Call | None:
    """The BitsAndBytesConfig of a load, as a call, also where it is given as a plain dict; None where there is none.

    Raises:
        UnknownArgument: it cannot be known.
    """
    value: Value | Unresolved = request.call.arguments.get("quantization_config")
    if isinstance(value, Mapping):
        method = value.get("quant_method", "bitsandbytes")
        return (
            Call("transformers.BitsAndBytesConfig", value) if method in ("bitsandbytes", "bitsandbytes_4bit") else None
        )
    if isinstance(value, Call):
        return value if value.function.rpartition(".")[2] == "BitsAndBytesConfig" else None
    request.call.get("quantization_config")
    return None


def four_bit_config(request: LoadRequest) -> Call | None:
    """The BitsAndBytesConfig of a 4-bit load, or None."""
    quantization = bnb_quantization(request)
    return config_of(request) if quantization is not None and quantization.bits == 4 else None


@check("QD110", wants=["gpus", "packages", "environ"], since="0.1")
def compute_dtype_left_at_float32(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A 4-bit load whose `bnb_4bit_compute_dtype` is float32, which is what it is when nothing is said.

    Weights are unpacked to this dtype for each matrix product, and transformers sets float32 unless told otherwise
    (`BitsAndBytesConfig.__init__`, 5.23; the same since 4.30). On a GPU the products then run in float32, several times
    slower than in 16 bit and with twice the activations. bitsandbytes takes the inputs' dtype instead only while the
    compute dtype was never set, which transformers never leaves so.

    On a machine without a GPU it is a note: float32 is sound there, if slow.

    Fix: bfloat16, or float16 where a GPU has no bfloat16 units.
    """
    config = four_bit_config(request)
    if config is None:
        return
    given = dtype_name(config.get("bnb_4bit_compute_dtype"))
    if given not in (None, "float32") or (given is not None and request.when):
        return
    harmless = given is not None or nvidia(facts) == () or (_adapts(facts) and _dtype(request) == "bfloat16")
    value, why = suited_dtype(facts)
    yield Finding(
        "{model}: the 4-bit products run in float32 ({how}), which is slow on a GPU and takes twice the memory for "
        "activations; pass bnb_4bit_compute_dtype={value} ({why})",
        evidence={
            "model": request.model_or,
            "how": "bnb_4bit_compute_dtype is not given" if given is None else "bnb_4bit_compute_dtype says so",
            "value": f"torch.{value}",
            "why": why,
        },
        severity="info" if harmless else "warning",
        site=config.site or request.site,
        fixes=(
            LoadKwarg(
                "bnb_4bit_compute_dtype",
                torch_dtype(value),
                target="quantization",
                applicability="safe" if given is None else "unsafe",
                site=request.site,
            ),
        ),
    )


def _adapts(facts: Facts) -> bool:
    """Whether the installed bitsandbytes replaces a compute dtype by that of the first input."""
    if isinstance(facts.state("packages"), Unknown):
        return False
    version = facts.version("bitsandbytes")
    return version is not None and not at_least(version, "0.47")


def _dtype(request: LoadRequest) -> str | None:
    try:
        return request.dtype
    except UnknownArgument:
        return None


@check("QD111", since="0.1")
def fp4_where_nf4_is_meant(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A 4-bit load in FP4, because `bnb_4bit_quant_type` is not given.

    The default of `bnb_4bit_quant_type` is `fp4` (transformers 4.30 to 5.23), though QLoRA means NF4: the QLoRA paper
    measures a lower perplexity with NF4, whose levels follow a normal distribution as the weights do. Both cost 4 bits
    and run at the same speed. So nothing fails; it is a note.

    An explicit `bnb_4bit_quant_type="fp4"` is taken as meant. Adapters that were trained on an FP4 base should go on
    with FP4, so the fix is not applied on its own.
    """
    config = four_bit_config(request)
    if config is None or config.has("bnb_4bit_quant_type"):
        return
    yield Finding(
        '{model}: bnb_4bit_quant_type is not given, so the weights become FP4; pass "nf4", which QLoRA uses and which '
        "is more exact at the same size",
        evidence={"model": request.model_or},
        severity="info",
        site=config.site or request.site,
        fixes=(
            LoadKwarg("bnb_4bit_quant_type", "nf4", target="quantization", applicability="unsafe", site=request.site),
        ),
    )


@check("QD112", since="0.1")
def both_4bit_and_8bit(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """`load_in_4bit=True` and `load_in_8bit=True` at once.

    `ValueError: load_in_4bit and load_in_8bit are both True, but only one can be used at the same time` when the config
    is built (run on transformers 5.23; in the source since 4.30). The fix keeps 4 bit.
    """
    config = config_of(request)
    for call, target in ((config, "quantization"), (request.call, "load")):
        if call is None or not (call.seen("load_in_4bit") is True and call.seen("load_in_8bit") is True):
            continue
        yield Finding(
            "load_in_4bit and load_in_8bit are both True, which is a ValueError; drop load_in_8bit for QLoRA",
            severity="error",
            site=call.site or request.site,
            fixes=(
                LoadKwarg(
                    "load_in_8bit",
                    drop=True,
                    target="quantization" if target == "quantization" else "load",
                    applicability="unsafe",
                    site=request.site,
                ),
            ),
        )


@check("QD113", since="0.1")
def quantization_options_without_bits(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A BitsAndBytesConfig with 4-bit options but without `load_in_4bit=True`.

    The options alone switch nothing on: the model loads unquantised, at four times the memory and without a word (run
    on transformers 5.23). An explicit `load_in_4bit=False` is taken as meant, and so is 8 bit.

    Fix: `load_in_4bit=True`.
    """
    config = config_of(request)
    if config is None or config.has("load_in_4bit", "load_in_8bit"):
        return
    options = sorted(name for name in config.arguments if name.startswith("bnb_4bit_"))
    if not options:
        return
    yield Finding(
        "{model}: {options} without load_in_4bit=True: nothing is quantised and the model takes four times the memory; "
        "pass load_in_4bit=True",
        evidence={"model": request.model_or, "options": options},
        severity="warning",
        site=config.site or request.site,
        fixes=(LoadKwarg("load_in_4bit", True, target="quantization", applicability="unsafe", site=request.site),),
    )


@check("QD115", since="0.1")
def quantization_option_of_wrong_type(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """An option of BitsAndBytesConfig whose value is refused.

    `BitsAndBytesConfig.post_init` compares types exactly: `llm_int8_threshold=6` is `TypeError: llm_int8_threshold must
    be a float`, and a single string for `llm_int8_skip_modules` is refused too. A quant type other than "fp4" and "nf4"
    passes there and fails in bitsandbytes while the weights are converted. All run on transformers 5.23.
    """
    config = config_of(request)
    if config is None:
        return
    for name, value, right, why in _wrong(config):
        fixes = () if right is None else (LoadKwarg(name, right, target="quantization", site=request.site),)
        yield Finding(
            "{name}={value}: {why}",
            evidence={"name": name, "value": show(value), "why": why},
            severity="error",
            site=config.site or request.site,
            fixes=fixes,
        )


def _wrong(config: Call) -> Iterator[tuple[str, Value, Value, str]]:
    threshold = config.seen("llm_int8_threshold")
    if isinstance(threshold, int) and not isinstance(threshold, bool):
        yield "llm_int8_threshold", threshold, float(threshold), f"must be a float; write {float(threshold)}"
    skip = config.seen("llm_int8_skip_modules")
    if isinstance(skip, str):
        yield "llm_int8_skip_modules", skip, (skip,), "must be a list of names; write it in brackets"
    kind = config.seen("bnb_4bit_quant_type")
    if isinstance(kind, str) and kind not in ("nf4", "fp4"):
        right = kind.lower() if kind.lower() in ("nf4", "fp4") else None
        yield "bnb_4bit_quant_type", kind, right, 'bitsandbytes knows "nf4" and "fp4" only (in small letters)'
    for name in ("load_in_4bit", "load_in_8bit", "bnb_4bit_use_double_quant"):
        value = config.seen(name)
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            yield name, value, None, "must be True or False"


CHECKS: tuple[Check, ...] = (
    compute_dtype_left_at_float32,
    fp4_where_nf4_is_meant,
    both_4bit_and_8bit,
    quantization_options_without_bits,
    quantization_option_of_wrong_type,
)
