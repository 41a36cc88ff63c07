"""QD5: memory and disk. What a run takes is known exactly enough, before anything is downloaded, to say that it cannot fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from qlora_checks.common import bnb_quantization
from qlora_checks.planned import only_gpu, planned
from qlora_doctor.errors import UnknownArgument
from qlora_doctor.facts import Facts, Unknown, known
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, Fix, PipRequirement, TrainSetting
from qlora_doctor.registry import Check, check
from qlora_doctor.request import TrainRequest

if TYPE_CHECKING:
    from qlora_doctor.memory.fit import Proposal
    from qlora_doctor.memory.formula import Breakdown
    from qlora_doctor.memory.settings import Settings
    from qlora_doctor.memory.shapes import Shape

GIB = 2**30
_OPTIM = {"paged-adamw-8bit": "paged_adamw_8bit", "adamw-8bit": "adamw_bnb_8bit"}


# Most examinations estimate nothing, so what estimates is imported when the first one does.
def estimate(shape: Shape, settings: Settings) -> Breakdown:
    """What a training step takes."""
    from qlora_doctor.memory import formula

    return formula.estimate(shape, settings)


def fit(shape: Shape, wanted: Settings, room: int) -> Proposal | None:
    """The best settings that fit in `room` bytes with the losses that the Trainer itself has."""
    from qlora_doctor.memory.fit import fit as best

    return best(shape, wanted, room, fused=False)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"


@check("QD502", needs=["gpus"], wants=["packages", "model"], since="0.1", requires=["QD501"])
def training_larger_than_the_gpu(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """A 4-bit training run that runs out of memory whatever the data: even rows of 64 tokens do not fit.

    The estimate adds weights, adapters, optimizer, the inputs that checkpointing keeps, one layer at work, and the logits,
    which for a vocabulary of 150,000 are often the largest part. The low end of its range is compared with the whole card, so
    nothing is said that a lucky run could disprove. It is silent where the model's shape does not ship with the doctor, where
    several GPUs or DeepSpeed or FSDP share the work, and unknown where a setting cannot be read.

    The fix: the first settings that fit, those that cost no quality first (a smaller batch with accumulation, checkpointing, an
    8-bit optimizer). They change how the run trains, so they are not applied unasked. `qlora-doctor plan --fit` shows more.
    """
    gpu = only_gpu(facts)
    plan = planned(facts, request) if gpu is not None else None
    if gpu is None or plan is None:
        return
    room = known(gpu.memory_total, "memory of the GPU")
    b = estimate(plan.shape, plan.least)
    if b.low <= room:
        return
    biggest = max((i for i in b.items if not i.name.startswith("quantised")), key=lambda i: i.bytes)
    found = fit(plan.shape, plan.full, room)
    yield Finding(
        "{model}: training takes at least {needed} GiB even with rows of {length} tokens (batch {batch}; {part} {size} GiB), "
        "and {gpu} has {room} GiB: {way}",
        evidence={
            "model": request.load.model_or if request.load else "the model",
            "needed": _gib(b.low),
            "length": plan.least.length,
            "batch": plan.least.batch,
            "part": biggest.name,
            "size": _gib(biggest.bytes),
            "gpu": gpu.name,
            "room": _gib(room),
            "way": "use the settings below" if found else "take a smaller model or a larger card",
        },
        severity="error",
        site=request.site,
        fixes=tuple(_fixes(request, plan.full, found)),
    )


@check("QD503", needs=["gpus"], wants=["packages", "model", "host"], since="0.1", requires=["QD501", "QD502"])
def rows_at_the_limit_do_not_fit(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """A 4-bit training run that fits with short rows, but not, or barely, with rows as long as its own max_length.

    Such a run dies at the first long row, which may come after hours. The high end of the estimate is compared with the card:
    "barely" means that the expected figure fits and the high one does not. Nothing is said where the training arguments set no
    length.

    The fix: settings with which the longest row fits too, or a shorter max_length. Where only what the allocator may lose to
    fragmentation is too much, `expandable_segments:True` comes first: rows of changing length leave holes between fixed
    segments, and expandable ones close them (torch's CUDA notes; Linux only).
    """
    gpu = only_gpu(facts)
    plan = planned(facts, request) if gpu is not None else None
    if gpu is None or plan is None or plan.length is None:
        return
    room = known(gpu.memory_total, "memory of the GPU")
    b = estimate(plan.shape, plan.full)
    if b.high <= room:
        return
    yield Finding(
        "{model}: a batch of {batch} rows of {length} tokens takes about {expected} GiB (up to {high}), and {gpu} has {room} GiB, "
        "so it {word}: use a smaller batch, a shorter max_length or the settings below",
        evidence={
            "model": request.load.model_or if request.load else "the model",
            "batch": plan.full.batch,
            "length": plan.length,
            "expected": _gib(b.expected),
            "high": _gib(b.high),
            "gpu": gpu.name,
            "room": _gib(room),
            "word": "fits barely" if b.expected <= room else "runs out of memory at the first long row",
        },
        severity="warning",
        site=request.site,
        fixes=(*_unfragmented(facts, b, room), *_fixes(request, plan.full, fit(plan.shape, plan.full, room))),
    )


def _unfragmented(facts: Facts, b: Breakdown, room: int) -> Iterator[Fix]:
    """The allocator's setting, where without its worst slack the run would fit."""
    from qlora_doctor.memory.formula import CONTEXT, WORKSPACE

    slack = b.overhead[2] - CONTEXT[2] - WORKSPACE
    host = facts.state("host")
    if b.expected <= room and b.high - slack <= room and (isinstance(host, Unknown) or host.system == "Linux"):
        text = "let the allocator close its holes, which rows of changing length leave"
        yield Advice(text, "export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True")


def _fixes(request: TrainRequest, before: Settings, found: Proposal | None) -> Iterator[Fix]:
    """The proposal as training settings; nothing that the trainer has no setting for."""
    if found is None:
        return
    after = found.settings
    if after.kept != before.kept or after.prepared != before.prepared or after.max_pixels != before.max_pixels:
        yield Advice("the settings that fit need more than training arguments", "qlora-doctor plan --fit")
    if after.batch != before.batch:
        yield TrainSetting("per_device_train_batch_size", after.batch, applicability="unsafe")
        steps = request.settings.seen("gradient_accumulation_steps") if request.settings else None
        now = steps if isinstance(steps, int) else 1
        yield TrainSetting("gradient_accumulation_steps", now * found.accumulation, applicability="unsafe")
    if after.checkpointing and not before.checkpointing:
        yield TrainSetting("gradient_checkpointing", True, applicability="unsafe")
    if after.optimizer != before.optimizer:
        yield TrainSetting("optim", _OPTIM.get(after.optimizer, "adamw_torch"), applicability="unsafe")
    if after.length != before.length and request.settings is not None:
        for name in ("max_length", "max_seq_length"):
            if name in request.settings.arguments:
                yield TrainSetting(name, after.length, applicability="unsafe")
    if after.rank != before.rank and request.lora is not None:
        yield TrainSetting("r", after.rank, target="lora", applicability="unsafe")


@check("QD504", needs=["gpus"], wants=["packages", "model"], since="0.1", requires=["QD410", "QD502"])
def gpu_memory_held_by_others(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """A run that would fit on the GPU, but not in what other processes leave of it now.

    A notebook kernel that was never shut down is the usual one. The processes are named where the driver names them. A desktop's
    few hundred MiB count like any other.

    The fix: end those processes, or train when they are done.
    """
    gpu = only_gpu(facts)
    if gpu is None or gpu.memory_free is None or gpu.memory_total is None:
        return
    plan = planned(facts, request)
    if plan is None:
        return
    needed = estimate(plan.shape, plan.least).low
    if not gpu.memory_free < needed <= gpu.memory_total:
        return
    names = [f"{p.name or 'process'} ({p.pid})" for p in gpu.processes]
    yield Finding(
        "{gpu} has only {free} of {total} GiB free now, and this run takes at least {needed} GiB: end what holds the rest{who}",
        evidence={
            "gpu": gpu.name,
            "free": _gib(gpu.memory_free),
            "total": _gib(gpu.memory_total),
            "needed": _gib(needed),
            "who": f": {', '.join(names)}" if names else "",
        },
        severity="warning",
        site=request.site,
        fixes=(Advice("see what holds the memory", "nvidia-smi"),),
    )


@check("QD507", needs=["host"], since="0.1")
def shared_memory_too_small_for_workers(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """Data loader workers in a container with 64 MiB of shared memory.

    Workers hand their batches over through /dev/shm. Docker gives it 64 MiB; with images that is full after a few batches, and
    the worker dies with "Bus error". Without workers nothing is handed over.

    The fix: `docker run --shm-size=8g` (or --ipc=host), or dataloader_num_workers=0, which loads data in the trainer's own process.
    """
    total = facts.host.shm_total
    if request.settings is None or total is None or total > 64 * 2**20:
        return
    workers = request.settings.get("dataloader_num_workers", 0)
    if not isinstance(workers, int) or workers < 1:
        return
    yield Finding(
        "dataloader_num_workers={workers} with {size} MiB of /dev/shm: workers die with a bus error when it is full; "
        "start the container with --shm-size=8g, or load without workers",
        evidence={"workers": workers, "size": total // 2**20},
        severity="warning",
        site=request.site,
        fixes=(
            Advice(
                "start the container with more shared memory, or pass dataloader_num_workers=0",
                "docker run --shm-size=8g ...",
            ),
        ),
    )


@check("QD508", needs=["gpus"], wants=["packages", "model"], since="0.1", requires=["QD502", "QD503"])
def no_checkpointing_on_a_small_gpu(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """Gradient checkpointing off on a card where rows of 512 tokens then do not fit, though with it they would.

    Without it every layer keeps all it computed until the backward; with it only its input. It costs about a third more time.
    Nothing is said where the run fits without.

    The fix: gradient_checkpointing=True.
    """
    gpu = only_gpu(facts)
    plan = planned(facts, request) if gpu is not None else None
    if gpu is None or plan is None or plan.least.checkpointing:
        return
    room = known(gpu.memory_total, "memory of the GPU")
    usual = replace(plan.least, length=min(512, plan.length or 512))
    without, with_it = estimate(plan.shape, usual), estimate(plan.shape, replace(usual, checkpointing=True))
    if without.expected <= room or with_it.high > room:
        return
    yield Finding(
        "{model}: without gradient checkpointing rows of {length} tokens take about {without} GiB, and {gpu} has {room} GiB; with it "
        "{with_it} GiB: switch it on",
        evidence={
            "model": request.load.model_or if request.load else "the model",
            "length": usual.length,
            "without": _gib(without.expected),
            "with_it": _gib(with_it.expected),
            "gpu": gpu.name,
            "room": _gib(room),
        },
        severity="warning",
        site=request.site,
        fixes=(TrainSetting("gradient_checkpointing", True, applicability="unsafe"),),
    )


@check("QD509", needs=["script"], since="0.1")
def every_row_padded_to_the_maximum(facts: Facts) -> Iterator[Finding]:
    """A tokenizer call with padding="max_length": every row costs the memory and time of the longest allowed.

    Padded tokens run through every layer and through the head like real ones. Padding to the longest row of a batch (what the
    data collators do by themselves) costs nothing for short rows. It changes no result where the labels of padding are masked.

    The fix: leave padding to the collator.
    """
    for call in facts.script.calls:
        length = call.seen("max_length")
        if call.seen("padding") == "max_length" and isinstance(length, int) and length >= 256:
            yield Finding(
                'padding="max_length" makes every row {length} tokens long, also the short ones: pad in the data collator, to the '
                "longest row of the batch",
                evidence={"length": length},
                severity="info",
                site=call.site,
            )


@check("QD512", needs=["gpus"], wants=["packages", "model"], since="0.1", requires=["QD502"])
def float32_embeddings_fill_the_gpu(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """prepare_model_for_kbit_training makes embeddings and head float32, and with that the run no longer fits.

    It casts every parameter that is not quantised, also a vocabulary of 150,000 rows twice: 2.3 GiB more for Qwen3-8B. The
    activations follow in float32. Only the norms gain by it. Nothing is said where the run fits all the same.

    The fix: freeze the model and switch checkpointing on yourself (`model.requires_grad_(False)`, gradient_checkpointing=True
    in the training arguments) in place of the call, or `qlora_core.adapters.prepare`.
    """
    gpu = only_gpu(facts)
    plan = planned(facts, request) if gpu is not None else None
    if gpu is None or plan is None or not plan.least.prepared:
        return
    room = known(gpu.memory_total, "memory of the GPU")
    usual = replace(plan.least, length=min(512, plan.length or 512))
    with_it, without = estimate(plan.shape, usual), estimate(plan.shape, replace(usual, prepared=False))
    if with_it.expected <= room or without.high > room:
        return
    yield Finding(
        "{model}: prepare_model_for_kbit_training makes embeddings and head float32, {more} GiB more; on {gpu} ({room} GiB) rows of "
        "{length} tokens fit only without it: freeze the model yourself instead",
        evidence={
            "model": request.load.model_or if request.load else "the model",
            "more": _gib(with_it.expected - without.expected),
            "gpu": gpu.name,
            "room": _gib(room),
            "length": usual.length,
        },
        severity="warning",
        site=request.site,
        fixes=(Advice("replace the call by model.requires_grad_(False) and gradient_checkpointing=True"),),
    )


@check("QD511", needs=["packages"], since="0.1", requires=["QD001", "QD002"])
def bitsandbytes_that_keeps_activations(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """bitsandbytes before 0.43.2 in a 4-bit training run: it keeps the input of every frozen matrix for nothing.

    The backward of a frozen matrix does not need its input; older versions saved it all the same, a few GiB for long rows. See
    bitsandbytes pull request 1270. It concerns training in 4 bit only.

    The fix: bitsandbytes 0.43.3 or newer.
    """
    from packaging.version import Version

    version = facts.version("bitsandbytes")
    if version is None or version >= Version("0.43.2"):
        return
    if request.load is None:
        raise UnknownArgument("model", "the load of the trained model cannot be followed")
    quantization = bnb_quantization(request.load)
    if quantization is None or quantization.bits != 4:
        return
    yield Finding(
        "bitsandbytes {version} keeps the input of every frozen 4-bit matrix until the backward, which never reads it: several GiB "
        "with long rows; install 0.43.3 or newer",
        evidence={"version": str(version)},
        severity="warning",
        site=request.site,
        fixes=(PipRequirement("bitsandbytes>=0.43.3"),),
    )


CHECKS: tuple[Check, ...] = (
    training_larger_than_the_gpu,
    rows_at_the_limit_do_not_fit,
    gpu_memory_held_by_others,
    shared_memory_too_small_for_workers,
    no_checkpointing_on_a_small_gpu,
    every_row_padded_to_the_maximum,
    float32_embeddings_fill_the_gpu,
    bitsandbytes_that_keeps_activations,
)
