"""The shape of a model, from its config.json: every matrix and every other parameter, by the part it belongs to.

The numbers are exact: the bytes that follow from them equal those of the loaded model. What a config.json leaves out is
taken from the defaults of transformers' configuration class (transformers 5.23), and said in `Shape.assumed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qlora_doctor.errors import UsageError
from qlora_doctor.memory.fields import Fields

PARTS = ("language model", "embeddings", "head", "vision tower", "projector", "Q-Former")


@dataclass(frozen=True, slots=True)
class Linear:
    """`count` matrices of one size. `name` is the last part of the module's name, which LoRA targets match."""

    name: str
    inputs: int
    outputs: int
    count: int = 1
    bias: bool = False

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Stack:
    """`layers` equal transformer layers. `kind`: `llama`, `gpt`, `t5-encoder`, `t5-decoder`, `vit`, `q-former`.

    `rotary`: positions by rotation. `fused`: one matrix for query, key and value. `sandwich`: norms behind the blocks too.
    `cross` is the width that cross-attention reads, in every `cross_every`-th layer; 0 for none. `dropout` is active in
    training.
    """

    kind: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    gated: bool = True
    bias: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    fused: bool = False
    rotary: bool = True
    sandwich: bool = False
    parallel: bool = False
    cross: int = 0
    cross_every: int = 1
    dropout: float = 0.0
    fp32_out: bool = False

    @property
    def q_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Part:
    """One part's parameters: its matrices, and `rest`, the number of all others (norms, biases, embeddings, convolutions).

    `kept` names matrices that transformers never quantises, `float32` those that it keeps in float32 in a float16 load.
    """

    name: str
    linears: tuple[Linear, ...] = ()
    rest: int = 0
    stack: Stack | None = None
    second: Stack | None = None
    kept: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        return sum(x.weights * x.count for x in self.linears)

    @property
    def parameters(self) -> int:
        return self.weights + self.rest


@dataclass(frozen=True, slots=True)
class Images:
    """How many tokens an image is worth. `rule`: `fixed`, `tiles` (LLaVA 1.6), `pixels` (Qwen-VL), `queries` (BLIP).

    `patches` and `tokens` are for the one size (`fixed`, `queries`, a tile); `side` is that of an image in pixels.
    """

    rule: str
    patches: int
    tokens: int
    side: int
    patch: int
    merge: int = 1


@dataclass(frozen=True, slots=True)
class Shape:
    """A model. `assumed` says which fields were missing in its config.json, and what was taken for them."""

    model_type: str
    title: str
    parts: tuple[Part, ...]
    hidden: int
    vocabulary: int
    tied: bool = False
    images: Images | None = None
    positions: int = 0
    assumed: tuple[str, ...] = ()
    bytes_16: int = 0

    def part(self, name: str) -> Part | None:
        return next((p for p in self.parts if p.name == name), None)

    @property
    def parameters(self) -> int:
        return sum(p.parameters for p in self.parts)

    @property
    def text(self) -> Stack:
        part = self.part("language model")
        assert part is not None and part.stack is not None
        return part.stack

    @property
    def decoder(self) -> Stack | None:
        """The decoder of an encoder-decoder model; None for others."""
        part = self.part("language model")
        return None if part is None else part.second


def shape_of(config: Any, name: str = "") -> Shape:
    """The shape of the model that a config.json (read as a dict) describes.

    Raises:
        UsageError: a field is absurd or of the wrong type, a needed one is missing, or the model is of a kind whose
            memory is not known here (a mixture of experts, an unknown model_type); the message names the field.
    """
    if not isinstance(config, Mapping):
        raise UsageError(f"{name or 'config.json'}: expected an object with the model's configuration")
    fields = Fields(config, name or "config.json")
    kind = fields.text("model_type")
    maker = _MAKERS.get(kind)
    if maker is None:
        hint = " (a mixture of experts)" if "moe" in kind or "mixtral" in kind else ""
        known = ", ".join(sorted(_MAKERS))
        raise UsageError(
            f"{fields.where}: the memory of model_type {kind!r}{hint} is not known here; known are {known}"
        )
    shape = maker(fields)
    if shape.parameters > 5 * 10**12:
        raise UsageError(f"{fields.where}: the sizes make {shape.parameters:.1e} parameters; one of them must be wrong")
    return shape


# ---------------------------------------------------------------- parts


