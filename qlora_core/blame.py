"""Where a NaN came from: the first module whose output is not finite, and what usually does that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

HALF_MAX = 65504


@dataclass(frozen=True, slots=True)
class Blame:
    """`module` is "" where every module's output is finite."""

    module: str = ""
    dtype: str = ""
    cause: str = ""
    remedy: str = ""


class _Found(Exception):
    def __init__(self, blame: Blame) -> None:
        self.blame = blame


def spoiled(model: Any) -> list[str]:
    """The trainable parameters that are not finite."""
    return [n for n, p in model.named_parameters() if p.requires_grad and not bool(torch.isfinite(p).all())]


def blame(model: Any, batches: Sequence[Mapping[str, Any]], kind: str, losses: Sequence[float] = ()) -> Blame:
    """Why the loss (`kind` "loss") or the gradient ("gradient") is not finite.

    Args:
        model: as it is, before the optimizer step.
        batches: what it was given; each is run once more, without gradients, up to the first bad module.
        losses: the finite losses before.
    """
    dtype = _compute_dtype(model)
    for name, value in (pair for batch in batches for pair in batch.items()):
        if torch.is_tensor(value) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return Blame(
                "", dtype, f"the batch's {name} are not finite", "look at the named rows: a broken file or image"
            )
    if bad := spoiled(model):
        words = f"{len(bad)} tensors of the adapter are not finite since an earlier step (first {bad[0]})"
        return Blame(bad[0].rpartition(".")[0], dtype, words, "go back to an older checkpoint")
    for batch in batches:
        if (found := first_bad_module(model, batch)) is not None:
            return found
    if kind == "gradient":
        return _backward(model, dtype)
    if len(losses) > 3 and losses[-1] > 3 * min(losses):
        return _diverged(dtype, losses)
    words = (
        "every module's output is finite: the loss function itself made it"
        if batches
        else "not known: no batch was given"
    )
    return Blame("", dtype, words, "look at the loss function, or at what scales the loss")


def first_bad_module(model: Any, batch: Mapping[str, Any]) -> Blame | None:
    """Runs the batch with a hook on every module; None where all outputs are finite."""
    from qlora_core.loss import unwrap

    bare = unwrap(model)
    head = bare.get_output_embeddings() if hasattr(bare, "get_output_embeddings") else None
    hooks = [m.register_forward_hook(_watcher(name, m)) for name, m in model.named_modules() if name]
    if head is not None:
        hooks.append(head.register_forward_pre_hook(_before_head(head)))
    try:
        # Dropout must not move the run's own random numbers on, should the caller go on.
        with torch.random.fork_rng(), torch.no_grad():
            model(**batch)
    except _Found as found:
        return found.blame if found.blame.module else None
    except (RuntimeError, ValueError, TypeError):
        return None
    finally:
        for hook in hooks:
            hook.remove()
    return None


def _watcher(name: str, module: Any) -> Any:
    def watch(_: Any, inputs: Any, output: Any) -> None:
        if all(_finite(value) for value in _tensors(output)):
            return
        kind = next((str(v.dtype).removeprefix("torch.") for v in _tensors(output)), "")
        raise _Found(Blame(name.removeprefix("base_model.model."), kind, *_why(module, inputs, kind)))

    return watch


def _before_head(head: Any) -> Any:
    def look(_: Any, inputs: Any) -> None:
        # The logits of every position are the largest tensor there is: not made only to be looked at.
        if all(_finite(v) for v in _tensors(inputs)) and all(_finite(p) for p in head.parameters()):
            raise _Found(Blame())

    return look


def _why(module: Any, inputs: Any, kind: str) -> tuple[str, str]:
    bad = [n for n, p in module.named_parameters() if not (_finite(p) and _scales_finite(p))]
    if bad:
        return (
            f"the weights of this module are not finite ({bad[0]})",
            "the checkpoint is damaged, or was quantised from weights that were never loaded: load it again and verify it",
        )
    if any(not _finite(v) for v in _tensors(inputs)):
        return "what this module is given is not finite", "look at the inputs of the model in the named rows"
    size = max((float(v.detach().abs().max()) for v in _tensors(inputs) if v.numel()), default=0.0)
    if kind == "float16":
        return (
            f"float16 overflow: nothing above {HALF_MAX} can be held, and the inputs reach {size:.3g}",
            'compute in bfloat16 where the GPU can, else in float32: load_quantized(..., dtype="float32")',
        )
    return (
        f"finite weights and inputs (up to {size:.3g}) gave an output that is not",
        "a division by 0 or a mask that hides every position: look at the attention mask of the named rows",
    )


def _backward(model: Any, dtype: str) -> Blame:
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)]
    whole = len(bad) == sum(p.grad is not None for p in model.parameters())
    # Backward reaches the last layer first, so the last bad name is nearest to where it began. After a clip by a NaN
    # norm all are bad, and none is named.
    name = bad[-1].rpartition(".")[0].removeprefix("base_model.model.") if bad and not whole else ""
    if dtype == "float16":
        words, way = "float16 overflow in the backward pass", "fp16=True (a gradient scaler), bfloat16 or float32"
    else:
        words, way = "the forward pass is finite and the backward pass is not", "a lower learning rate, or float32"
    return Blame(name, dtype, f"{words}; {len(bad)} gradients are not finite", way)


def _diverged(dtype: str, losses: Sequence[float]) -> Blame:
    words = f"the run diverged: the loss rose from {min(losses):.4g} to {losses[-1]:.4g} before"
    return Blame("", dtype, words, "a learning rate 3 to 10 times lower, and warm-up")


def _compute_dtype(model: Any) -> str:
    config = getattr(model.config, "quantization_config", None)
    kind = getattr(config, "bnb_4bit_compute_dtype", None) or getattr(model, "dtype", "")
    return str(kind).removeprefix("torch.")


def _scales_finite(parameter: Any) -> bool:
    """A 4-bit weight holds its NaN in the scales of its blocks."""
    state = getattr(parameter, "quant_state", None)
    parts = [getattr(state, "absmax", None), getattr(state, "offset", None)]
    parts.append(getattr(getattr(state, "state2", None), "absmax", None))
    return all(_finite(part) for part in parts if torch.is_tensor(part))


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
