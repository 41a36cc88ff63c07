"""What fits: batch, length and rank of a run, searched by the doctor's memory plan for a card or a preset size.

No figure here is typed in: `8gb` is a card of that size, and what it can train is what the estimate says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qlora_core.settings import Settings
from qlora_doctor.errors import UsageError
from qlora_doctor.facts import Facts, Unknown
from qlora_doctor.memory.fit import Proposal, fit, image_note
from qlora_doctor.memory.formula import Breakdown, estimate
from qlora_doctor.memory.settings import Settings as Memory
from qlora_doctor.memory.shapes import Shape, shape_of
from qlora_doctor.report.memory import gib

PRESETS = ("auto", "8gb", "12gb", "16gb", "24gb")
TOTAL, LENGTH, RANK = 16, 2048, 16
# On a CPU more rows at a time gain nothing once the cores are busy.
CPU_BATCH = 4
_FROM = {
    "batch": "per_device_train_batch_size", "length": "max_length", "rank": "lora_r", "loss": "loss",
    "optimizer": "optim", "checkpointing": "gradient_checkpointing", "kept": "quantize_vision",
    "max_pixels": "max_pixels", "attention": "attn_implementation",
}  # fmt: skip
_OPTIM = {"paged-adamw-8bit": "paged_adamw_8bit", "adamw-8bit": "adamw_bnb_8bit", "paged-adamw": "paged_adamw_32bit"}


@dataclass(frozen=True, slots=True)
class Room:
    """The memory that a run may take, in bytes; None on a CPU, where nothing is searched. `card` says whose it is."""

    bytes: int | None
    card: str
    device: str = "cuda"


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The plan of one run. `shape` is None for an architecture whose memory cannot be told; then nothing is predicted.

    `settings` are the run's, with everything that was left open filled in; `chosen` says what, to what and why.
    """

    room: Room
    settings: Settings
    shape: Shape | None = None
    memory: Memory | None = None
    chosen: tuple[tuple[str, Any, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def breakdown(self) -> Breakdown | None:
        """Where the memory goes at the peak; None where it cannot be told."""
        return None if self.shape is None or self.memory is None else estimate(self.shape, self.memory)

    @property
    def batch(self) -> int:
        return self.settings.per_device_train_batch_size or 1

    @property
    def accumulation(self) -> int:
        return self.settings.gradient_accumulation_steps or 1


def find_room(preset: str, facts: Facts, settings: Settings) -> Room:
    """The memory that a preset means: `auto` is what is free on this machine's GPU, else the name or size of a card.

    Raises:
        UsageError: no such card.
    """
    if preset == "auto":
        room = _here(facts, settings)
    else:
        from qlora_doctor.gather.cards import find_card

        card = find_card(preset)
        room = Room(card.memory - card.taken, card.name)
    if settings.max_memory is not None and room.device == "cuda":
        cap = int(settings.max_memory * 2**30)
        if room.bytes is None or cap < room.bytes:
            room = Room(cap, f"max_memory={settings.max_memory:g}")
    return room


def _here(facts: Facts, settings: Settings) -> Room:
    gpus, build = facts.state("gpus"), facts.state("torch")
    on_cpu = settings.device == "cpu" or (not isinstance(build, Unknown) and (build is None or build.kind == "cpu"))
    if on_cpu or isinstance(gpus, Unknown) or not gpus:
        return Room(None, "the CPU", "cpu")
    word = (settings.device or "").partition(":")[2]
    gpu = gpus[int(word)] if word.isdigit() and int(word) < len(gpus) else gpus[0]
    return Room(gpu.memory_total if gpu.memory_free is None else gpu.memory_free, gpu.name)


def first_plan(
    config: Mapping[str, Any], settings: Settings, room: Room, images: int | None, size: tuple[int, int] = (0, 0)
) -> MemoryPlan:
    """The longest rows, the rank and the image size that fit at batch 1, before any row was encoded.

    `images` are those of the row that has most, None where the model takes none; `size` their width and height.

    Raises:
        UsageError: nothing fits, or not with what the user set.
    """
    try:
        shape = shape_of(config)
    except UsageError as error:
        length = settings.max_length or LENGTH
        why = "the memory of this architecture cannot be told"
        settings = settings.but(max_length=length, lora_r=settings.lora_r or RANK)
        return MemoryPlan(room, settings, chosen=(("max_length", length, why),), notes=(f"no memory plan: {error}",))
    wanted = replace(_wanted(shape, settings, room, images), width=size[0], height=size[1])
    of_images = estimate(shape, wanted).image_tokens
    if settings.max_length is not None:
        wanted = replace(wanted, length=max(1, settings.max_length - of_images))
    found = _search(shape, wanted, room, _fixed(settings))
    # No row is longer than the positions that the model knows, and images take of them.
    final = found.settings
    length = final.length + found.breakdown.image_tokens
    if shape.positions and shape.decoder is None and settings.max_length is None:
        length = min(length, shape.positions)
    chosen: list[tuple[str, Any, str]] = []
    if settings.max_length is None:
        chosen.append(("max_length", length, _why(room, wanted.length == final.length)))
    if settings.lora_r is None:
        chosen.append(("lora_r", final.rank, _why(room, wanted.rank == final.rank)))
    if final.kept != wanted.kept:
        chosen.append(("quantize_vision", True, _why(room, False)))
    if final.max_pixels != wanted.max_pixels:
        chosen.append(("max_pixels", final.max_pixels, _why(room, False)))
    notes = (*shape.assumed, *([image_note(shape)] if shape.images and images != 0 else []), *_beyond(settings))
    filled = settings.but(**{name: value for name, value, _ in chosen})
    return MemoryPlan(room, filled, shape, final, tuple(chosen), notes)


def final_plan(first: MemoryPlan, asked: Settings, longest: int, rows: int, world: int) -> MemoryPlan:
    """The batch for rows that are at most `longest` tokens; with it the plan is complete.

    Raises:
        UsageError: the batch that the user set does not fit.
    """
    settings, room = first.settings, first.room
    total = asked.total_batch_size or max(1, min(TOTAL, rows // 8))
    batch, accumulation = asked.per_device_train_batch_size, asked.gradient_accumulation_steps
    if batch is not None and asked.total_batch_size is None:
        total = batch * world
    wish = batch or max(1, total // ((accumulation or 1) * world))
    memory, chosen = first.memory, list(first.chosen)
    if first.shape is not None and memory is not None:
        text = max(1, longest - estimate(first.shape, memory).image_tokens)
        wanted = replace(memory, batch=wish, length=text, world=world)
        fixed = {*_fixed(asked), "length", "rank", "kept", "max_pixels"}
        memory = _search(first.shape, wanted, room, fixed).settings
        wish = memory.batch
    if batch is None:
        if room.device == "cpu":
            wish = min(wish, CPU_BATCH)
            memory = replace(memory, batch=wish) if memory is not None else None
        chosen.append(("per_device_train_batch_size", wish, _why(room, True)))
    if accumulation is None:
        accumulation = -(-total // (wish * world))
        chosen.append(("gradient_accumulation_steps", accumulation, f"makes {accumulation * wish * world} rows a step"))
    filled = settings.but(per_device_train_batch_size=wish, gradient_accumulation_steps=accumulation)
    return replace(first, settings=filled, memory=memory, chosen=tuple(chosen))


def words_that_fit(plan: MemoryPlan, peak: int) -> str:
    """What to say when memory ran out at `peak` bytes: the plan, how far it was off, and the settings that fit.

    `peak` is what was allocated when it did; the settings are searched for that much less than the card has.
    """
    b = plan.breakdown
    if plan.shape is None or plan.memory is None or b is None:
        return "take per_device_train_batch_size=1, a shorter max_length, or a smaller model"
    said = f"the plan said {gib(b.expected)} (up to {gib(b.high)}) and {gib(peak)} were allocated"
    # What the plan did not see is taken off the room: it will be there the next time too.
    missed = max(0, peak - b.allocated)
    room = max(1, (plan.room.bytes or peak) - missed)
    smaller = replace(plan.memory, batch=max(1, plan.memory.batch // 2))
    found = fit(plan.shape, smaller, room, fused=plan.settings.loss != "plain")
    if found is None:
        return f"{said}; nothing smaller fits: take a smaller model or a larger card"
    words = _as_words(replace(plan, memory=found.settings))
    steps = plan.batch * plan.accumulation // found.settings.batch
    return f"{said}; this fits: {words} --set gradient_accumulation_steps={max(1, steps)}"


def set_words(settings: Settings, names: Sequence[str]) -> str:
    """Settings as the words of a command: `--set max_length=512 --set lora_r=8`."""
    import json

    values = ((name, getattr(settings, name)) for name in names)
    return " ".join(f"--set {n}={v if isinstance(v, str) else json.dumps(v)}" for n, v in values)


def _as_words(plan: MemoryPlan) -> str:
    memory = plan.memory
    assert memory is not None and plan.shape is not None
    of_images = estimate(plan.shape, memory).image_tokens
    words = plan.settings.but(
        per_device_train_batch_size=memory.batch, max_length=max(8, memory.length + of_images), lora_r=memory.rank
    )
    return set_words(words, ("per_device_train_batch_size", "max_length", "lora_r"))


def _wanted(shape: Shape, settings: Settings, room: Room, images: int | None) -> Memory:
    """The run that is hoped for: what the user set, and the usual values for the rest."""
    asked = settings.optim.lower()
    optimizer = next((ours for ours, name in _OPTIM.items() if name == asked), "adamw" if "adamw" in asked else "sgd")
    attention = settings.attn_implementation or "sdpa"
    length = LENGTH if not shape.positions else min(LENGTH, shape.positions)
    return Memory(
        batch=1,
        length=length,
        rank=settings.lora_r or RANK,
        images=images,
        max_pixels=settings.max_pixels or 0,
        bits=settings.bits,
        method="qlora" if settings.bits < 16 else "lora",
        kept=("projector", "Q-Former") if settings.quantize_vision else None,
        targets="Q-Former" if settings.train == "qformer" else "language model",
        lora_dropout=settings.lora_dropout,
        autocast=room.device == "cuda",
        checkpointing=settings.gradient_checkpointing,
        optimizer=optimizer,
        loss="chunked" if settings.loss in ("auto", "chunked") else "plain",
        attention="flash" if "flash" in attention else "eager" if attention == "eager" else "sdpa",
        device=room.device,
    )


def _beyond(settings: Settings) -> tuple[str, ...]:
    """What a run trains and the memory plan does not count."""
    parts = settings.train.split("+")
    if "vision" in parts:
        text = "the memory plan counts adapters on the language model; what a learning vision tower keeps, one layer's "
        return (f"{text}input for each of its layers, comes on top: --quick measures it",)
    if "qformer" in parts and "language" in parts:
        return ("the memory plan counts the language model's adapters, not the Q-Former's: --quick measures both",)
    return ()


def _fixed(settings: Settings) -> set[str]:
    """The fields that the search leaves alone: those whose setting has no "chosen by the run", and those that were set."""
    free = {"batch", "length", "rank", "kept", "max_pixels"}
    return {name for name, ours in _FROM.items() if name not in free or getattr(settings, ours) is not None}


def _search(shape: Shape, wanted: Memory, room: Room, fixed: set[str]) -> Proposal:
    if room.bytes is None:
        return Proposal(wanted, estimate(shape, wanted), 1, ())
    fused = wanted.loss == "chunked"
    found = fit(shape, wanted, room.bytes, fused=fused, fixed=fixed)
    if found is not None:
        return found
    b = estimate(shape, wanted)
    said = f"{gib(b.expected)} (up to {gib(b.high)}) are needed and {room.card} has {gib(room.bytes)}"
    other = fit(shape, replace(wanted, checkpointing=True), room.bytes, fused=True)
    if other is None:
        raise UsageError(
            f"this run does not fit: {said}, and nothing smaller does; take a smaller model or a larger card"
        )
    changed = ", ".join(f"{_FROM.get(name, name)} {old} -> {new}" for name, old, new in other.changed)
    raise UsageError(f"this run does not fit as it is set: {said}. It fits with {changed}")


def _why(room: Room, as_wished: bool) -> str:
    if room.bytes is None:
        return "the usual value"
    return f"the usual value fits {room.card}" if as_wished else f"the largest that fits {room.card}"