def stack_linears(s: Stack, part: str = "") -> tuple[Linear, ...]:
    """The matrices of a stack under the names that its family gives them."""
    n = s.layers
    if s.kind == "q-former":
        return _qformer_linears(s)
    if s.kind.startswith("t5"):
        return _t5_linears(s)
    if s.kind == "vit":
        names = ("qkv", "proj", "fc1", "fc2") if s.fused else ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    elif s.kind == "gpt":
        names = ("q_proj", "k_proj", "v_proj", "dense" if s.parallel else "out_proj", "fc1", "fc2")
    else:
        names = ("q_proj", "k_proj", "v_proj", "o_proj")
    bias = s.qkv_bias
    if s.fused:
        first = [Linear(names[0] if s.kind == "vit" else "qkv_proj", s.hidden, s.q_width + 2 * s.kv_width, n, bias)]
        out = Linear(names[1] if s.kind == "vit" else "o_proj", s.q_width, s.hidden, n, s.bias)
    else:
        widths = (s.q_width, s.kv_width, s.kv_width)
        first = [Linear(name, s.hidden, w, n, bias) for name, w in zip(names, widths, strict=False)]
        out = Linear(names[3], s.q_width, s.hidden, n, s.bias)
    if s.gated and s.fused and s.kind == "llama":
        mlp = [Linear("gate_up_proj", s.hidden, 2 * s.inner, n), Linear("down_proj", s.inner, s.hidden, n)]
    elif s.gated:
        mlp = [
            Linear("gate_proj", s.hidden, s.inner, n, s.bias),
            Linear("up_proj", s.hidden, s.inner, n, s.bias),
            Linear("down_proj", s.inner, s.hidden, n, s.bias),
        ]
    else:
        mlp = [Linear(names[-2], s.hidden, s.inner, n, s.bias), Linear(names[-1], s.inner, s.hidden, n, s.bias)]
    return (*first, out, *mlp)


