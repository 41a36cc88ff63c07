"""The language-model loss without the logits that nobody learns from.

The logits of a 150,000 vocabulary are the largest tensor of a training step: 10 to 18 bytes each are alive at the loss.
Most positions (prompt, padding, image) carry no label, so their logits are never needed; and those of the others are
needed a few at a time. The head is called with every position's hidden state *inside* the model's forward, where DDP
and FSDP have its weight at hand; for the length of one call it answers with the loss instead of the logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional

from qlora_doctor.errors import UsageError
from qlora_doctor.families import BY_TYPE

Wanted = Literal["auto", "plain", "chunked", "answers"]
ROUTES = ("auto", "plain", "chunked", "answers")
IGNORE = -100
# Logits of one chunk in float32: small beside a model, large enough to keep a GPU busy (220 positions of a 151,936
# vocabulary).
CHUNK_ELEMENTS = 2**25
# Architectures whose forward gives the head's output to the caller as it is. Others may scale or cap it afterwards.
KNOWN = frozenset({*BY_TYPE, "qwen2_moe", "qwen3_moe", "mistral", "phi3", "opt", "t5", "smollm3"})
_AFTER_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_router_logits")


@dataclass(frozen=True, slots=True)
class Route:
    """How the loss is computed, and why not a thriftier way. `name`: chunked, answers or plain."""

    name: str
    why: str = ""


def choose(model: Any, wanted: str = "auto") -> Route:
    """The route that this model can take: chunked where the head is known, else answers, else plain.

    Raises:
        UsageError: an unknown word, or a route asked for by name that this model cannot take.
    """
    if wanted not in ROUTES:
        raise UsageError(f"loss={wanted!r} is not known; it is one of {', '.join(ROUTES)}")
    if wanted == "plain":
        return Route("plain")
    bare = unwrap(model)
    against = _against_chunks(bare)
    if wanted in ("auto", "chunked") and not against:
        return Route("chunked")
    if wanted == "chunked":
        raise UsageError(f'loss="chunked" does not work here: {against}; take loss="auto"')
    takes = "logits_to_keep" in inspect.signature(bare.forward).parameters and shifts_labels(bare)
    if takes:
        return Route("answers", "" if wanted == "answers" else against)
    why = f"{type(bare).__name__}.forward ignores logits_to_keep"
    if wanted == "answers":
        raise UsageError(f'loss="answers" does not work here: {why}; take loss="auto"')
    return Route("plain", f"{against}, and {why}: the logits of every position are computed")


def unwrap(model: Any) -> Any:
    """The transformers model under PEFT and data-parallel wrappers."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif type(model).__name__ in ("DistributedDataParallel", "FullyShardedDataParallel", "DataParallel"):
            model = model.module
        else:
            return model


def shifts_labels(model: Any) -> bool:
    """Whether position t predicts label t + 1 (decoder-only) or label t (encoder-decoder)."""
    config = unwrap(model).config
    decoder_only = getattr(config, "use_decoder_only_language_model", None)
    return not getattr(config, "is_encoder_decoder", False) if decoder_only is None else bool(decoder_only)


def supervised(labels: torch.Tensor, *, shift: bool) -> torch.Tensor:
    """The label that each position must predict, in the shape of `labels`; -100 where it learns nothing."""
    return functional.pad(labels[..., 1:], (0, 1), value=IGNORE) if shift else labels


