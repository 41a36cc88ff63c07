"""LoRA on a quantised model: prepared without doubling what stays in 16 bit, placed on the language model, and proved.

PEFT's own preparation turns every 16-bit parameter into float32; with a vocabulary of 150,000 that alone costs over
2 GiB. Ours freezes, and leaves every dtype as it is.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_core.errors import NotVerified
from qlora_doctor.errors import UsageError
from qlora_doctor.families import BY_TYPE, Family


def prepare(model: Any, *, checkpointing: bool = True) -> Any:
    """Readies a loaded model for adapters: all frozen, cache off, activation checkpointing on. Returns the model.

    Dtypes are left alone. Checkpointing is the non-reentrant kind, which needs no gradient on the inputs.
    """
    for parameter in model.parameters():
        parameter.requires_grad = False
    for config in _configs(model.config):
        if getattr(config, "use_cache", None):
            config.use_cache = False
    if checkpointing and getattr(model, "supports_gradient_checkpointing", True):
        how = {"use_reentrant": False}
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
    model.train()
    return model


def attach(
    model: Any,
    *,
    r: int = 16,
    alpha: int | None = None,
    dropout: float = 0.0,
    targets: str | Sequence[str] | None = None,
    train: str = "language",
    config: Any = None,
    **lora: Any,
) -> Any:
    """Puts new LoRA adapters on a loaded model and returns the PEFT model. Adapters are float32.

    Args:
        targets: names or one regular expression; None takes the linears of the parts that `train` names.
        train: `language` (default: not the vision tower, not the projector, not the head), `qformer`, `projector`,
            `vision`, or several joined by `+`.
        config: a PEFT configuration of your own, passed through as it is; the rest is then ignored.
        lora: goes to `peft.LoraConfig`.

    Raises:
        UsageError: the targets hit nothing, or the model has no such part.
    """
    import peft

    if config is not None:
        return _in_float32(_placed_or_refused(model, config))
    family = _family(model)
    chosen = targets if targets is not None else scope_targets(model, train)
    options: dict[str, Any] = {"r": r, "lora_alpha": 2 * r if alpha is None else alpha, "lora_dropout": dropout}
    if family is not None and family.task_type:
        options["task_type"] = _task_type(model, family)
    elif family is None:
        options["task_type"] = "CAUSAL_LM"
    config = peft.LoraConfig(target_modules=chosen if isinstance(chosen, str) else list(chosen), **{**options, **lora})
    return _in_float32(_placed_or_refused(model, config))


def scope_targets(model: Any, train: str) -> str:
    """The regular expression over module names that hits the linears of the parts that `train` names.

    Raises:
        UsageError: the model has no such part.
    """
    family = _family(model)
    if family is None:
        if train != "language":
            raise UsageError(f"train={train!r}: the parts of {type(model).__name__} are not known; give target_modules")
        return "all-linear"
    found = []
    for word in train.split("+"):
        if word == "language":
            found.append(family.lora_targets)
        elif word == "qformer" and family.qformer_targets:
            found.append(family.qformer_targets)
        else:
            title = {"vision": "vision tower", "projector": "projector"}.get(word, "Q-Former")
            # An adapter on one linear of a shared block would be named by several paths; names keep it to this part.
            names = [n for n, m in model.named_modules() if hasattr(m, "in_features") and _part(n, family) == title]
            if not names:
                raise UsageError(f"train={train!r}: {family.title} has no {title}")
            found += [re.escape(name) for name in names]
    return found[0] if len(found) == 1 else "|".join(f"(?:{one})" for one in found)


def scope_pattern(family: Family | None, train: str) -> str:
    """The same from the family alone, before there is a model: of the vision tower and projector all that lies in them.

    Raises:
        UsageError: the family has no such part.
    """
    if family is None:
        if train != "language":
            raise UsageError(f"train={train!r}: the parts of this architecture are not known; give target_modules")
        return "all-linear"
    layout, found = family.layout, []
    for word in train.split("+"):
        path = {"vision": layout.vision_tower, "projector": layout.projector}.get(word, "")
        one = {"language": family.lora_targets, "qformer": family.qformer_targets}.get(word) or (
            rf"{re.escape(path)}\..*" if path else ""
        )
        if not one:
            raise UsageError(f"train={train!r}: {family.title} has no {word}; it has {', '.join(_parts_of(family))}")
        found.append(one)
    return "|".join(found)


def _parts_of(family: Family) -> list[str]:
    layout = family.layout
    there = {"vision": layout.vision_tower, "projector": layout.projector, "qformer": layout.qformer}
    return ["language", *(word for word, path in there.items() if path)]


def _placed_or_refused(model: Any, config: Any) -> Any:
    import peft

    try:
        with warnings.catch_warnings():
            # PEFT itself sets this pattern for the packed experts of a MoE; it counts for parameters, and PEFT looks
            # for it among modules.
            warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys .*gate_up_proj", RuntimeWarning)
            return peft.get_peft_model(model, config)
    except ValueError as error:
        names = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if hasattr(m, "in_features")})
        wanted = getattr(config, "target_modules", None)
        raise UsageError(
            f"targets={wanted!r} hit nothing in this model ({error}); its linears are called {', '.join(names)}"
        ) from error


def load_adapter(model: Any, folder: str | Path, *, trainable: bool, **kwargs: Any) -> Any:
    """Puts a saved adapter on a loaded model. With `trainable` its weights go on learning, else they are frozen.

    Raises:
        NotVerified: it was made for another model: some of the adapter's weights found no place, or some places no weights.
    """
    import peft

    saved = _saved_keys(Path(folder))
    try:
        made = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, **kwargs)
    except (ValueError, RuntimeError) as error:
        text = str(error).strip().split("\n")[0][:300]
        raise NotVerified([f"the adapter {folder} does not fit this model: {text}"]) from error
    if saved is not None:
        held = {key.replace(".default", "") for key in made.state_dict() if "lora_" in key or "modules_to_save" in key}
        held = {key.replace(".modules_to_save", "") for key in held}
        # DoRA's magnitudes are modules in the model and bare tensors in the file.
        held = {key.removesuffix(".weight") if "lora_magnitude_vector" in key else key for key in held}
        lost, empty = sorted(saved - held), sorted(k for k in held - saved if "lora_" in k)
        if lost or empty:
            what = f"{len(lost)} of its weights have no place here ({lost[0]})" if lost else ""
            what = what or f"{len(empty)} places got no weights ({empty[0]})"
            raise NotVerified([f"the adapter {folder} was made for another model or module layout: {what}"])
    return _in_float32(made) if trainable else made


def placed(model: Any) -> dict[str, int]:
    """How many LoRA modules sit in each part: `language model`, `vision tower`, `projector`, `Q-Former`, `other`."""
    family = _family(model)
    counts: Counter[str] = Counter()
    for name, _ in model.named_modules():
        if re.search(r"\.lora_A\.[^.]+\Z", name):
            counts[_part(re.sub(r"^base_model\.model\.", "", name), family)] += 1
    return dict(counts)


def scope(model: Any) -> dict[str, tuple[int, int]]:
    """The LoRA scope of a model: for each part that has adapters, their tensors and their trainable parameters."""
    family = _family(model)
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = _part(re.sub(r"^base_model\.model\.", "", name), family)
            tensors, weights = counts.get(part, (0, 0))
            counts[part] = tensors + 1, weights + parameter.numel()
    return counts


def spare_cpu(model: Any) -> int:
    """Stops bitsandbytes from repacking 4-bit weights for AVX512-BF16 in eval mode; returns how many linears it would.

    A repacked weight has no gradient path, and a merge of it is silently wrong.
    """
    from qlora_core.linears import linears_4bit

    count = 0
    for module in linears_4bit(model).values():
        if module.weight.device.type == "cpu" and getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
            count += 1
    return count


def _part(name: str, family: Family | None) -> str:
    if family is None:
        return "other"
    for layout in (family.layout, family.old_layout):
        if layout is None:
            continue
        parts: Mapping[str, str] = {
            "Q-Former": layout.qformer,
            "projector": layout.projector,
            "vision tower": layout.vision_tower,
            "language model": layout.language_model,
        }
        for title, path in parts.items():
            if path and name.startswith(f"{path}."):
                return title
    return "other"


def _in_float32(model: Any) -> Any:
    """Adapters in float32: AdamW's epsilon is 0 in float16, which makes NaN at the second step."""
    import torch

    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16) and "lora_" in name:
            parameter.data = parameter.data.float()
    return model


def _task_type(model: Any, family: Family) -> str:
    return "SEQ_2_SEQ_LM" if getattr(model.config, "is_encoder_decoder", False) else family.task_type


def _saved_keys(folder: Path) -> set[str] | None:
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        return None
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return set(file.keys())


def _family(model: Any) -> Family | None:
    return BY_TYPE.get(str(getattr(model.config, "model_type", "")))


def _configs(config: Any) -> list[Any]:
    """A configuration and those of its parts."""
    inner = [getattr(config, name, None) for name in ("text_config", "vision_config", "qformer_config")]
    return [config, *(c for c in inner if c is not None)]
