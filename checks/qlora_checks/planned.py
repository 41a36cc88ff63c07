"""A training request as the memory estimate's settings: only what the request says, and the least where it is silent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qlora_checks.common import bnb_quantization
from qlora_checks.runs import by_trl, checkpoints
from qlora_doctor.errors import UnknownArgument
from qlora_doctor.facts import Facts, Gpu, Unknown
from qlora_doctor.request import LoadRequest, TrainRequest
from qlora_doctor.source import Call, Value

if TYPE_CHECKING:
    from qlora_doctor.memory.settings import Settings
    from qlora_doctor.memory.shapes import Shape

# The shortest rows that anybody trains on; used where the length of the data is not known.
SHORTEST = 64
# The first word that a name holds decides: Qwen's `visual.merger` is its projector, and `visual` covers both.
_KEPT: Mapping[str, tuple[str, ...]] = {
    "merger": ("projector",),
    "visual": ("vision tower", "projector"),
    "vision": ("vision tower",),
    "projector": ("projector",),
    "language_projection": ("projector",),
    "qformer": ("Q-Former",),
}


@dataclass(frozen=True, slots=True)
class Planned:
    """A run whose memory can be told. `least` are the settings for the shortest rows, `full` for rows of `length` tokens.

    `length` is the cap that the training arguments set; None where they set none.
    """

    shape: Shape
    least: Settings
    full: Settings
    length: int | None


def only_gpu(facts: Facts) -> Gpu | None:
    """The one NVIDIA GPU of the machine; None where there are several, none, or its size is not known."""
    gpus = facts.gpus
    alone = len(gpus) == 1 and gpus[0].vendor == "nvidia" and not gpus[0].mig
    return gpus[0] if alone and gpus[0].memory_total else None


def shape_of_load(load: LoadRequest | None, facts: Facts | None = None) -> Shape | None:
    """The shape of the model that a load names; None where it is not known.

    It is known where its configuration ships with the doctor, or (a check that wants `model`) where the model's own
    config.json could be read, in its folder or on the Hub.
    """
    if load is None:
        return None
    from qlora_doctor.memory.known import shipped_shape

    name = load.call.seen("pretrained_model_name_or_path")
    if not isinstance(name, str):
        return None
    model = facts.state("model") if facts is not None else None
    if model is not None and not isinstance(model, Unknown) and model.config is not None:
        return _described(model.config, name)
    return shipped_shape(name) if name.count("/") == 1 and not name.startswith((".", "/", "~")) else None


def _described(config: Mapping[str, Any], name: str) -> Shape | None:
    """The shape that a config.json describes; None where it leaves out what decides, or is of no kind known here."""
    from qlora_doctor.errors import UsageError
    from qlora_doctor.memory.shapes import shape_of

    inside, sizes = config.get("text_config"), ("hidden_size", "d_model")
    flat = config.get("model_type") in ("qwen2_vl", "qwen2_5_vl") or "vision_config" not in config
    # The authors' own LLaVA files say `llava` too, and have neither text_config nor vision_config.
    if not isinstance(inside, Mapping) and not (
        flat and any(config.get(s) for s in sizes) and "mm_vision_tower" not in config
    ):
        return None
    try:
        return shape_of(config, name)
    except UsageError:
        return None


def kept_of(load: LoadRequest) -> tuple[str, ...]:
    """The parts that a load keeps in 16 bit besides the head: what llm_int8_skip_modules names.

    Raises:
        UnknownArgument: it cannot be known.
    """
    quantization = bnb_quantization(load)
    config = None if quantization is None else quantization.config
    names = config.get("llm_int8_skip_modules") if config is not None else None
    if not isinstance(names, tuple):
        return ()
    words = [w for w in names if isinstance(w, str)]
    found: Iterator[tuple[str, ...]] = (next((parts for key, parts in _KEPT.items() if key in w), ()) for w in words)
    return tuple(dict.fromkeys(part for parts in found for part in parts))


def planned(facts: Facts, request: TrainRequest) -> Planned | None:
    """The run that a request describes; None where its model is not known here or it is no 4-bit run on one GPU.

    Raises:
        UnknownArgument: something that decides cannot be known.
    """
    shape = shape_of_load(request.load, facts)
    if shape is None or request.load is None or request.settings is None:
        return None
    quantization = bnb_quantization(request.load)
    if quantization is None or quantization.bits != 4:
        return None
    s = request.settings
    if any(s.has(name) for name in ("deepspeed", "fsdp")):
        return None
    double = quantization.config.get("bnb_4bit_use_double_quant", False) if quantization.config is not None else False
    from qlora_doctor.memory.settings import Settings

    base = Settings(
        batch=_whole(s, "per_device_train_batch_size", 8),
        length=SHORTEST,
        rank=_whole(request.lora, "r", 8) if request.lora is not None else 8,
        images=0,
        double_quant=double is True,
        kept=kept_of(request.load),
        targets=_targets(request.lora),
        autocast=any(s.get(name) is True for name in ("bf16", "fp16")),
        prepared=request.prepared is True,
        checkpointing=_checkpointing(request, s),
        optimizer=_optimizer(s.get("optim")),
        loss="chunked" if by_trl(request) or _ours(request) or s.get("use_liger_kernel") is True else "plain",
        keeps_inputs=_old_bitsandbytes(facts),
    )
    length = _length(s)
    full = replace(base, length=length or SHORTEST, images=None)
    return Planned(shape, base, full, length)


def _ours(request: TrainRequest) -> bool:
    return request.subclass == "qlora_core.Trainer" and request.trainer.seen("loss") != "plain"


def _whole(call: Call, name: str, default: int) -> int:
    value = call.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10_000:
        raise UnknownArgument(name, "it is not a plain number here")
    return value


def _length(s: Call) -> int | None:
    for name in ("max_length", "max_seq_length", "cutoff_len", "model_max_length"):
        value = s.seen(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**7:
            return value
    return None


def _checkpointing(request: TrainRequest, s: Call) -> bool:
    # TRL switches it on by itself in newer versions; PEFT's preparation does so in all.
    if not s.has("gradient_checkpointing", "activation_checkpointing") and (
        by_trl(request) or request.prepared is not False
    ):
        return True
    return checkpoints(s)


def _optimizer(value: Value) -> str:
    word = (
        value.lower()
        if isinstance(value, str)
        else getattr(value, "name", "").rpartition(".")[2].lower()
        if value
        else "adamw"
    )
    if "adamw" not in word:
        return "sgd"
    eight, paged = "8bit" in word or "bnb" in word, "paged" in word
    if eight or paged:
        return ("paged-adamw-8bit" if paged else "adamw-8bit") if eight else "paged-adamw"
    return "adamw"


def _targets(lora: Call | None) -> str:
    value = lora.seen("target_modules") if lora is not None else None
    if value == "all-linear":
        return "all-linear"
    if isinstance(value, tuple) and any(
        isinstance(v, str) and v in ("gate_proj", "up_proj", "wi_0", "fc1") for v in value
    ):
        return "language model"
    return "q,v"


def _old_bitsandbytes(facts: Facts) -> bool:
    from packaging.version import Version

    from qlora_doctor.errors import UnknownFact

    if isinstance(facts.state("packages"), Unknown):
        return False
    try:
        version = facts.version("bitsandbytes")
    except UnknownFact:
        return False
    return version is not None and version < Version("0.43.2")