def chunked_loss(
    hidden: torch.Tensor, head: Any, targets: torch.Tensor, count: Any = None, *, chunk: int | None = None
) -> torch.Tensor:
    """Cross-entropy of the head on the supervised positions of `hidden`, a float32 scalar.

    Args:
        hidden: what the head is given, (batch, length, width).
        head: the output embedding; a plain frozen Linear takes the shortest way, anything else is recomputed.
        targets: from `supervised`, (batch, length); -100 positions never reach the head.
        count: the loss is the sum over positions divided by this; None divides by the supervised positions.
        chunk: positions at a time; None takes what fits 128 MiB of float32 logits.

    Raises:
        ValueError: hidden states and targets of different lengths.
    """
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(f"{tuple(hidden.shape[:-1])} hidden states and {tuple(targets.shape)} labels do not match")
    flat = targets.reshape(-1).to(hidden.device)
    places = (flat != IGNORE).nonzero().squeeze(1)
    chosen, wanted = hidden.reshape(-1, hidden.shape[-1])[places], flat[places]
    if not len(places):
        return hidden.sum().float() * 0.0
    size = chunk or max(16, CHUNK_ELEMENTS // _vocabulary(head))
    if _plain_and_frozen(head):
        total: torch.Tensor = _FrozenHead.apply(chosen, head.weight, head.bias, wanted, size)
    else:
        total = hidden.new_zeros((), dtype=torch.float32)
        for part, answers in zip(chosen.split(size), wanted.split(size), strict=True):
            total = total + torch.utils.checkpoint.checkpoint(_sum_of_chunk, head, part, answers, use_reentrant=False)
    if count is None:
        count = len(places)
    return total / (count.to(total.device) if torch.is_tensor(count) else count)


@contextmanager
def loss_in_head(head: Any, targets: torch.Tensor, count: Any = None) -> Iterator[None]:
    """While open, `head(hidden)` answers with the loss, as a tensor of shape (1, 1, 1), in place of the logits."""
    plain = head.forward

    def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        # Chunks that are recomputed in backward call the head itself, which must be itself again by then.
        head.forward = plain
        return chunked_loss(hidden, head, targets, count).view(1, 1, 1)

    own = "forward" in vars(head)
    head.forward = forward
    try:
        yield
    finally:
        head.forward = plain
        if not own:
            del head.forward


def chunked_call(model: Any, inputs: dict[str, Any], count: Any = None) -> torch.Tensor:
    """One forward of `model` (wrapped or not) on a batch with labels; returns the loss."""
    bare = unwrap(model)
    shift = shifts_labels(bare)
    rest = {name: value for name, value in inputs.items() if name != "labels"}
    labels = inputs["labels"]
    if not shift and "decoder_input_ids" not in rest:
        decoder = getattr(bare, "language_model", bare)
        rest["decoder_input_ids"] = decoder.prepare_decoder_input_ids_from_labels(labels)
    with loss_in_head(bare.get_output_embeddings(), supervised(labels, shift=shift), count):
        outputs = model(**rest)
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    return logits.reshape(())


def answer_columns(inputs: dict[str, Any]) -> dict[str, Any]:
    """The batch with `logits_to_keep` and `shift_labels` for the columns in which any row has something to learn."""
    targets = supervised(inputs["labels"], shift=True)
    columns = (targets != IGNORE).any(dim=0).nonzero().squeeze(1)
    if not len(columns):
        columns = torch.zeros(1, dtype=torch.long, device=targets.device)
    return {**inputs, "logits_to_keep": columns, "shift_labels": targets[:, columns].contiguous()}


class _FrozenHead(torch.autograd.Function):  # type: ignore[misc]
    """Sum of the cross-entropies. The gradient of the hidden states is made on the way, while a chunk's logits exist."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        size: int,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        needed = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needed else None
        for start in range(0, len(hidden), size):
            part, wanted = hidden[start : start + size], targets[start : start + size, None]
            logits = functional.linear(part, weight, bias)
            kind = logits.dtype
            # In place throughout: one chunk costs its 16-bit logits and one float32 copy.
            probable = logits if kind == torch.float32 else logits.float()
            del logits
            right = probable.gather(1, wanted)
            top = probable.amax(dim=1, keepdim=True)
            probable.sub_(top).exp_()
            mass = probable.sum(dim=1, keepdim=True)
            total += (mass.log() + top - right).sum()
            if gradient is not None:
                probable.div_(mass).scatter_add_(1, wanted, torch.full_like(right, -1.0))
                gradient[start : start + size] = probable.to(kind) @ weight.to(kind)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None, None, None


def _sum_of_chunk(head: Any, part: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(head(part).float(), targets, reduction="sum")


def _plain_and_frozen(head: Any) -> bool:
    frozen = all(not p.requires_grad for p in head.parameters())
    return type(head) is torch.nn.Linear and frozen and head.weight.is_floating_point()


def _vocabulary(head: Any) -> int:
    return int(getattr(head, "out_features", 0) or head.weight.shape[0])


def _against_chunks(model: Any) -> str:
    """Why the head cannot be asked for the loss; "" where it can."""
    kind = str(getattr(model.config, "model_type", ""))
    if kind not in KNOWN:
        return f"model_type {kind!r} is not one whose head we know"
    if model.get_output_embeddings() is None:
        return f"{type(model).__name__} names no output embedding"
    text = model.config.get_text_config()
    after = [name for name in _AFTER_HEAD if getattr(text, name, None) not in (None, False, 1.0)]
    return f"{after[0]} acts on the logits after the head" if after else ""
