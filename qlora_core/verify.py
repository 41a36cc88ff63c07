"""After the load: is this really the model that was asked for? No forward is run (`deep=True` adds one)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qlora_core.linears import bits_of, count, linears, scale_tensors, scales
from qlora_doctor.families import BY_TYPE, Family
from qlora_doctor.i18n import said

SMALL = 2**22
# Buffers that old checkpoints carry and today's classes compute anew.
KNOWN_UNEXPECTED = re.compile(r"(position_ids|rotary_emb\.inv_freq|masked_bias|attn\.bias)$")


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at and found. Bytes are those of the model's tensors; `tables` are bitsandbytes' lookup tables.

    `problems` is empty for a model that is what was asked for. `share` is the part of all weights that is quantised;
    `dtypes` the bytes of the parameters by dtype.
    """

    bits: int
    quantized: int
    kept: int
    parameters: int
    share: float
    bytes: int
    expected_bytes: int
    tables: int = 0
    sixteen_bit_bytes: int = 0
    dtypes: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    deep: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The figures, a line each."""
        held = ", ".join(said(f"{count:,} bytes in {name}") for name, count in self.dtypes.items())
        first = f"{self.kept} linears, none quantised; {self.parameters:,} weights"
        if self.bits < 16:
            first = (
                f"{self.quantized} linears in {self.bits}-bit, {self.kept} kept; {self.parameters:,} weights, "
                f"{self.share:.0%} quantised"
            )
        second = (
            f"{self.bytes:,} bytes ({self.expected_bytes:,} by the formula) and {self.tables:,} of tables; "
            f"in 16 bit {self.sixteen_bit_bytes:,}"
        )
        return [first, second, f"held as {held}", *self.deep, *(f"PROBLEM {p}" for p in self.problems)]

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            k: list(v) if isinstance(v, tuple) else dict(v) if isinstance(v, Mapping) else v for k, v in data.items()
        }


def verify(
    model: Any,
    *,
    bits: int | None = None,
    dtype: str | None = None,
    kept: Iterable[str] | None = None,
    loading_info: Mapping[str, Any] | None = None,
    deep: bool = False,
) -> Verification:
    """Looks at every parameter of a loaded model (with or without adapters) and says what it found.

    `bits`, `dtype` and `kept` (names as in `llm_int8_skip_modules`) say what it should be; left out, they are taken
    from the model's own configuration, and dtypes are not judged. `loading_info` is what
    `from_pretrained(..., output_loading_info=True)` gave. `deep=True` runs one forward and compares the gradients of
    some adapters with a dequantised reference. Nothing is raised: see `problems`.
    """
    config = model.config
    family = BY_TYPE.get(str(getattr(config, "model_type", "")))
    saved = getattr(config, "quantization_config", None)
    if bits is None:
        bits = 16 if saved is None else 4 if getattr(saved, "load_in_4bit", False) else 8
    if kept is None:
        kept = (getattr(saved, "llm_int8_skip_modules", None) or ["lm_head"]) if bits < 16 else []
    problems, warnings = _key_problems(loading_info or {}, family, str(getattr(config, "_name_or_path", "")))
    found = linears(model)
    stay = _stay(model, tuple(kept))
    may = _may_stay(model)
    problems += _linear_problems(found, stay, may, bits)
    plan = _dtype_plan(model, dtype, may)
    problems += _tensor_problems(model, plan)
    counts = count(model, found, plan)
    problems += _byte_problems(counts)
    share = counts["quantized_weights"] / max(1, counts["parameters"])
    big = _unquantizable(model) if bits < 16 else 0
    if big > 0.5 * counts["parameters"]:
        warnings.append(
            f"{big / counts['parameters']:.0%} of the weights are in fused expert tensors that bitsandbytes does not "
            f"quantise: they stay in 16 bit"
        )
    deep_lines: list[str] = []
    if deep:
        from qlora_core.deep import deep_check

        more, deep_lines = deep_check(model, family)
        problems += more
    return Verification(
        bits=bits,
        quantized=sum(bits_of(m) < 16 for m in found.values()),
        kept=sum(bits_of(m) == 16 for m in found.values()),
        parameters=counts["parameters"],
        share=share,
        bytes=counts["bytes"],
        expected_bytes=counts["expected"],
        tables=counts["tables"],
        sixteen_bit_bytes=2 * counts["parameters"],
        dtypes=_dtypes(model),
        problems=tuple(problems),
        warnings=tuple(warnings),
        deep=tuple(deep_lines),
    )


def _stay(model: Any, kept: tuple[str, ...]) -> re.Pattern[str]:
    """Matches the modules that must stay as they are: those named, and the output head."""
    inner = _inner(model)
    head = inner.get_output_embeddings()
    own = {name for name, module in inner.named_modules() if head is not None and module is head}
    return re.compile("|".join(rf"(?:.*\.)?(?:{name})(?:\..*)?\Z" for name in sorted({*kept, *own})) or r"(?!)")


def _may_stay(model: Any) -> re.Pattern[str]:
    """Matches what the classes keep in float32 by themselves (T5's `wo`); versions differ in whether they do."""
    names: set[str] = set()
    for module in _inner(model).modules():
        for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
            names |= set(getattr(module, attribute, None) or ())
    return re.compile("|".join(sorted(names)) or r"(?!)")


def _dtype_plan(model: Any, dtype: str | None, may: re.Pattern[str]) -> dict[str, str]:
    """The dtype that each unquantised floating parameter of the base model must have; {} where none is planned."""
    if dtype is None:
        return {}
    return {
        name: dtype
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()
        and "lora_" not in name
        and type(parameter).__name__ != "Params4bit"
        and not (may.search(name) and str(parameter.dtype) == "torch.float32")
    }


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _linear_problems(found: Mapping[str, Any], stay: re.Pattern[str], may: re.Pattern[str], bits: int) -> list[str]:
    problems = []
    for name, module in found.items():
        has, should = bits_of(module), 16 if bits == 16 or stay.match(name) else bits
        if has != should and not (has == 16 and may.search(name)):
            problems.append(f"{name} is {has}-bit and should be {should}-bit")
        elif has == 4 and (why := _broken_4bit(module)):
            problems.append(f"{name} {why}")
        elif has == 8 and (str(module.weight.dtype) != "torch.int8" or scales(module) is None):
            problems.append(f"{name} is not really 8-bit: {module.weight.dtype}, no scales")
    if bits < 16 and not any(bits_of(m) == bits for m in found.values()):
        problems.append(f"no linear at all is {bits}-bit")
    return _shortened(problems)


def _broken_4bit(module: Any) -> str:
    weight = module.weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        return f"was never quantised: no quantisation state, data in {weight.dtype}"
    if weight.dtype.is_floating_point and weight.numel() == module.in_features * module.out_features:
        return f"is not packed: its data are {weight.dtype}"
    if tuple(state.shape) not in ((module.out_features, module.in_features), (module.in_features, module.out_features)):
        return f"has a quantisation state for {tuple(state.shape)}"
    return ""


def _key_problems(info: Mapping[str, Any], family: Family | None, name: str) -> tuple[list[str], list[str]]:
    """What the checkpoint lacked or had too much of; a random layer is always a problem."""
    from qlora_core.checkpoint import original_llava

    missing = sorted(info.get("missing_keys", ()))
    unexpected = sorted(k for k in info.get("unexpected_keys", ()) if not KNOWN_UNEXPECTED.search(k))
    mismatched = sorted(str(k[0]) if isinstance(k, tuple) else str(k) for k in info.get("mismatched_keys", ()))
    problems: list[str] = []
    warnings: list[str] = []
    if any("mm_projector" in key for key in unexpected):
        key = next(key for key in unexpected if "mm_projector" in key)
        return [original_llava(name or "the checkpoint", f"it holds {key}")], warnings
    if missing:
        problems.append(f"{len(missing)} weights are random, for the checkpoint does not hold them: {_some(missing)}")
    if mismatched:
        problems.append(f"{len(mismatched)} weights have another shape in the checkpoint: {_some(mismatched)}")
    if unexpected:
        text = f"{len(unexpected)} weights of the checkpoint have no place in the model: {_some(unexpected)}"
        (problems if family is not None else warnings).append(text)
    problems += [str(m) for m in info.get("error_msgs", ())]
    return problems, warnings


def _tensor_problems(model: Any, plan: Mapping[str, str]) -> list[str]:
    import torch

    problems: list[str] = []
    names, flags = [], []
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, module in linears(model).items():
        if bits_of(module) == 4 and module.weight.quant_state is not None:
            tensors += [(f"{name}.scales", t) for t in scale_tensors(module.weight.quant_state)]
    for name, tensor in tensors:
        if tensor.is_meta:
            problems.append(f"{name} was never loaded: it is on the meta device")
        elif getattr(tensor, "quant_state", None) is not None:
            # Packed four bits, which any quant_storage may hold: as numbers of that dtype they mean nothing.
            continue
        elif tensor.is_floating_point() and tensor.numel() <= SMALL:
            names.append(name)
            flags.append(torch.isfinite(tensor).all())
    bad = _false(names, flags)
    problems += [f"{name} holds NaN or infinity" for name in bad]
    for name, tensor in model.named_parameters():
        has = str(tensor.dtype).removeprefix("torch.")
        if plan.get(name, has) != has:
            problems.append(f"{name} is {has} and should be {plan[name]}")
    return _shortened(problems)


def _false(names: list[str], flags: list[Any]) -> list[str]:
    """The names whose flag is False. One transfer for each device, not one for each tensor."""
    import torch

    by_device: dict[Any, list[int]] = {}
    for index, flag in enumerate(flags):
        by_device.setdefault(flag.device, []).append(index)
    bad = []
    for indices in by_device.values():
        good = torch.stack([flags[i] for i in indices]).tolist()
        bad += [i for i, fine in zip(indices, good, strict=True) if not fine]
    return [names[i] for i in sorted(bad)]


def _byte_problems(counts: Mapping[str, int]) -> list[str]:
    # bitsandbytes' AVX512 layout has other sizes; a model that ran an eval forward is no longer as it was loaded.
    if counts["repacked"] or counts["bytes"] == counts["expected"]:
        return []
    return [f"the weights take {counts['bytes']:,} bytes and should take {counts['expected']:,}"]


def _unquantizable(model: Any) -> int:
    """Weights in fused expert tensors: parameters of three dimensions that belong to no linear or convolution."""
    return sum(p.numel() for n, p in model.named_parameters() if p.dim() == 3 and "expert" in n)


def _dtypes(model: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for parameter in model.parameters():
        word = str(parameter.dtype).removeprefix("torch.")
        counts[word] = counts.get(word, 0) + parameter.nbytes
    return dict(sorted(counts.items()))


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _shortened(problems: list[str], most: int = 8) -> list[str]:
    return problems if len(problems) <= most else [*problems[:most], f"and {len(problems) - most} more like these"]
