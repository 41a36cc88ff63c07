"""The estimate: a shape and settings to a breakdown in bytes, with low, expected and high.

The weights are exact. What a step adds follows from the operations it runs (`blocks.py`); only what no code states, the
CUDA context and the allocator's slack, is a constant, one for all models, below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from qlora_doctor.memory import blocks
from qlora_doctor.memory.blocks import Numbers
from qlora_doctor.memory.images import image_tokens
from qlora_doctor.memory.settings import Settings
from qlora_doctor.memory.shapes import Linear, Part, Shape, Stack
from qlora_doctor.memory.tape import Cost

MIB, GIB = 2**20, 2**30
# Every 4-bit matrix brings a codebook of 16 floats, one of 256 for its scales, and their offset.
TABLES, TABLES_SINGLE = 1092, 64
# What the driver takes before the first tensor: seen 0.3 to 0.7 GiB over cards and CUDA versions.
CONTEXT = (int(0.3 * GIB), int(0.45 * GIB), int(0.7 * GIB))
WORKSPACE = 16 * MIB
# The caching allocator holds more than it hands out; in proportion to what comes and goes, not to the weights.
SLACK = (0.0, 0.05, 0.15)
# Above the worst error of benchmarks/memory.py (docs/memory.md), on what comes and goes; the weights are exact.
ERROR = 0.12

Kind = Literal["allocated", "reserved", "device"]


@dataclass(frozen=True, slots=True)
class Item:
    """One part of the memory, in bytes."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The moment of a run when most is allocated. All in bytes.

    `items` add up to `allocated`. `phase` names the moment: `loss`, `backward`, `vision`, `optimizer step`. `overhead`
    is what the driver and the allocator take on top (low, expected, high). `load` is the peak on the GPU while loading,
    `host` the host memory that the load needs, `disk` the download, `saved` one checkpoint of a training run.
    `generation` and `merge`: answering with a KV cache, and merging the adapter into 16-bit weights, on the host.
    """

    items: tuple[Item, ...]
    phase: str
    overhead: tuple[int, int, int]
    spread: tuple[int, int]
    tokens: int
    image_tokens: int
    trainable: int
    load: int
    host: int
    disk: int
    saved: int
    generation: int
    merge: int
    phases: tuple[Item, ...] = ()

    @property
    def allocated(self) -> int:
        return sum(i.bytes for i in self.items)

    @property
    def low(self) -> int:
        return self.allocated - self.spread[0] + self.overhead[0]

    @property
    def expected(self) -> int:
        return self.allocated + self.overhead[1]

    @property
    def high(self) -> int:
        return self.allocated + self.spread[1] + self.overhead[2]

    def part(self, name: str) -> int:
        return sum(i.bytes for i in self.items if i.name == name)

    def measured(self, kind: Kind) -> int:
        """The expected figure as `max_memory_allocated`, `max_memory_reserved` or nvidia-smi shows it."""
        if kind == "allocated":
            return self.allocated
        return self.expected - (CONTEXT[1] if kind == "reserved" else 0)


# ---------------------------------------------------------------- weights


def packed_bytes(weights: int, double_quant: bool = True) -> int:
    """A 4-bit matrix with its scales: half a byte a weight, a scale for each 64, quantised again in blocks of 256."""
    blocks64 = -(-weights // 64)
    scales = blocks64 + 4 * -(-blocks64 // 256) if double_quant else 4 * blocks64
    return -(-weights // 2) + scales


def quantised(part: Part, s: Settings) -> tuple[Linear, ...]:
    """The matrices of a part that the load quantises."""
    if s.bits == 16 or s.method != "qlora" or part.name == "head":
        return ()
    kept = s.kept if s.kept is not None else ("vision tower", "projector", "Q-Former")
    if part.name in kept:
        return ()
    return tuple(x for x in part.linears if x.name not in part.kept)


def packed_weight_bytes(part: Part, s: Settings) -> int:
    """The bytes of a part's quantised matrices: packed weights, scales and code tables."""
    if s.bits == 8:
        return sum((x.weights + 4 * x.outputs) * x.count for x in quantised(part, s))
    tables = TABLES if s.double_quant else TABLES_SINGLE
    return sum((packed_bytes(x.weights, s.double_quant) + tables) * x.count for x in quantised(part, s))


