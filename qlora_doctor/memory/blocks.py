"""The blocks of a training step on the tape, as transformers 5.23, PEFT 0.21 and bitsandbytes 0.50 carry them out."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_doctor.memory.shapes import Stack
from qlora_doctor.memory.tape import Cost, Tape


@dataclass(frozen=True, slots=True)
class Numbers:
    """What decides how many bytes a number takes.

    `stream`: bytes of the residual stream. `adapter`: of LoRA weights; `rank` 0 means no LoRA here. `autocast`: the
    forward runs under it (Trainer with bf16 or fp16). `quantised`: the matrices are dequantised in each backward.
    `kernel`: `flash` (nothing quadratic is kept), `math` or `eager`. `cuda`: kernels unpack the matrix in the forward too.
    `train`: dropout is active. `keeps_inputs`, `unpacks` see Settings. `targets`: which matrices carry LoRA; empty means every one.
    """

    batch: int
    tokens: int
    stream: int = 2
    adapter: int = 4
    rank: int = 0
    lora_dropout: float = 0.0
    autocast: bool = True
    quantised: bool = True
    kernel: str = "flash"
    cuda: bool = True
    train: bool = True
    grad: bool = True
    masked: bool = False
    targets: frozenset[str] = frozenset()
    keeps_inputs: bool = False
    unpacks: bool = False

    @property
    def rows(self) -> int:
        return self.batch * self.tokens


class Block:
    """A tape with the operations that blocks share."""

    def __init__(self, n: Numbers, width: int) -> None:
        self.n = n
        self.tape = Tape(n.rows * width * n.stream, n.grad)

    def linear(self, x: int, name: str, inputs: int, outputs: int, rows: int = 0, quantised: bool | None = None) -> int:
        n, t, rows = self.n, self.tape, rows or self.n.rows
        packed = n.quantised if quantised is None else quantised
        weight = inputs * outputs * 2 if packed else 0
        # bitsandbytes computes in 16 bit: a float32 stream is cast on the way in, and back on the way out.
        casts = packed and n.stream == 4
        unpacked = weight * n.cuda + casts * rows * inputs * 2
        kept = [x] if packed and n.keeps_inputs else []
        if packed and n.unpacks:
            # Shifted as int32, cut to int8, scaled to 16 bit: 5 bytes a weight for a moment, and 2 until the backward.
            kept, unpacked, weight = [*kept, t.outside(weight)], 3 * inputs * outputs, 0
        y = t.op([x], rows * outputs * (2 if casts else n.stream), kept, forward=unpacked, backward=weight)
        if casts:
            y = t.op([y], rows * outputs * 4)
        if not n.rank or (n.targets and name not in n.targets):
            return y
        y = t.op([y], rows * outputs * n.stream, passes=True)
        number = 2 if n.autocast else n.adapter
        given = x
        if not n.autocast and n.adapter != n.stream:
            given = t.op([x], rows * inputs * n.adapter)
        held = given
        if n.lora_dropout:
            mask = t.outside(rows * inputs)
            given = t.op([given], rows * inputs * (n.stream if n.autocast else n.adapter), [mask])
        if n.autocast and not n.cuda and n.adapter == 4:
            # PEFT asks whether CUDA's autocast is on; under the CPU's it casts to float32 first, and autocast back.
            held = given = t.op([given], rows * inputs * 4) if n.stream == 2 else given
            given = t.op([given], rows * inputs * 2)
        elif n.autocast and n.stream != 2:
            given = t.op([given], rows * inputs * 2)
        copies = (
            [t.outside(n.rank * inputs * 2), t.outside(outputs * n.rank * 2)] if n.autocast and n.adapter != 2 else []
        )
        a = t.op([given], rows * n.rank * number, [given, *copies[:1]], grads=n.rank * inputs * n.adapter)
        b = t.op([a], rows * outputs * number, [a, *copies[1:]], grads=n.rank * outputs * n.adapter)
        scaled = t.op([b], rows * outputs * number)
        if number != n.stream:
            scaled = t.op([scaled], rows * outputs * n.stream)
        z = t.op([y, scaled], rows * outputs * n.stream, passes=True)
        t.hold(held, y, scaled)
        return z

    def rms(self, x: int, width: int, rows: int = 0) -> int:
        n, t, rows = self.n, self.tape, rows or self.n.rows
        wide = rows * width * 4
        f = t.op([x], wide) if n.stream == 2 else x
        p = t.op([f], wide, [f], backward=2 * wide)
        v = t.op([p], rows * 4)
        r = t.op([v], rows * 4)
        y = t.op([f, r], wide, [f, r], backward=wide)
        if n.stream == 2:
            y = t.op([y], rows * width * 2)
        return t.op([y], rows * width * n.stream)

    def t5_norm(self, x: int, width: int) -> int:
        n, t, rows = self.n, self.tape, self.n.rows
        wide = rows * width * 4
        f = t.op([x], wide) if n.stream == 2 else x
        p = t.op([f], wide, [f], backward=2 * wide)
        v = t.op([p], rows * 4)
        y = t.op([x, v], wide, [x, v], backward=wide)
        if n.stream == 2:
            y = t.op([y], rows * width * 2)
        return t.op([y], rows * width * n.stream)

    def layer_norm(self, x: int, width: int, rows: int = 0) -> int:
        n, t, rows = self.n, self.tape, rows or self.n.rows
        # CUDA's autocast computes layer norms in float32.
        if n.autocast and n.cuda and n.stream == 2:
            x = t.op([x], rows * width * 4)
            y = t.op([x], rows * width * 4, [x])
            return t.op([y], rows * width * 2)
        small = t.outside(rows * 8)
        return t.op([x], rows * width * n.stream, [x, small])

    def rotate(self, q: int, k: int, q_size: int, k_size: int) -> tuple[int, int]:
        t, out = self.tape, []
        for x, size in ((q, q_size), (k, k_size)):
            a = t.op([x], size)
            half = t.op([x], size, forward=size // 2)
            b = t.op([half], size)
            out.append(t.op([a, b], size, passes=True))
        t.hold(q, k)
        return out[0], out[1]

    def attention(
        self, q: int, k: int, v: int, s: Stack, keys: int = 0, dropout: float = 0.0, bias: bool = False
    ) -> int:
        n, t = self.n, self.tape
        keys = keys or n.tokens
        out = n.rows * s.q_width * n.stream
        if s.kv_heads != s.heads and (n.masked or n.kernel != "flash" or not n.cuda):
            wide = n.batch * keys * s.q_width * n.stream
            k, v = t.op([k], wide), t.op([v], wide)
        scores = n.batch * s.heads * n.tokens * keys
        biased = [t.outside(scores * n.stream)] if bias else []
        if n.kernel == "flash" and (n.cuda or not dropout):
            lse = t.outside(n.rows * s.heads * 4)
            # The kernel saves its own output.
            y = t.op([q, k, v, *biased], out, [q, k, v, lse, *biased], itself=True)
            t.hold(q, k, v)
            return y
        # The math kernel works in float32, on scaled copies; the eager code of the models only in its softmax.
        number = 4 if n.kernel != "eager" else n.stream
        if number != n.stream:
            q, k, v = (t.op([i], t.sizes[i] * number // n.stream) for i in (q, k, v))
        if n.kernel != "eager":
            q, k = t.op([q], t.sizes[q]), t.op([k], t.sizes[k])
        w = t.op([q, k], scores * number, [q, k], forward=scores * number)
        if n.kernel == "eager":
            w = t.op([w], scores * n.stream)
            w = t.op([w], scores * n.stream, passes=True) if n.masked or bias else w
            w = t.op([w], scores * 4)
        p = t.op([w], scores * 4, itself=True)
        if n.kernel == "eager":
            p = t.op([p], scores * n.stream)
        if dropout and n.train:
            mask = t.outside(scores * (1 if n.cuda else number))
            p = t.op([p], scores * number, [mask])
        # The math kernel hands the probabilities back too, in the stream's dtype.
        returned = scores * n.stream if number != n.stream else 0
        y = t.op([p, v], out * number // n.stream, [p, v], forward=returned)
        if number != n.stream:
            y = t.op([y], out)
        y = t.op([y], out)
        t.hold(q, k, v)
        return y

    def drop(self, x: int, dropout: float, size: int) -> int:
        if not dropout or not self.n.train:
            return x
        mask = self.tape.outside(size // self.n.stream if self.n.cuda else size)
        return self.tape.op([x], size, [mask])

    def plus(self, x: int, y: int, size: int) -> int:
        return self.tape.op([x, y], size, passes=True)


def layer(s: Stack, n: Numbers, *, crossed: bool = True, memory: int = 0) -> Cost:
    """One layer of a stack. `memory` is the number of tokens that cross-attention reads."""
    if s.kind.startswith("t5"):
        return _t5(s, n, memory)
    if s.kind == "q-former":
        return _qformer(s, n, crossed, memory)
    b = Block(n, s.hidden)
    t, x, size = b.tape, 0, n.rows * s.hidden * n.stream
    norm = b.rms if s.kind == "llama" or (s.kind == "vit" and s.gated) else b.layer_norm
    h = norm(x, s.hidden)
    names = {"gpt": ("q_proj", "k_proj", "v_proj", "dense" if s.parallel else "out_proj")}.get(
        s.kind, ("q_proj", "k_proj", "v_proj", "o_proj")
    )
    if s.fused:
        both = b.linear(h, "qkv" if s.kind == "vit" else "qkv_proj", s.hidden, s.q_width + 2 * s.kv_width)
        q = k = v = both
    else:
        q = b.linear(h, names[0], s.hidden, s.q_width)
        if s.qk_norm:
            q = b.rms(q, s.head_dim, n.rows * s.heads)
        k = b.linear(h, names[1], s.hidden, s.kv_width)
        if s.qk_norm:
            k = b.rms(k, s.head_dim, n.rows * s.kv_heads)
        v = b.linear(h, names[2], s.hidden, s.kv_width)
    if s.rotary:
        # Vision towers rotate in float32.
        number = 4 if s.kind == "vit" else n.stream
        q_size, k_size = n.rows * s.q_width * number, n.rows * s.kv_width * number
        if s.kind == "vit" and n.stream == 2:
            q, k = t.op([q], q_size), t.op([k], k_size)
        q, k = b.rotate(q, k, q_size, k_size)
        if s.kind == "vit" and n.stream == 2:
            q, k = t.op([q], q_size // 2), t.op([k], k_size // 2)
    y = b.attention(q, k, v, s)
    y = b.linear(y, "proj" if s.kind == "vit" and s.fused else names[3], s.q_width, s.hidden)
    t.hold(h)
    if s.sandwich:
        y = b.rms(y, s.hidden)
    if s.parallel and s.kind == "gpt":
        m = _mlp(b, h, s, n)
        return _end(b, b.plus(b.plus(y, m, size), x, size))
    y = b.drop(y, s.dropout, size)
    x = b.plus(x, y, size)
    h = norm(x, s.hidden)
    m = _mlp(b, h, s, n)
    t.hold(h)
    if s.sandwich:
        m = b.rms(m, s.hidden)
    m = b.drop(m, s.dropout, size)
    return _end(b, b.plus(x, m, size))


def _end(b: Block, out: int) -> Cost:
    assert b.tape.ops[-1].out == out
    return b.tape.cost()


def _mlp(b: Block, h: int, s: Stack, n: Numbers) -> int:
    t, wide = b.tape, n.rows * s.inner * n.stream
    if s.gated and s.fused and s.kind == "llama":
        both = b.linear(h, "gate_up_proj", s.hidden, 2 * s.inner)
        act = t.op([both], wide, [both])
        return b.linear(t.op([both, act], wide, [both, act]), "down_proj", s.inner, s.hidden)
    if s.gated:
        gate = b.linear(h, "gate_proj", s.hidden, s.inner)
        act = t.op([gate], wide, [gate])
        up = b.linear(h, "up_proj", s.hidden, s.inner)
        return b.linear(t.op([act, up], wide, [act, up]), "down_proj", s.inner, s.hidden)
    first = b.linear(h, "fc1", s.hidden, s.inner)
    return b.linear(t.op([first], wide, [first]), "fc2", s.inner, s.hidden)


def _t5(s: Stack, n: Numbers, memory: int) -> Cost:
    b = Block(n, s.hidden)
    t, x, size = b.tape, 0, n.rows * s.hidden * n.stream
    inner = n.rows * s.q_width * n.stream
    for cross in (False, True) if s.kind == "t5-decoder" else (False,):
        h = b.t5_norm(x, s.hidden)
        q = b.linear(h, "q", s.hidden, s.q_width)
        if cross:
            rows = n.batch * memory
            k = b.linear(0, "k", s.hidden, s.q_width, rows)
            v = b.linear(0, "v", s.hidden, s.q_width, rows)
        else:
            k, v = b.linear(h, "k", s.hidden, s.q_width), b.linear(h, "v", s.hidden, s.q_width)
        y = b.attention(q, k, v, s, memory if cross else 0, s.dropout if n.train else 0.0, bias=True)
        assert t.sizes[y] == inner
        y = b.drop(b.linear(y, "o", s.q_width, s.hidden), s.dropout, size)
        t.hold(h)
        x = b.plus(x, y, size)
    h = b.t5_norm(x, s.hidden)
    wide = n.rows * s.inner * n.stream
    if s.gated:
        g = b.linear(h, "wi_0", s.hidden, s.inner)
        # transformers writes this GELU out in seven operations where the config says gelu_new.
        act = _gelu_new(b, g, wide)
        up = b.linear(h, "wi_1", s.hidden, s.inner)
        m = t.op([act, up], wide, [act, up])
        t.hold(act, up)
    else:
        g = b.linear(h, "wi", s.hidden, s.inner)
        m = t.op([g], wide, [g])
    m = b.drop(m, s.dropout, wide)
    y = b.drop(b.linear(m, "wo", s.inner, s.hidden, quantised=False), s.dropout, size)
    t.hold(h)
    return _end(b, b.plus(x, y, size))


def _gelu_new(b: Block, x: int, size: int) -> int:
    t = b.tape
    half = t.op([x], size)
    cube = t.op([x], size, [x], backward=2 * size)
    a = t.op([cube], size)
    a = t.op([x, a], size, passes=True)
    a = t.op([a], size)
    a = t.op([a], size, itself=True)
    a = t.op([a], size, passes=True)
    return t.op([half, a], size, [half, a])


def _qformer(s: Stack, n: Numbers, crossed: bool, memory: int) -> Cost:
    b = Block(n, s.hidden)
    t, x, size = b.tape, 0, n.rows * s.hidden * n.stream
    for cross in (False, True) if crossed else (False,):
        q = b.linear(x, "query", s.hidden, s.hidden)
        rows = n.batch * memory if cross else n.rows
        k = b.linear(x, "key", s.cross if cross else s.hidden, s.hidden, rows)
        v = b.linear(x, "value", s.cross if cross else s.hidden, s.hidden, rows)
        y = b.attention(q, k, v, s, memory if cross else 0, s.dropout if n.train else 0.0)
        y = b.drop(b.linear(y, "dense", s.hidden, s.hidden), s.dropout, size)
        x = b.layer_norm(b.plus(x, y, size), s.hidden)
    wide = n.rows * s.inner * n.stream
    first = b.linear(x, "dense", s.hidden, s.inner)
    m = b.linear(t.op([first], wide, [first]), "dense", s.inner, s.hidden)
    m = b.drop(m, s.dropout, size)
    return _end(b, b.layer_norm(b.plus(x, m, size), s.hidden))


def loss(hidden: int, vocabulary: int, n: Numbers, kind: str, *, head: int, rows: int = 0, norm: bool = True) -> Cost:
    """Final norm, head and cross-entropy. `head` is the head's bytes a weight; `kind` see `Settings.loss`."""
    rows = rows or n.rows
    b = Block(n, hidden)
    t = b.tape
    h = b.rms(0, hidden) if norm else 0
    number = 2 if n.autocast else max(n.stream, head if head == 4 else 0)
    if n.autocast and n.stream != 2:
        h = t.op([h], n.rows * hidden * 2)
    # Autocast keeps no copy of a frozen weight: a float32 head is cast anew, and the copy stays for the backward.
    copy = [t.outside(hidden * vocabulary * 2)] if n.autocast and head == 4 else []
    step = min(rows, 256) if kind == "chunked" else rows
    y = t.op([h], step * vocabulary * number, copy)
    logits = y
    if kind == "shifted":
        logits = t.op([y], step * vocabulary * 4)
        y = t.op([logits], step * vocabulary * 4)
        wide = 4
    elif kind == "native" and not n.autocast:
        # T5 computes its loss in the logits' own dtype; only autocast makes that float32.
        wide = number
    elif kind == "plain16":
        y = t.op([y], step * vocabulary * number)
        wide = number
    else:
        wide = 4
        y = t.op([y], step * vocabulary * 4) if number != 4 else y
    logp = t.op([y], step * vocabulary * wide, itself=True)
    if kind != "chunked":
        t.hold(y)
    out = t.op([logp], 4)
    if kind != "chunked":
        t.hold(logits, h)
    return _end(b, out)
