"""`load_quantized`: request -> gate -> load plan -> from_pretrained -> verify, with an account of every step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qlora_core import gate as gates
from qlora_core import hardware, steps
from qlora_core.checkpoint import (
    Checkpoint,
    adapter_base,
    check_adapter,
    check_keys,
    is_local,
    original_llava,
    read_folder,
)
from qlora_core.errors import LoadBlocked, ModelProblem, NotVerified
from qlora_core.plan import Plan, dtype_keyword, make_plan, settle_checkpoint
from qlora_core.report import Change, LoadReport
from qlora_core.verify import verify
from qlora_doctor.errors import UsageError
from qlora_doctor.families import BY_TYPE, Family, family_of, known_model

BITS = (4, 8, 16)
Gate = Literal["fix", "report", "off"]

__all__ = ["LoadBlocked", "Loaded", "load_quantized"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load gives. `model, processor = load_quantized(...)` works too; `report` says all that was done."""

    model: Any
    processor: Any
    report: LoadReport

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.processor))


def load_quantized(
    model: str | os.PathLike[str],
    *,
    bits: int = 4,
    dtype: Any = None,
    for_training: bool = False,
    adapter: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    device: Any = None,
    quantize_vision: bool = False,
    attn_implementation: str | None = None,
    gate: Gate = "fix",
    fixes: Mapping[str, bool] | None = None,
    strict: bool = False,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **from_pretrained_kwargs: Any,
) -> Loaded:
    """Loads LLaVA, Qwen, Qwen-VL, InstructBLIP or BLIP-2 in 4-bit (NF4, double quantisation), checked before and after.

    The doctor's checks run first, without torch; what they can fix in memory is fixed and listed, what they cannot
    raises LoadBlocked. After the load every linear, key, dtype and byte is verified.

    Args:
        model: a model folder, a Hub name, or an adapter folder (its base is loaded under it).
        bits: 4, 8, or 16 (not quantised).
        dtype: of the parts that stay unquantised and of the arithmetic; None chooses what the card computes in.
        for_training: freezes, switches the cache off and activation checkpointing on, puts all on one device.
        adapter: a saved LoRA adapter to put on the model.
        revision: branch, tag or commit of a Hub repository.
        device: "cuda:1", 1, "cpu"; None takes this process's GPU, else the CPU.
        quantize_vision: quantises the vision tower too, for the smallest cards.
        attn_implementation: as in transformers.
        gate: "fix" changes and blocks, "report" only lists, "off" asks no check.
        fixes: `{"QD101": False}` or `{"pad-token": False}` switches one check or one step of the loader off.
        strict: a check that crashed or could not tell blocks the load as well.
        endpoint: the Hub to download from.
        cache_dir: where downloads are kept.
        from_pretrained_kwargs: passed on to transformers.

    Raises:
        UsageError: an argument or a model folder that cannot be used, before anything long runs.
        LoadBlocked: a check found that the load cannot work.
        NotVerified: what was loaded is not what was asked for.
    """
    name = os.fspath(model)
    report = LoadReport(name, bits=bits)
    off, codes_off = _judge_arguments(name, bits, gate, fixes)
    hardware.dtype_word(dtype)
    kwargs = dict(from_pretrained_kwargs)
    kwargs |= {k: v for k, v in (("revision", revision), ("attn_implementation", attn_implementation)) if v is not None}
    with report.phase("look"):
        name, adapter = _model_or_adapter(name, adapter, report, off)
        checkpoint = read_folder(name, Path(name).expanduser()) if is_local(name) else None
        plan = make_plan(
            name,
            bits,
            dtype,
            checkpoint.family if checkpoint else _family_of_name(name),
            kwargs,
            report,
            quantize_vision=quantize_vision,
            for_training=for_training,
        )
        if checkpoint is not None:
            settle_checkpoint(plan, checkpoint)
    with report.phase("gate"):
        if gate == "off":
            plan.dtype_keyword = dtype_keyword(None)
        else:
            endpoint = _through_gate(plan, checkpoint, report, gate, strict, codes_off, device) or endpoint
        if plan.name != name:
            checkpoint = read_folder(plan.name, Path(plan.name).expanduser()) if is_local(plan.name) else None
            if checkpoint is not None:
                settle_checkpoint(plan, checkpoint)
        if checkpoint is None:
            _refuse_by_name(plan.name)
    if checkpoint is None:
        with report.phase("download"):
            checkpoint = _fetch(name, plan, endpoint, cache_dir)
    with report.phase("look"):
        check_keys(checkpoint)
    with report.phase("import"):
        steps.import_stack(bits)
    where = hardware.choose_device(device)
    chosen_dtype = steps.settle_dtype(plan, checkpoint, where, report)
    device_map = steps.settle_device_map(plan, where, device, report, off)
    steps.settle_remote_code(plan, checkpoint, report, off)
    steps.enough_memory(checkpoint, plan, where, chosen_dtype)
    with report.phase("processor"):
        config = steps.read_config(plan, checkpoint)
        processor = steps.make_processor(checkpoint, config, plan, report, off)
    with report.phase("weights"):
        loaded, info = steps.load_weights(plan, checkpoint, config, plan.final(chosen_dtype, device_map))
    steps.spare_cpu(loaded, report, off)
    with report.phase("verify"):
        kept = plan.kept
        report.verification = verify(loaded, bits=bits, dtype=chosen_dtype, kept=kept, loading_info=info)
        report.warnings += report.verification.warnings
        if report.verification.problems:
            raise NotVerified(report.verification.problems)
    steps.set_pad(loaded, processor, report, off)
    if for_training:
        steps.prepare(loaded, report, off)
    else:
        loaded.eval()
    if adapter is not None:
        from qlora_core.adapters import load_adapter

        with report.phase("adapter"):
            loaded = load_adapter(loaded, os.fspath(adapter), trainable=for_training)
    return Loaded(loaded, processor, report)


