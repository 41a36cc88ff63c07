"""QD5: memory and disk of a load. Its bytes are known exactly, before anything is downloaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qlora_checks.common import bnb_quantization
from qlora_checks.planned import kept_of, only_gpu, shape_of_load
from qlora_doctor.facts import Facts, Unknown, known
from qlora_doctor.families import BY_TYPE
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, Fix, LoadKwarg
from qlora_doctor.registry import Check, check
from qlora_doctor.request import LoadRequest
from qlora_doctor.source import Call, Value

if TYPE_CHECKING:
    from qlora_doctor.memory.settings import Settings
    from qlora_doctor.memory.shapes import Shape

GIB = 2**30
# What transformers leaves a quantised load of the memory that it is given, with device_map="auto" (adjust_max_memory).
SHARE = 0.9


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of one load on the GPU: `bytes` of the 4-bit or 8-bit matrices and of all that stays as it is."""

    shape: Shape
    settings: Settings

    @property
    def bytes(self) -> int:
        from qlora_doctor.memory.formula import estimate

        items = estimate(self.shape, self.settings).items
        return sum(i.bytes for i in items if i.name.startswith(("quantised", "16-bit")))

    @property
    def placed(self) -> int:
        """The bytes that transformers counts when it places the parts: half a byte a weight (one in 8 bit), and no scales."""
        from qlora_doctor.memory.formula import plain_weight_bytes, quantised

        s = self.settings
        packed = sum(x.weights * x.count for p in self.shape.parts for x in quantised(p, s)) * s.bits // 8
        return packed + sum(plain_weight_bytes(p, s) for p in self.shape.parts)

    def but(self, **changes: object) -> Weights:
        return replace(self, settings=replace(self.settings, **changes))  # type: ignore[arg-type]


def weights_of(facts: Facts, request: LoadRequest) -> Weights | None:
    """The weights that a load puts on the GPU; None where that is not known, or where it is meant for the CPU.

    An unquantised load counts where it names a 16-bit or 32-bit dtype and a device_map that names the GPU.

    Raises:
        UnknownArgument: something that decides cannot be known.
    """
    shape = shape_of_load(request, facts)
    if shape is None or _on_cpu(facts, request):
        return None
    from qlora_doctor.memory.settings import Settings

    quantization = bnb_quantization(request)
    if quantization is not None and quantization.bits:
        if _offloads(request):
            return None
        config = quantization.config
        double = config is not None and config.get("bnb_4bit_use_double_quant", False) is True
        s = Settings(images=0, kept=kept_of(request), double_quant=double, bits=quantization.bits)
        return Weights(shape, s)
    size = {"bfloat16": 2, "float16": 2, "float32": 4}.get(request.dtype or "")
    if (
        request.quantization is not None
        or not size
        or not _on_gpu(request.call.seen("device_map"))
        or _saved_small(facts)
    ):
        return None
    return Weights(shape, Settings(images=0, bits=16, method="lora", stream_bytes=size))


def _on_cpu(facts: Facts, request: LoadRequest) -> bool:
    """Whether all of the model goes to the CPU: the device_map says so, or torch has no CUDA."""
    places = _places(request.call.seen("device_map"))
    build = facts.state("torch")
    return all(p == "cpu" for p in places) or (
        build is not None and not isinstance(build, Unknown) and build.kind == "cpu"
    )


def _on_gpu(value: Value) -> bool:
    return all(not isinstance(p, bool) and p in (0, "0", "cuda", "cuda:0") for p in _places(value))


def _places(value: Value) -> tuple[Value, ...]:
    """The devices that a device_map names, as it names them."""
    return tuple(value.values()) if isinstance(value, Mapping) and value else (value,)


def _offloads(request: LoadRequest) -> bool:
    """Whether the load says itself that parts of it may lie on the CPU."""
    quantization = request.quantization
    config = quantization.config if quantization is not None else None
    return config is not None and config.get("llm_int8_enable_fp32_cpu_offload", False) is True


def _saved_small(facts: Facts) -> bool:
    """Whether the checkpoint was saved quantised, so that its dtype says nothing of its size."""
    model = facts.state("model")
    return not isinstance(model, Unknown) and bool(model.config and model.config.get("quantization_config"))


