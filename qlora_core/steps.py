"""The loader's own steps, each of which can be switched off by its name in `fixes=`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_core import hardware
from qlora_core.checkpoint import Checkpoint
from qlora_core.errors import ModelProblem, show_size
from qlora_core.plan import Plan, settle_checkpoint
from qlora_core.report import Change, LoadReport
from qlora_doctor.errors import UsageError
from qlora_doctor.facts import Facts
from qlora_doctor.source import Unresolved, Value

NAMES = (
    "adapter-base",
    "avx512-repack",
    "convert-layout",
    "device-map",
    "native-class",
    "pad-token",
    "processor",
    "training-settings",
)
# What a check finds and a later step settles: the gate neither blocks nor warns, and what the step did not settle is
# said at the end. The Hub (QD202), its storage (QD207) and its files (QD215) that do not answer are here because the
# download tries again, asks the mirrors, and says more where it fails.
SETTLES = {
    "QD202": "download",
    "QD207": "download",
    "QD215": "download",
    "QD321": "convert-layout",
    "QD333": "processor",
}
AUTO_CLASSES = (
    "AutoModelForImageTextToText",
    "AutoModelForVision2Seq",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
)


def import_stack(bits: int) -> None:
    """Imports what a load needs, or says how to install it."""
    import importlib

    for name in ("torch", "transformers", *(("accelerate", "bitsandbytes") if bits < 16 else ())):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise UsageError(
                f"{name} is not installed; a load needs it: pip install 'qlora-doctor[train]' "
                "(`qlora-doctor check` says which versions fit together)"
            ) from error


def settles(off: frozenset[str]) -> dict[str, str]:
    """The table for the gate, without the steps that are switched off."""
    return {code: step for code, step in SETTLES.items() if step not in off}


def say_what_is_left(left: Sequence[tuple[str, str]], report: LoadReport) -> None:
    """Turns what the gate left to a step into a warning, where that step had nothing to report."""
    done = {change.code for change in report.changes} | {"download"}
    report.warnings += [text for step, text in left if step not in done]


def convert_layout(
    checkpoint: Checkpoint, plan: Plan, report: LoadReport, endpoint: str | None, cache_dir: Any
) -> Checkpoint:
    """A checkpoint in LLaVA's own layout, converted into the doctor's cache folder; the next load finds it there."""
    import hashlib

    from qlora_core.checkpoint import original_llava, read_folder
    from qlora_core.convert import convert
    from qlora_doctor.gather.cache import folder as cache_folder

    source = checkpoint.folder.resolve()
    stamp = [f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in sorted(source.iterdir()) if p.is_file()]
    key = hashlib.sha256("\n".join([str(source), *stamp]).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    out = Path(cache_folder()) / "converted" / f"{checkpoint.name.strip('/').replace('/', '--')[-60:]}-{key}"
    if not (out / "config.json").is_file():
        half = out.with_name(f"{out.name}.{os.getpid()}")
        shutil.rmtree(half, ignore_errors=True)
        try:
            convert(source, half, endpoint=endpoint, cache_dir=cache_dir)
        except ModelProblem as error:
            text = original_llava(checkpoint.name, checkpoint.original)
            raise ModelProblem(f"{text}. Converting it here failed: {error}") from error
        os.replace(half, out)
    why = f"original LLaVA layout ({checkpoint.original}): the weights were renamed for transformers, {out} keeps them"
    report.changes.append(Change("convert-layout", "model", checkpoint.name, str(out), why))
    converted = read_folder(checkpoint.name, out)
    settle_checkpoint(plan, converted)
    return converted


def settle_dtype(plan: Plan, checkpoint: Checkpoint, device: Any, report: LoadReport) -> str:
    """The dtype of the load, and the defaults of the report."""
    text = checkpoint.config.get("text_config")
    text_type = str(text.get("model_type", "")) if isinstance(text, dict) else ""
    chosen = plan.dtype
    if chosen is None:
        chosen, why = hardware.choose_dtype(device, plan.family, text_type)
        report.defaults.append(Change("default", "dtype", "not given", chosen, why))
    if plan.bits == 4 and not plan.prequantized and not plan.quantization:
        report.defaults.append(
            Change("default", "quantisation", "not given", "NF4, double", f"computes in {chosen}; 4.13 bits a weight")
        )
    if plan.bits < 16 and plan.family and plan.family.vision and "llm_int8_skip_modules" not in plan.quantization:
        names = [n for n in (plan.kept or ()) if not n.startswith(".*") and "." not in n]
        why = "small, and 4-bit hurts them most"
        report.defaults.append(Change("default", "kept in 16 bit", "not given", ", ".join(names), why))
    report.family = plan.family.title if plan.family else ""
    report.dtype, report.device = chosen, str(device)
    if plan.family is None:
        report.warnings.append(
            f"model_type {checkpoint.model_type!r} is not one that we know: it is loaded through its auto class, and "
            "which parts stay in 16 bit is left to transformers"
        )
    return chosen


def expected_device_map(plan: Plan, facts: Facts, device: str | None) -> Value:
    """The device map as the checks should see it, before torch is there to ask."""
    from qlora_core.values import to_value
    from qlora_doctor.facts import Unknown

    given = plan.kwargs.get("device_map")
    if given is not None:
        value = to_value(given)
        return Unresolved("it names devices by objects") if isinstance(value, Unresolved) else value
    if device is not None:
        return {"": device}
    gpus = facts.state("gpus")
    return {"": hardware.local_rank() if not isinstance(gpus, Unknown) and gpus else "cpu"}


def settle_device_map(plan: Plan, where: Any, device: Any, report: LoadReport, off: frozenset[str]) -> Any:
    """One device for training and for several processes; otherwise what the user gave, else one device."""
    import torch

    one = {"": where.index if where.type == "cuda" else str(where)}
    given = plan.kwargs.pop("device_map", None)
    together = plan.for_training or hardware.distributed()
    if given is None:
        if device is None and not together and torch.cuda.device_count() > 1:
            return "auto"
        return one
    spread = not isinstance(given, dict) or len(set(map(str, given.values()))) > 1
    if together and spread and "device-map" not in off:
        why = "training needs the whole model on this process's device"
        report.changes.append(Change("device-map", "device_map", str(given), str(one), why))
        return one
    return given


def settle_remote_code(plan: Plan, checkpoint: Checkpoint, report: LoadReport, off: frozenset[str]) -> None:
    """Takes trust_remote_code away where transformers has the class itself: the repository's code would win over it."""
    if plan.kwargs.get("trust_remote_code") and checkpoint.native and "native-class" not in off:
        why = f"transformers has {checkpoint.model_type} itself, and code of the repository would replace it"
        report.changes.append(Change("native-class", "trust_remote_code", "True", "not given", why))
        del plan.kwargs["trust_remote_code"]