def _judge_arguments(
    name: str, bits: int, gate: str, fixes: Mapping[str, bool] | None
) -> tuple[frozenset[str], tuple[str, ...]]:
    if not name:
        raise UsageError("model is empty; give a model folder or a Hub name (owner/name)")
    if bits not in BITS or isinstance(bits, bool):
        raise UsageError(f"bits={bits!r}: 4, 8, or 16 (not quantised)")
    if gate not in ("fix", "report", "off"):
        raise UsageError(f'gate={gate!r}: "fix", "report" or "off"')
    return gates.switched_off(fixes, steps.NAMES)


def _model_or_adapter(
    name: str, adapter: str | os.PathLike[str] | None, report: LoadReport, off: frozenset[str]
) -> tuple[str, str | os.PathLike[str] | None]:
    """The model to load and the adapter to put on it, where the model's name may be an adapter's."""
    if adapter is not None:
        check_adapter(os.fspath(adapter))
    folder = Path(name).expanduser()
    base = adapter_base(folder) if folder.is_dir() else None
    if base is None:
        return name, adapter
    if "adapter-base" in off:
        raise ModelProblem(f"{name} is an adapter of {base}: load_quantized({base!r}, adapter={name!r})")
    if adapter is not None:
        raise UsageError(f"model={name!r} is an adapter, and adapter= names another; give the base model as model")
    if not Path(base).is_absolute() and (folder / base).is_dir():
        base = str(folder / base)
    report.changes.append(Change("adapter-base", "model", name, base, "it is an adapter; its base is loaded under it"))
    return base, name


def _family_of_name(name: str) -> Family | None:
    known = known_model(name)
    return family_of(name) or (BY_TYPE.get(known.model_type) if known else None)


def _refuse_by_name(name: str) -> None:
    known = known_model(name)
    if known is not None and known.layout == "original-llava":
        raise ModelProblem(original_llava(name, "known by its name"))


def _through_gate(
    plan: Plan,
    checkpoint: Checkpoint | None,
    report: LoadReport,
    mode: Gate,
    strict: bool,
    codes_off: tuple[str, ...],
    device: Any,
) -> str | None:
    """Runs the checks on the plan and takes their changes over; the endpoint that they ask for, if any."""
    checks, broken = gates.checks_for_loads(codes_off)
    text = str(device) if device is not None else None
    first = plan.request(plan.dtype or "bfloat16", {"": 0})
    facts = gates.gather_facts(first, checks, offline=checkpoint is not None)
    plan.dtype_keyword = dtype_keyword(facts)
    expected = plan.dtype or hardware.expected_dtype(facts, plan.family, text)
    device_map = steps.expected_device_map(plan, facts, text)
    request = plan.request(expected, device_map)
    others = {bits: plan.request(expected, device_map, bits) for bits in BITS if bits != plan.bits}
    sizes = {bits: checkpoint.bytes(bits, plan.kept or ()) if checkpoint else None for bits in others}
    passed = gates.gate(
        request, facts, checks, broken, fix=mode == "fix", strict=strict, alternatives=others, sizes=sizes
    )
    report.changes += passed.changes
    report.warnings += passed.warnings
    plan.take_back(request, passed.request)
    gates.set_environment(passed.environ)
    return passed.endpoint


def _fetch(name: str, plan: Plan, endpoint: str | None, cache_dir: Any) -> Checkpoint:
    """Downloads what the plan names; `name` is what the user asked for, which a check may have replaced."""
    from qlora_core.fetch import fetch

    kwargs = plan.kwargs
    try:
        folder = fetch(
            plan.name,
            revision=kwargs.get("revision"),
            token=kwargs.get("token"),
            endpoint=endpoint,
            cache_dir=cache_dir,
            local_files_only=bool(kwargs.get("local_files_only")),
        )
        checkpoint = read_folder(plan.name, folder)
        settle_checkpoint(plan, checkpoint)
    except UsageError as error:
        if plan.name == name:
            raise
        raise type(error)(
            f"{error}. ({plan.name} takes the place of {name}, which cannot be loaded as it is)"
        ) from error
    return checkpoint