def _qformer_linears(s: Stack) -> tuple[Linear, ...]:
    n, crossed = s.layers, -(-s.layers // s.cross_every)
    both = 2 if s.parallel else 1
    return (
        *(Linear(name, s.hidden, s.hidden, n, True) for name in ("query", "key", "value", "dense")),
        *(Linear(name, s.hidden, s.hidden, crossed, True) for name in ("query", "dense")),
        *(Linear(name, s.cross, s.hidden, crossed, True) for name in ("key", "value")),
        Linear("dense", s.hidden, s.inner, n * both, True),
        Linear("dense", s.inner, s.hidden, n * both, True),
    )


def _t5_linears(s: Stack) -> tuple[Linear, ...]:
    times = s.layers * (2 if s.kind == "t5-decoder" else 1)
    first = ("wi_0", "wi_1") if s.gated else ("wi",)
    return (
        *(Linear(name, s.hidden, s.q_width, times) for name in "qkv"),
        Linear("o", s.q_width, s.hidden, times),
        *(Linear(name, s.hidden, s.inner, s.layers) for name in first),
        Linear("wo", s.inner, s.hidden, s.layers),
    )


def _biases(linears: tuple[Linear, ...]) -> int:
    return sum(x.outputs * x.count for x in linears if x.bias)


def _part(name: str, stack: Stack | None, extra: tuple[Linear, ...], rest: int, **more: Any) -> Part:
    linears = (*(stack_linears(stack) if stack else ()), *extra)
    return Part(name, linears, rest + _biases(linears), stack, **more)


# ---------------------------------------------------------------- text models


def _llama(f: Fields) -> tuple[Stack, int, int]:
    """The stack of a Llama-like decoder, its norm parameters, and its vocabulary."""
    kind = f.model_type
    hidden = f.size("hidden_size")
    heads = f.size("num_attention_heads", 65536)
    head_dim = f.size("head_dim", 65536, default=max(1, hidden // heads), quiet=True)
    if not f.given("head_dim") and hidden % heads:
        raise f.wrong("num_attention_heads", f"hidden_size {hidden} is not a multiple of it")
    kv = f.size("num_key_value_heads", 65536, default=heads, quiet=f.default("num_key_value_heads") is None)
    if heads % kv:
        raise f.wrong("num_key_value_heads", f"num_attention_heads {heads} is not a multiple of it")
    sandwich = kind.startswith(("gemma2", "gemma3"))
    qk_norm = kind.startswith(("qwen3", "gemma3"))
    stack = Stack(
        "llama",
        f.size("num_hidden_layers", 10_000),
        hidden,
        heads,
        kv,
        head_dim,
        f.size("intermediate_size"),
        bias=f.flag("mlp_bias") or (kind == "llama" and f.flag("attention_bias")),
        qkv_bias=kind.startswith("qwen2") or f.flag("attention_bias"),
        qk_norm=qk_norm,
        fused=kind == "phi3",
        sandwich=sandwich,
    )
    norms = stack.layers * (hidden * (4 if sandwich else 2) + (2 * head_dim if qk_norm else 0)) + hidden
    return stack, norms, f.size("vocab_size")


def _text_parts(f: Fields, tied_at: Fields | None = None) -> tuple[tuple[Part, ...], Stack, int, bool]:
    if f.model_type == "opt":
        return _opt_parts(f)
    if f.model_type == "phi":
        return _phi_parts(f)
    if f.model_type == "t5":
        return _t5_parts(f)
    stack, norms, vocabulary = _llama(f)
    if f.model_type == "llama" and f.flag("attention_bias") != f.flag("mlp_bias"):
        raise f.wrong("attention_bias", "a Llama with biases in one of its blocks only is not known here")
    if f.model_type.startswith("qwen3") and f.flag("attention_bias"):
        raise f.wrong("attention_bias", "a Qwen3 with biases is not known here")
    tied = (tied_at or f).flag("tie_word_embeddings")
    return (
        _with_ends(_part("language model", stack, (), norms), vocabulary, stack.hidden, tied),
        stack,
        vocabulary,
        tied,
    )


def _with_ends(body: Part, vocabulary: int, width: int, tied: bool, bias: bool = False) -> tuple[Part, ...]:
    head = Part("head", (Linear("lm_head", width, vocabulary, bias=bias),), vocabulary if bias else 0)
    return (body, Part("embeddings", (), vocabulary * width), *(() if tied else (head,)))


def _opt_parts(f: Fields) -> tuple[tuple[Part, ...], Stack, int, bool]:
    hidden, heads, vocabulary = f.size("hidden_size"), f.size("num_attention_heads", 65536), f.size("vocab_size")
    if f.size("word_embed_proj_dim", default=hidden, quiet=True) != hidden:
        raise f.wrong("word_embed_proj_dim", f"differs from hidden_size {hidden}, which is not known here")
    layers = f.size("num_hidden_layers", 10_000)
    stack = Stack(
        "gpt", layers, hidden, heads, heads, hidden // heads, f.size("ffn_dim"), gated=False, bias=True, qkv_bias=True,
        rotary=False, dropout=f.number("dropout", 0.1),
    )  # fmt: skip
    # OPT's positions start at 2, and each layer and the end have LayerNorms with a bias.
    rest = layers * 4 * hidden + 2 * hidden + (f.size("max_position_embeddings") + 2) * hidden
    tied = f.flag("tie_word_embeddings", True)
    return _with_ends(_part("language model", stack, (), rest), vocabulary, hidden, tied), stack, vocabulary, tied


def _phi_parts(f: Fields) -> tuple[tuple[Part, ...], Stack, int, bool]:
    hidden, heads, vocabulary = f.size("hidden_size"), f.size("num_attention_heads", 65536), f.size("vocab_size")
    layers = f.size("num_hidden_layers", 10_000)
    stack = Stack(
        "gpt", layers, hidden, heads, heads, hidden // heads, f.size("intermediate_size"), gated=False, bias=True,
        qkv_bias=True, rotary=True, parallel=True,
    )  # fmt: skip
    body = _part("language model", stack, (), layers * 2 * hidden + 2 * hidden)
    return _with_ends(body, vocabulary, hidden, False, bias=True), stack, vocabulary, False


def _t5_parts(f: Fields) -> tuple[tuple[Part, ...], Stack, int, bool]:
    hidden, heads, vocabulary = f.size("d_model"), f.size("num_heads", 65536), f.size("vocab_size")
    layers = f.size("num_layers", 10_000)
    gated = f.text("feed_forward_proj", "relu").startswith("gated")
    common: dict[str, Any] = {
        "hidden": hidden, "heads": heads, "kv_heads": heads, "head_dim": f.size("d_kv", 65536), "inner": f.size("d_ff"),
        "gated": gated, "rotary": False, "dropout": f.number("dropout_rate", 0.1),
    }  # fmt: skip
    encoder = Stack("t5-encoder", layers, **common)
    below = f.size("num_decoder_layers", 10_000, default=layers, quiet=True)
    decoder = Stack("t5-decoder", below, cross=hidden, **common)
    buckets = f.size("relative_attention_num_buckets", default=32, quiet=True) * heads
    rest = hidden * (2 * layers + 1 + 3 * below + 1) + 2 * buckets
    linears = (*stack_linears(encoder), *stack_linears(decoder))
    body = Part("language model", linears, rest, encoder, decoder, kept=("wo",))
    tied = f.flag("tie_word_embeddings", True)
    return _with_ends(body, vocabulary, hidden, tied), encoder, vocabulary, tied


def _text_model(f: Fields) -> Shape:
    parts, stack, vocabulary, tied = _text_parts(f)
    positions = f.size("max_position_embeddings", 10**9, default=0, quiet=True, least=0) if f.model_type != "t5" else 0
    return Shape(
        f.model_type, f.model_type, parts, stack.hidden, vocabulary, tied, positions=positions, assumed=f.assumed
    )


# ---------------------------------------------------------------- vision models


def _clip(v: Fields) -> tuple[Part, Images]:
    hidden, heads = v.size("hidden_size"), v.size("num_attention_heads", 65536)
    side, patch = v.size("image_size", 65536), v.size("patch_size", 65536)
    if patch > side:
        raise v.wrong("patch_size", f"larger than image_size {side}")
    layers = v.size("num_hidden_layers", 10_000)
    stack = Stack(
        "vit", layers, hidden, heads, heads, hidden // heads, v.size("intermediate_size"), gated=False, bias=True,
        qkv_bias=True, rotary=False,
    )  # fmt: skip
    patches = (side // patch) ** 2
    rest = hidden + 3 * patch * patch * hidden + (patches + 1) * hidden + 4 * hidden + layers * 4 * hidden
    return _part("vision tower", stack, (), rest), Images("fixed", patches + 1, patches, side, patch)


def _llava(f: Fields) -> Shape:
    text, vision = f.inside("text_config", "llama"), f.inside("vision_config", "clip_vision_model", "llava_vision")
    if vision.model_type != "clip_vision_model":
        raise vision.wrong("model_type", "only a CLIP vision tower is known here")
    parts, stack, vocabulary, tied = _text_parts(text, f)
    tower, images = _clip(vision)
    assert tower.stack is not None
    bias = f.flag("multimodal_projector_bias", True)
    wide = tower.stack.hidden * (
        len(layers) if isinstance(layers := f.raw("vision_feature_layer"), (list, tuple)) else 1
    )
    lines = (Linear("linear_1", wide, stack.hidden, 1, bias), Linear("linear_2", stack.hidden, stack.hidden, 1, bias))
    newline = stack.hidden if f.model_type == "llava_next" else 0
    projector = _part("projector", None, lines, newline)
    if f.model_type == "llava_next":
        images = Images("tiles", images.patches, images.tokens, images.side, images.patch)
    title = "LLaVA 1.6" if newline else "LLaVA 1.5"
    return _vision_shape(f, title, (*parts, tower, projector), stack, vocabulary, tied, images, text, vision)


def _vision_shape(
    f: Fields,
    title: str,
    parts: tuple[Part, ...],
    stack: Stack,
    vocabulary: int,
    tied: bool,
    images: Images,
    *inner: Fields,
) -> Shape:
    assumed = (*f.assumed, *(a for i in inner for a in i.assumed))
    return Shape(f.model_type, title, parts, stack.hidden, vocabulary, tied, images, assumed=assumed)


def _qwen_vl(f: Fields) -> Shape:
    kind = f.model_type
    text = f.inside("text_config", f"{kind}_text", flat=True)
    vision = f.inside("vision_config", f"{kind}_vision")
    parts, stack, vocabulary, tied = _text_parts(text, f if f.given("tie_word_embeddings") else text)
    patch, merge = vision.size("patch_size", 65536), vision.size("spatial_merge_size", 64)
    in_channels = vision.size("in_channels", 64, default=vision.size("in_chans", 64, default=3, quiet=True), quiet=True)
    depth, heads = vision.size("depth", 10_000), vision.size("num_heads", 65536)
    if kind == "qwen2_vl":
        width, out = vision.size("embed_dim"), vision.size("hidden_size")
        inner, gated = int(width * vision.number("mlp_ratio", 4)), False
    else:
        width, out = vision.size("hidden_size"), vision.size("out_hidden_size")
        inner, gated = vision.size("intermediate_size"), kind == "qwen2_5_vl"
    tower = Stack(
        "vit", depth, width, heads, heads, width // heads, inner, gated=gated, bias=True, qkv_bias=True, fused=True,
    )  # fmt: skip
    merged = width * merge * merge
    norm = width if kind == "qwen2_5_vl" else 2 * width
    rest = in_channels * vision.size("temporal_patch_size", 64) * patch * patch * width + depth * 2 * norm + norm
    mergers = 1
    if kind == "qwen3_vl":
        deep = vision.raw("deepstack_visual_indexes")
        mergers += len(deep) if isinstance(deep, (list, tuple)) else 3
        rest += width + vision.size("num_position_embeddings") * width + 2 * merged * (mergers - 1)
    lines = (Linear("linear_fc1", merged, merged, mergers, True), Linear("linear_fc2", merged, out, mergers, True))
    part, merger = _part("vision tower", tower, (), rest), _part("projector", None, lines, 0)
    images = Images("pixels", 0, 0, 0, patch, merge)
    title = {"qwen2_vl": "Qwen2-VL", "qwen2_5_vl": "Qwen2.5-VL"}.get(kind, "Qwen3-VL")
    return _vision_shape(f, title, (*parts, part, merger), stack, vocabulary, tied, images, text, vision)


def _blip(f: Fields) -> Shape:
    prefix = "instructblip" if f.model_type == "instructblip" else "blip_2"
    vision = f.inside("vision_config", f"{prefix}_vision_model")
    query = f.inside("qformer_config", f"{prefix}_qformer")
    text = f.inside("text_config", "opt" if prefix == "blip_2" else "llama")
    parts, stack, vocabulary, tied = _text_parts(text)
    hidden, heads = vision.size("hidden_size"), vision.size("num_attention_heads", 65536)
    side, patch, layers = (
        vision.size("image_size", 65536),
        vision.size("patch_size", 65536),
        vision.size("num_hidden_layers", 10_000),
    )
    tower = Stack(
        "vit", layers, hidden, heads, heads, hidden // heads, vision.size("intermediate_size"), gated=False, bias=True,
        qkv_bias=vision.flag("qkv_bias", True), fused=True, rotary=False,
    )  # fmt: skip
    patches = (side // patch) ** 2
    rest = hidden + 3 * patch * patch * hidden + hidden + (patches + 1) * hidden + layers * 4 * hidden + 2 * hidden
    vision_part = _part("vision tower", tower, (), rest)
    with_text = prefix == "instructblip" or query.flag("use_qformer_text_input")
    wide = query.size("hidden_size")
    qformer = Stack(
        "q-former", query.size("num_hidden_layers", 10_000), wide, query.size("num_attention_heads", 65536),
        query.size("num_attention_heads", 65536), wide // query.size("num_attention_heads", 65536),
        query.size("intermediate_size"), gated=False, bias=True, qkv_bias=True, rotary=False,
        cross=query.size("encoder_hidden_size"), cross_every=query.size("cross_attention_frequency", 10_000),
        parallel=with_text, dropout=query.number("hidden_dropout_prob", 0.1),
    )  # fmt: skip
    crossed = -(-qformer.layers // qformer.cross_every)
    both = 2 if with_text else 1
    tokens = f.size("num_query_tokens", 65536)
    rest = wide * 2 * (qformer.layers * (1 + both) + crossed + 1) + tokens * wide
    if with_text:
        rest += (query.size("vocab_size") + query.size("max_position_embeddings")) * wide
    kept = () if prefix == "instructblip" else ("query", "key", "value", "dense")
    query_part = _part("Q-Former", qformer, (), rest, kept=kept)
    projector = _part("projector", None, (Linear("language_projection", wide, stack.hidden, 1, True),), 0)
    images = Images("queries", patches + 1, tokens, side, patch)
    title = "InstructBLIP" if prefix == "instructblip" else "BLIP-2"
    all_parts = (*parts, vision_part, query_part, projector)
    return _vision_shape(f, title, all_parts, stack, vocabulary, tied, images, text, vision, query)


_TEXT = ("llama", "mistral", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "qwen2", "qwen3", "opt", "t5")
_MAKERS: Mapping[str, Callable[[Fields], Shape]] = {
    **dict.fromkeys(_TEXT, _text_model),
    **dict.fromkeys(("llava", "llava_next"), _llava),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), _qwen_vl),
    **dict.fromkeys(("instructblip", "blip-2"), _blip),
}