@check("QD501", needs=["gpus"], wants=["model", "torch"], since="0.1")
def weights_larger_than_the_gpu(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A model whose weights, quantised as this load asks, are larger than the GPU.

    The bytes are exact: each 4-bit matrix is half a byte a weight and a scale for every 64, the rest is 16 bit. A load that
    fails for want of memory does so after the download. Nothing is said where the machine has several GPUs, where the
    model's config.json is not known (it ships with the doctor, lies in the folder, or was read from the Hub), where the
    load goes to the CPU or says that parts of it may, and where an unquantised load does not name the GPU and its dtype.

    The fix: double quantisation, or the vision tower in 4 bit too, where the load then fits. They are not applied unasked in a
    script; `load_quantized` makes them and says so. Otherwise fewer bits, a smaller model, or a larger card;
    `qlora-doctor plan --gpu 8gb` lists what fits.
    """
    gpu = only_gpu(facts)
    weights = weights_of(facts, request) if gpu is not None else None
    if gpu is None or weights is None:
        return
    room = known(gpu.memory_total, "memory of the GPU")
    needed, bits = weights.bytes, weights.settings.bits
    if needed <= room:
        return
    fixes = tuple(_smaller(weights, room, request))
    way = "take a smaller model or a larger card"
    if any(isinstance(f, LoadKwarg) for f in fixes):
        way = "quantise more of it, as below"
    elif bits > 4 and _four_bit(weights) <= room:
        way = f"in 4 bit they take {_gib(_four_bit(weights))} GiB"
    yield Finding(
        "{model}: its {bits}-bit weights alone take {needed} GiB, and {gpu} has {room} GiB: {way}",
        evidence={
            "model": request.model_or,
            "bits": bits if weights.settings.stream_bytes == 2 else 32,
            "needed": _gib(needed),
            "gpu": gpu.name,
            "room": _gib(room),
            "way": way,
        },
        severity="error",
        site=request.site,
        fixes=fixes or (Advice("take a model that fits this card", f"qlora-doctor plan --gpu {room / GIB:.0f}gb"),),
    )


def _four_bit(weights: Weights) -> int:
    return weights.but(bits=4, method="qlora", double_quant=True, stream_bytes=2, kept=None).bytes


def _smaller(weights: Weights, room: int, request: LoadRequest) -> Iterator[Fix]:
    """The first of: double quantisation, the vision tower in 4 bit too, both; where the weights then fit."""
    s = weights.settings
    family = BY_TYPE.get(weights.shape.model_type)
    if s.bits == 16 or not isinstance(request.call.seen("quantization_config"), Call):
        return
    double = LoadKwarg("bnb_4bit_use_double_quant", True, target="quantization", applicability="unsafe")
    may_double = s.bits == 4 and not s.double_quant
    may_vision = family is not None and family.vision and s.kept is not None and "vision tower" in s.kept
    names = family.kept(True) if family is not None else ()
    vision = LoadKwarg("llm_int8_skip_modules", names, target="quantization", applicability="unsafe")
    less = tuple(p for p in s.kept or () if p != "vision tower")
    for fixes, changes in (
        ((double,) * may_double, {"double_quant": True}),
        ((vision,) * may_vision, {"kept": less}),
        ((double, vision) * (may_double and may_vision), {"double_quant": True, "kept": less}),
    ):
        if fixes and weights.but(**changes).bytes <= room:
            yield from fixes
            return


@check("QD513", needs=["gpus"], wants=["model", "torch"], since="0.2", requires=["QD501"])
def quantized_weights_spread_to_the_cpu(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A 4-bit or 8-bit load with `device_map="auto"` whose weights fit on the GPU, but not in the part of it that is used.

    transformers gives a quantised load 90 % of the memory (free, or as `max_memory` says) and puts what is left over on
    the CPU; then it refuses the load: `Some modules are dispatched on the CPU or the disk`. A quantised model cannot be
    trained with parts on the CPU anyway. Source: `adjust_max_memory` and `validate_environment` of transformers'
    quantizers. Nothing is said where `llm_int8_enable_fp32_cpu_offload=True` asks for just that.

    The fix: `device_map={"": 0}`, which puts all of it on the GPU, and no `max_memory`.
    """
    gpu = only_gpu(facts)
    weights = weights_of(facts, request) if gpu is not None else None
    place = request.call.seen("device_map")
    if gpu is None or weights is None or weights.settings.bits == 16 or place not in ("auto", "balanced", "sequential"):
        return
    room, total = known(gpu.memory_total, "memory of the GPU"), gpu.memory_total or 0
    caps = request.call.seen("max_memory")
    cap = _bytes(next((v for k, v in caps.items() if str(k) == "0"), None)) if isinstance(caps, Mapping) else None
    room = int(SHARE * (total if cap is None else min(total, cap)))
    needed = weights.bytes
    if not room < weights.placed or needed > total:
        return
    given = "max_memory leaves the GPU" if cap is not None and cap < total else 'device_map="auto" uses of it'
    here = LoadKwarg("device_map", {"": 0}, applicability="unsafe")
    fixes = (here, LoadKwarg("max_memory", drop=True, applicability="unsafe")) if caps is not None else (here,)
    yield Finding(
        "{model}: its {bits}-bit weights take {needed} GiB of the {total} GiB of {gpu}, and {given} {room} GiB; the rest goes to "
        'the CPU and the load is refused: pass device_map={{"": 0}}',
        evidence={
            "model": request.model_or,
            "bits": weights.settings.bits,
            "needed": _gib(needed),
            "total": _gib(total),
            "gpu": gpu.name,
            "given": given,
            "room": _gib(room),
        },
        severity="error",
        site=request.site,
        fixes=fixes,
    )


def _bytes(value: Value) -> int | None:
    """A size as accelerate reads it: a number of bytes, or `6GiB`, `6GB`, `6000MB`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        return None
    text = value.strip().upper().replace(" ", "")
    units = {"GIB": GIB, "MIB": 2**20, "KIB": 2**10, "GB": 10**9, "MB": 10**6, "KB": 10**3}
    for unit, size in units.items():
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdigit():
            return int(float(number) * size)
    return None


@check("QD514", needs=["gpus"], wants=["model", "torch"], since="0.2", requires=["QD410", "QD501", "QD513"])
def weights_larger_than_the_free_memory(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A model whose weights fit on the GPU, but not in what is free on it now.

    Mostly an earlier model in a notebook that still runs, or a desktop. Said before the download, so that the memory can be
    free by the time it is needed. What torch itself keeps for later in this very process counts as taken here, so it is a
    warning; the loader looks again, with torch, before it reads a weight.

    The fix: end those processes; in a notebook restart the kernel.
    """
    gpu = only_gpu(facts)
    weights = weights_of(facts, request) if gpu is not None else None
    if gpu is None or weights is None or gpu.memory_free is None or gpu.memory_total is None:
        return
    needed = weights.bytes
    if not gpu.memory_free < needed <= gpu.memory_total:
        return
    names = [f"{p.name or 'process'} ({p.pid})" for p in gpu.processes]
    yield Finding(
        "{model}: its {bits}-bit weights take {needed} GiB, and {gpu} has {free} of {total} GiB free now: end what holds the rest{who}",
        evidence={
            "model": request.model_or,
            "bits": weights.settings.bits,
            "needed": _gib(needed),
            "gpu": gpu.name,
            "free": _gib(gpu.memory_free),
            "total": _gib(gpu.memory_total),
            "who": f": {', '.join(names)}" if names else "",
        },
        severity="warning",
        site=request.site,
        fixes=(Advice("see what holds the memory", "nvidia-smi"),),
    )


@check("QD505", needs=["host"], wants=["model"], since="0.1")
def host_memory_too_small_for_the_load(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A load that needs more host memory than the machine, or its container, may use.

    A load reads one file of the checkpoint at a time, up to about 5 GB, before it goes to the GPU; the libraries take another
    GiB. Past a container's limit the kernel kills the process without a word of Python. Swap counts as memory here, so on
    Windows and WSL a larger page file helps.

    The fix: a larger limit (docker --memory, .wslconfig), swap, or a checkpoint that is already saved in 4 bit.
    """
    shape = shape_of_load(request, facts)
    if shape is None:
        return
    host = facts.host
    limits = [m for m in (host.memory_total, host.memory_limit) if m]
    if not limits:
        known(None, "memory of the machine")
    room = min(limits) + (host.swap_total or 0)
    needed = min(shape.parameters * 2, 5 * 10**9) + GIB
    if needed <= room:
        return
    limited = (
        host.memory_limit is not None and host.memory_limit == min(limits) and host.memory_limit != host.memory_total
    )
    yield Finding(
        "{model}: the load needs about {needed} GiB of host memory, and {where} {room} GiB (swap counted): raise the limit or add swap",
        evidence={
            "model": request.model_or,
            "needed": _gib(needed),
            "where": "this container may use" if limited else "this machine has",
            "room": _gib(room),
        },
        severity="warning",
        site=request.site,
    )


@check("QD506", needs=["disks"], wants=["hub", "model"], since="0.1")
def disk_too_small_for_the_download(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A model that is not in the Hub's cache yet, and is larger than the free space where the cache lies.

    The download is the 16-bit checkpoint, whatever the load makes of it. A disk that fills up leaves half a file and an error
    that names no disk. Nothing is said of a folder, and where it is not known whether the model is cached already.

    The fix: free space, or put the cache elsewhere (HF_HOME).
    """
    shape = shape_of_load(request, facts)
    state = facts.state("hub")
    model = facts.state("model")
    here = not isinstance(model, Unknown) and model.origin == "folder"
    if shape is None or isinstance(state, Unknown) or here:
        return
    # Where the Hub was asked it gave the sizes themselves, and QD206 judges them.
    if any(r.name == request.model and r.to_download is not None for r in state.repositories):
        return
    if request.model in state.cached or request.call.seen("cache_dir") is not None:
        return
    needed = shape.parameters * 2
    for disk in facts.disks:
        if disk.purpose == "hf-cache" and disk.free is not None and disk.free < needed:
            yield Finding(
                "{model}: the download is {needed} GiB, and {path} has {free} GiB free: free space there or set HF_HOME to a larger disk",
                evidence={"model": request.model, "needed": _gib(needed), "path": disk.path, "free": _gib(disk.free)},
                severity="error",
                site=request.site,
            )


CHECKS: tuple[Check, ...] = (
    weights_larger_than_the_gpu,
    host_memory_too_small_for_the_load,
    disk_too_small_for_the_download,
    quantized_weights_spread_to_the_cpu,
    weights_larger_than_the_free_memory,
)