def enough_memory(checkpoint: Checkpoint, plan: Plan, where: Any, dtype: str) -> None:
    """Refuses a load whose weights alone are larger than what is free on the device.

    Raises:
        UsageError: with the figures, and the bits that would fit.
    """
    free = hardware.free_memory(where)
    need = checkpoint.bytes(plan.bits, plan.kept or (), dtype)
    if free is None or need is None or need <= free:
        return
    other = {bits: checkpoint.bytes(bits, plan.kept or (), dtype) or 0 for bits in (8, 4) if bits < plan.bits}
    fits = [f"bits={bits} takes {show_size(size)}" for bits, size in other.items() if size <= free]
    way = "; ".join(fits) if fits else "take a smaller model, or free memory on the device"
    raise UsageError(
        f"{checkpoint.name} in {plan.bits}-bit takes about {show_size(need)} and {where} has "
        f"{show_size(free)} free: {way}"
    )


def read_config(plan: Plan, checkpoint: Checkpoint) -> Any:
    """The model's configuration object.

    Raises:
        ModelProblem: the installed transformers does not know the architecture.
    """
    import transformers

    trust = bool(plan.kwargs.get("trust_remote_code"))
    try:
        return transformers.AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=trust)
    except (ValueError, KeyError) as error:
        if checkpoint.config.get("auto_map") and not trust:
            raise ModelProblem(
                f"{checkpoint.name} runs only with Python code from its repository. Read that code; if you trust it, "
                "pass trust_remote_code=True. It is never switched on for you"
            ) from error
        known = plan.family.minimum if plan.family else ""
        need = f"; transformers {known} was the first to know it" if known else ""
        raise ModelProblem(
            f"transformers {transformers.__version__} cannot read the configuration of {checkpoint.name} "
            f"(model_type {checkpoint.model_type!r}){need}: {str(error).splitlines()[0]}"
        ) from error


