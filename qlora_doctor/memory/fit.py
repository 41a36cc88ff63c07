"""What fits: verdicts, what each lever would save, and the search for the best settings that fit a card."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from qlora_doctor.memory.formula import Breakdown, estimate
from qlora_doctor.memory.settings import Settings
from qlora_doctor.memory.shapes import Shape

Verdict = Literal["fits", "too close", "does not fit"]
# Liger's fused head and loss exist for these.
FUSED_LOSS = frozenset(
    {"llama", "mistral", "gemma", "gemma2", "phi3", "qwen2", "qwen3", "llava", "qwen2_vl", "qwen2_5_vl"}
)


def verdict(b: Breakdown, room: int) -> Verdict:
    """`fits` where even the high figure has room; `too close` where only the expected one has."""
    if b.high <= room:
        return "fits"
    return "too close" if b.expected <= room else "does not fit"


@dataclass(frozen=True, slots=True)
class Lever:
    """One change of settings. `saves` are bytes of the expected peak; `cost` says what it costs besides memory."""

    name: str
    saves: int
    cost: str
    settings: Settings
    quality: bool


@dataclass(frozen=True, slots=True)
class Proposal:
    """Settings that fit, with their breakdown. `accumulation` keeps the batch that was asked for."""

    settings: Settings
    breakdown: Breakdown
    accumulation: int
    changed: tuple[tuple[str, object, object], ...]


def levers(shape: Shape, s: Settings) -> tuple[Lever, ...]:
    """What single changes would save, the largest first; those that cost no quality before those that do."""
    now = estimate(shape, s).expected
    found = []
    for name, cost, quality, other in _changes(shape, s):
        saves = now - estimate(shape, other).expected
        if saves > 2**20:
            found.append(Lever(name, saves, cost, other, quality))
    return tuple(sorted(found, key=lambda x: (x.quality, -x.saves)))


def _changes(shape: Shape, s: Settings) -> Iterator[tuple[str, str, bool, Settings]]:
    if not s.checkpointing:
        yield "gradient checkpointing", "about a third more time", False, replace(s, checkpointing=True)
    if s.loss != "chunked" and shape.model_type in FUSED_LOSS:
        yield "chunked loss", "needs liger-kernel (use_liger_kernel=True)", False, replace(s, loss="chunked")
    if s.batch > 1:
        yield f"batch {s.batch} to 1", f"{s.batch} accumulation steps instead", False, replace(s, batch=1)
    if s.optimizer in ("adamw", "paged-adamw"):
        yield "8-bit AdamW", "none that is seen", False, replace(s, optimizer="paged-adamw-8bit")
    if s.prepared:
        yield "no float32 cast of embeddings and head", "none", False, replace(s, prepared=False)
    if s.attention == "eager":
        yield "attention sdpa", "none", False, replace(s, attention="sdpa")
    if s.bits == 4 and not s.double_quant:
        yield "double quantisation", "none that is seen", False, replace(s, double_quant=True)
    if s.bits != 4 or s.method != "qlora":
        yield "4-bit base (QLoRA)", "a little quality; slower steps", True, replace(s, bits=4, method="qlora")
    if shape.images is not None and (s.kept is None or "vision tower" in s.kept):
        kept = tuple(p for p in (s.kept or ("projector", "Q-Former")) if p != "vision tower")
        yield "vision tower in 4 bit", "a little quality", True, replace(s, kept=kept)
    if s.rank > 8:
        yield f"rank {s.rank} to 8", "less that the adapter can learn", True, replace(s, rank=8)
    if s.length > 256:
        yield (
            f"length {s.length} to {s.length // 2}",
            "longer rows are dropped or cut",
            True,
            replace(s, length=s.length // 2),
        )
    if shape.images is not None and shape.images.rule == "pixels" and (s.images is None or s.images):
        for most in (512 * 28 * 28, 256 * 28 * 28):
            if not s.max_pixels or most < s.max_pixels:
                yield f"max_pixels {most}", "less detail in the images", True, replace(s, max_pixels=most)
                break


def image_note(shape: Shape) -> str:
    """What can be done about the memory of images in this family."""
    if shape.images is None:
        return ""
    return {
        "fixed": f"an image is always {shape.images.tokens} tokens in this family; only fewer images save memory",
        "tiles": "an image is up to five tiles in this family; smaller images make fewer",
        "pixels": "an image's tokens follow its pixels; max_pixels of the processor caps them",
        "queries": f"an image is always {shape.images.tokens} tokens in this family, whatever its size",
    }[shape.images.rule]


def fit(
    shape: Shape, wanted: Settings, room: int, *, fused: bool | None = None, fixed: Collection[str] = ()
) -> Proposal | None:
    """The best settings whose high figure fits in `room` bytes; None where nothing does.

    Best means: what costs no quality goes first (checkpointing, 8-bit AdamW, a chunked loss, a smaller batch with
    accumulation); of the rest rank is given up first, then the vision tower's 16 bit, pixels, and length last.
    `fused`: whether the chunked loss may be proposed; None where the family has it. `fixed` names the fields of
    `wanted` that must stay as they are.
    """
    may_fuse = (shape.model_type in FUSED_LOSS) if fused is None else fused
    for change in _ladder(shape, wanted, may_fuse, fixed):
        smallest = estimate(shape, replace(change, batch=wanted.batch if "batch" in fixed else 1))
        if smallest.high > room:
            continue
        batch = 1
        while batch * 2 <= wanted.batch and estimate(shape, replace(change, batch=batch * 2)).high <= room:
            batch *= 2
        if estimate(shape, wanted_batch := replace(change, batch=wanted.batch)).high <= room:
            final = wanted_batch
        else:
            final = replace(change, batch=batch)
        accumulation = -(-wanted.batch // final.batch)
        return Proposal(final, estimate(shape, final), accumulation, _changed(wanted, final))
    return None


def _ladder(shape: Shape, w: Settings, may_fuse: bool, fixed: Collection[str] = ()) -> Iterator[Settings]:
    """Settings from the one asked for to the smallest, in the order of what they cost."""
    lengths = [w.length, *(n for n in (4096, 2048, 1024, 768, 512, 384, 256, 128) if n < w.length)]
    ranks = [w.rank, *(r for r in (32, 16, 8, 4) if r < w.rank)]
    pixels = [w.max_pixels]
    if shape.images is not None and shape.images.rule == "pixels" and w.images != 0:
        pixels += [k * 784 for k in (1024, 512, 256, 128) if not w.max_pixels or k * 784 < w.max_pixels]
    towers: list[tuple[str, ...] | None] = [w.kept]
    if shape.images is not None and w.bits == 4 and (w.kept is None or "vision tower" in w.kept):
        towers.append(tuple(p for p in (w.kept or ("projector", "Q-Former")) if p != "vision tower"))
    lengths, ranks = lengths[: 1 if "length" in fixed else None], ranks[: 1 if "rank" in fixed else None]
    pixels, towers = pixels[: 1 if "max_pixels" in fixed else None], towers[: 1 if "kept" in fixed else None]
    base = replace(w, batch=1)
    free = [base]
    for name, value in (
        ("attention", "sdpa" if w.attention == "eager" else w.attention),
        ("prepared", False),
        ("checkpointing", True),
        ("optimizer", "paged-adamw-8bit" if "adamw" in w.optimizer else w.optimizer),
        ("loss", "chunked" if may_fuse else w.loss),
    ):
        changed = free[-1] if name in fixed else replace(free[-1], **{name: value})  # type: ignore[arg-type]
        if changed != free[-1]:
            free.append(changed)
    yield from free
    for length, most, kept, rank in product(lengths, pixels, towers, ranks):
        yield replace(free[-1], kept=kept, max_pixels=most, rank=rank, length=length)


def _changed(before: Settings, after: Settings) -> tuple[tuple[str, object, object], ...]:
    names = Settings.__dataclass_fields__
    return tuple((n, getattr(before, n), getattr(after, n)) for n in names if getattr(before, n) != getattr(after, n))