def plain_weight_bytes(part: Part, s: Settings) -> int:
    """The bytes of a part's parameters that stay in 16 bit (float32 after PEFT's preparation)."""
    count = part.parameters - sum(x.weights * x.count for x in quantised(part, s))
    return count * (4 if s.prepared or s.stream_bytes == 4 else 2)


def adapter_linears(shape: Shape, s: Settings) -> tuple[Linear, ...]:
    """The matrices that carry LoRA."""
    found: list[Linear] = []
    for part in shape.parts:
        if part.name in ("head", "embeddings"):
            continue
        if s.targets == "Q-Former":
            found += [x for x in part.linears if part.name == "Q-Former" and x.name in ("query", "key", "value")]
        elif s.targets == "all-linear" or part.name == "language model":
            found += [x for x in part.linears if not _names(s) or x.name in _names(s)]
    return tuple(found)


def _names(s: Settings) -> frozenset[str]:
    attention = {"q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "q", "k", "v", "o", "dense"}
    if s.targets == "attention":
        return frozenset(attention)
    return frozenset({"q_proj", "v_proj", "qkv_proj", "q", "v"}) if s.targets == "q,v" else frozenset()


def trainable(shape: Shape, s: Settings) -> int:
    """How many parameters learn."""
    if s.method == "full":
        return shape.parameters
    return sum((x.inputs + x.outputs) * s.rank * x.count for x in adapter_linears(shape, s))


def optimizer_bytes(count: int, s: Settings) -> int:
    """The optimizer's state on the GPU. A paged state is counted whole: it leaves the GPU only under pressure."""
    if s.optimizer == "sgd":
        return 4 * count * s.masters
    if s.masters:
        return 12 * count
    if "8bit" in s.optimizer:
        return 2 * count + 8 * -(-count // 256)
    # AdamW's two moments have the dtype of the weights: float32 for adapters, 16 bit in full fine-tuning.
    return (4 if s.method == "full" else 8) * count


# ---------------------------------------------------------------- the step


def estimate(shape: Shape, s: Settings) -> Breakdown:
    """What a training step of this model with these settings takes on one GPU."""
    return _estimate(shape, s)


@lru_cache(maxsize=4096)
def _estimate(shape: Shape, s: Settings) -> Breakdown:
    split = s.world if s.sharded else 1
    count = trainable(shape, s)
    learnt = 2 if s.method == "full" else s.adapter_bytes
    weights = list(_weights(shape, s, split))
    adapters = 0 if s.method == "full" else count * learnt // split
    state = optimizer_bytes(count, s) // split
    gradients = count * learnt // split
    of_images, patches = image_tokens(shape, s)
    base = [*weights, Item("adapters", adapters), Item("optimizer", state), Item("batch", _inputs(shape, s, patches))]
    base += list(_distributed(shape, s, gradients))
    # DeepSpeed adds up the micro-steps' gradients in a copy beside those of the step at work.
    base += [Item("accumulated gradients", gradients if s.masters else 0)]
    phases = list(_phases(shape, s, of_images, patches, count, gradients))
    name, items = max(phases, key=lambda phase: sum(i.bytes for i in phase[1]))
    moving = sum(i.bytes for i in items)
    total = [i for i in (*base, *items) if i.bytes]
    on_gpu = s.device == "cuda"
    overhead = tuple(
        int(moving * slack) + context + WORKSPACE if on_gpu else 0
        for slack, context in zip(SLACK, CONTEXT, strict=True)
    )
    full16 = shape.parameters * 2
    held = sum(i.bytes for i in weights)
    largest = max((x.weights * 2 for p in shape.parts for x in p.linears), default=0)
    embedding = shape.vocabulary * shape.hidden * 2
    return Breakdown(
        tuple(total),
        name,
        (overhead[0], overhead[1], overhead[2]),
        (int(moving * ERROR) + (state if s.optimizer.startswith("paged") else 0), int(moving * ERROR)),
        s.length + of_images,
        of_images,
        count,
        load=held + max(largest, embedding),
        host=min(full16, 5 * 10**9) + 2 * GIB,
        disk=full16,
        saved=count * learnt + optimizer_bytes(count, s),
        generation=held + adapters + _cache(shape, s, of_images),
        merge=full16 + count * 4,
        phases=tuple(Item(n, sum(i.bytes for i in x)) for n, x in phases),
    )


def _weights(shape: Shape, s: Settings, split: int) -> Iterator[Item]:
    packed = sum(packed_weight_bytes(p, s) for p in shape.parts)
    yield Item("quantised weights", packed // split)
    for part in shape.parts:
        if s.method == "full":
            yield Item(f"weights: {part.name}", part.parameters * 2 // split)
        else:
            yield Item(f"16-bit: {part.name}", plain_weight_bytes(part, s) // split)


def _distributed(shape: Shape, s: Settings, gradients: int) -> Iterator[Item]:
    """What several GPUs add on each: DDP's buckets, or the weights that FSDP has gathered at any moment."""
    if s.world == 1:
        return
    if not s.sharded:
        yield Item("DDP buckets", gradients)
        return
    # The root unit (embeddings, head) stays gathered through a step; of the layers, one runs and the next is under way.
    ends = sum(plain_weight_bytes(p, s) for p in shape.parts if p.name in ("embeddings", "head"))
    body = shape.parts[0]
    layer = (packed_weight_bytes(body, s) + plain_weight_bytes(body, s)) // max(1, shape.text.layers)
    yield Item("gathered weights", ends + 2 * layer)


def _inputs(shape: Shape, s: Settings, patches: int) -> int:
    tokens = s.batch * s.length * 8 * 3
    if shape.images is None or not patches:
        return tokens
    return tokens + s.batch * patches * 3 * shape.images.patch**2 * (8 if shape.images.rule == "pixels" else 4)


def _numbers(s: Settings, tokens: int, kernel: str, **more: object) -> Numbers:
    stream = 4 if s.prepared or s.stream_bytes == 4 else 2
    number = Numbers(
        s.batch, tokens, stream, s.adapter_bytes, lora_dropout=s.lora_dropout, autocast=s.autocast, kernel=kernel,
        cuda=s.device == "cuda", masked=s.padded, keeps_inputs=s.keeps_inputs,
        unpacks=s.unpacks,
    )  # fmt: skip
    return replace(number, **more)  # type: ignore[arg-type]


def _phases(
    shape: Shape, s: Settings, of_images: int, patches: int, count: int, gradients: int
) -> Iterator[tuple[str, list[Item]]]:
    kernel = "eager" if s.attention == "eager" else "flash"
    learns = s.method == "full" or s.targets != "Q-Former"
    rank = 0 if s.method == "full" or not learns else s.rank
    packed = bool(quantised(shape.parts[0], s))
    seq2seq = shape.decoder is not None
    tokens = s.length + of_images
    n = _numbers(s, tokens, kernel, rank=rank, quantised=packed, targets=_names(s))
    costs: list[tuple[int, Cost, int]] = [(shape.text.layers, _layer(shape.text, n, True, 0), _size(n, shape.text))]
    ends = n
    if (decoder := shape.decoder) is not None:
        ends = replace(n, tokens=s.answer)
        costs.append((decoder.layers, _layer(decoder, ends, True, tokens), _size(ends, decoder)))
    before = _before(shape, s, patches, of_images, kernel)
    kept = sum(_kept(layers, cost, size, s.checkpointing) for layers, cost, size in (*before, *costs))
    label = "checkpointed inputs" if s.checkpointing else "saved activations"
    embeds = _size(ends, shape.text) + (_size(n, shape.text) if of_images or seq2seq else 0)
    head = 4 if s.prepared or s.stream_bytes == 4 else 2
    kind = "native" if seq2seq and s.loss == "plain" else s.loss
    final = _loss(shape.hidden, shape.vocabulary, ends, kind, head, not seq2seq)
    copies = count * 2 if s.autocast and s.checkpointing and s.method != "full" and s.adapter_bytes == 4 else 0
    held = ends.rows * shape.vocabulary * (4 if s.autocast or s.loss == "shifted" else 2) if s.held else 0
    # T5's first layer makes the position bias that all its layers share, in the encoder and in the decoder.
    bias = (
        sum(x.heads * k.tokens**2 * n.stream for x, k in ((shape.text, n), (shape.decoder, ends)) if x)
        if seq2seq
        else 0
    )
    common = [Item(label, kept), Item("hidden states", embeds + bias)]
    logits = max(final.backward + held, final.training + copies)
    buckets = Item("gradient buckets", s.buckets)
    yield "loss", [*common, Item("logits and loss", logits), buckets]
    # The last layer's backward comes first, while everything before it is still kept.
    for index, (layers, cost, size) in enumerate((*before, *costs)):
        after = (*before, *costs)[index + 1 :]
        done = sum(_kept(*c, s.checkpointing) for c in after)
        grads = sum(c.grads * k for k, c, _ in after)
        live = max(cost.backward, cost.training) if s.checkpointing else cost.backward - cost.saved
        shared = Item("hidden states", bias)
        yield (
            "backward",
            [Item(label, kept - done), Item("one live layer", live), Item("gradients", grads), shared, buckets],
        )
        # And its first layer last, with the gradients of all the others.
        rest = kept - done - _kept(layers - 1, cost, size, s.checkpointing)
        grads = gradients if s.method == "full" else grads + cost.grads * (layers - 1)
        yield "backward", [Item(label, rest), Item("one live layer", live), Item("gradients", grads), shared, buckets]
    yield "optimizer step", [Item("gradients", gradients)]
    yield from _vision(shape, s, patches, kernel)


def _size(n: Numbers, stack: Stack) -> int:
    return n.rows * stack.hidden * n.stream


def _kept(layers: int, cost: Cost, size: int, checkpointing: bool) -> int:
    if checkpointing:
        return layers * size
    return layers * (cost.saved + (size if cost.keeps_input else 0))


def _before(shape: Shape, s: Settings, patches: int, of_images: int, kernel: str) -> list[tuple[int, Cost, int]]:
    """The layers below the language model that save for the backward: a vision tower or Q-Former that learns."""
    query, images = shape.part("Q-Former"), shape.images
    if query is None or query.stack is None or images is None or not of_images or s.targets != "Q-Former":
        return []
    tokens = of_images + (min(s.length, 128) if query.stack.parallel else 0)
    n = _numbers(
        s,
        tokens,
        kernel,
        rank=s.rank,
        quantised=bool(quantised(query, s)),
        targets=frozenset({"query", "key", "value"}),
    )
    cost = _layer(query.stack, n, True, patches)
    return [(query.stack.layers, cost, _size(n, query.stack))]


def _vision(shape: Shape, s: Settings, patches: int, kernel: str) -> Iterator[tuple[str, list[Item]]]:
    part = shape.part("vision tower")
    if part is None or part.stack is None or not patches:
        return
    n = _numbers(s, patches, kernel, quantised=bool(quantised(part, s)), grad=False)
    cost = _layer(part.stack, n, True, 0)
    size = _size(n, part.stack)
    # LLaVA reads the output of an inner layer, so every layer's output is kept until the tower is through.
    outputs = part.stack.layers * size if shape.images is not None and shape.images.rule in ("fixed", "tiles") else size
    yield "vision", [Item("vision activations", cost.forward + outputs + size)]


def _cache(shape: Shape, s: Settings, of_images: int) -> int:
    stack = shape.decoder or shape.text
    return s.batch * (s.length + of_images) * stack.layers * 2 * stack.kv_width * 2


@lru_cache(maxsize=2048)
def _layer(stack: Stack, n: Numbers, crossed: bool, memory: int) -> Cost:
    return blocks.layer(stack, n, crossed=crossed, memory=memory)


@lru_cache(maxsize=2048)
def _loss(hidden: int, vocabulary: int, n: Numbers, kind: str, head: int, norm: bool) -> Cost:
    return blocks.loss(hidden, vocabulary, n, kind, head=head, norm=norm)