def make_processor(checkpoint: Checkpoint, config: Any, plan: Plan, report: LoadReport, off: frozenset[str]) -> Any:
    """The processor, with a report of how it was made where it was not simply read."""
    from qlora_core.processor import load_processor

    extra = {"trust_remote_code": True} if plan.kwargs.get("trust_remote_code") else {}
    built = load_processor(checkpoint, config, rebuild="processor" not in off, **extra)
    if built.why:
        report.changes.append(Change("processor", "processor", "AutoProcessor", built.source, built.why))
    report.warnings += built.warnings
    return built.processor


def load_weights(plan: Plan, checkpoint: Checkpoint, config: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """from_pretrained with all that was settled: the model, and which keys were missing or left over."""
    cls = _model_class(plan, config)
    loaded, info = cls.from_pretrained(checkpoint.folder, output_loading_info=True, **kwargs)
    return loaded, dict(info)


def _model_class(plan: Plan, config: Any) -> Any:
    import transformers

    if plan.family and not plan.kwargs.get("trust_remote_code"):
        return getattr(transformers, plan.class_name)
    for name in AUTO_CLASSES:
        cls = getattr(transformers, name, None)
        if cls is not None and type(config) in cls._model_mapping:
            return cls
    if plan.kwargs.get("trust_remote_code"):
        return transformers.AutoModelForCausalLM
    raise ModelProblem(
        f"transformers {transformers.__version__} has no class that generates text with {type(config).__name__}"
    )


def spare_cpu(model: Any, report: LoadReport, off: frozenset[str]) -> None:
    """See `adapters.spare_cpu`: reported only on CPUs where bitsandbytes would repack."""
    if "avx512-repack" in off:
        return
    from qlora_core.adapters import spare_cpu as spare

    count = spare(model)
    if count:
        why = "an eval forward would repack the weights: no gradient afterwards, and a merge silently wrong; "
        why += "generates slower, so switch this step off where nothing is trained or merged"
        report.changes.append(Change("avx512-repack", f"{count} linears", "repack in eval mode", "do not", why))


def set_pad(model: Any, processor: Any, report: LoadReport, off: frozenset[str]) -> None:
    """A pad token that is not eos, where the vocabulary has one; the model's configuration is told."""
    if "pad-token" in off:
        return
    from qlora_core.processor import choose_pad

    words = getattr(processor, "tokenizer", processor)
    if not hasattr(words, "pad_token"):
        return
    chosen = choose_pad(words, model.get_input_embeddings().weight.shape[0])
    if chosen is not None:
        token, why = chosen
        report.changes.append(Change("pad-token", "tokenizer.pad_token", repr(words.pad_token), repr(token), why))
        words.pad_token = token
    elif words.pad_token is None or words.pad_token == words.eos_token:
        report.warnings.append(
            "the tokenizer has no pad token but eos, and no other that fits the embedding: mask padding by the "
            "attention mask, not by the token"
        )
        return
    for holder in (model.config, getattr(model, "generation_config", None)):
        old = getattr(holder, "pad_token_id", None)
        if holder is not None and old != words.pad_token_id and (chosen is not None or old is None):
            holder.pad_token_id = words.pad_token_id


def prepare(model: Any, report: LoadReport, off: frozenset[str]) -> None:
    """Freezes the model for adapters; see `adapters.prepare`."""
    from qlora_core.adapters import prepare as ready

    if "training-settings" in off:
        for parameter in model.parameters():
            parameter.requires_grad = False
        model.train()
        return
    cached = bool(getattr(model.config.get_text_config(), "use_cache", False))
    ready(model)
    if cached:
        why = "a cache is of no use in training and excludes checkpointing"
        report.changes.append(Change("training-settings", "config.use_cache", "True", "False", why))
    why = "keeps one layer's activations instead of all"
    report.changes.append(Change("training-settings", "activation checkpointing", "off", "on, non-reentrant", why))
