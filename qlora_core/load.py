"""`load_quantized`: request -> gate -> load plan -> from_pretrained -> verify, with an account of every step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
from qlora_core.fetch import PREFIX
from qlora_core.plan import Plan, dtype_keyword, make_plan, settle_checkpoint
from qlora_core.report import Change, LoadReport
from qlora_core.verify import verify
from qlora_doctor.errors import UsageError
from qlora_doctor.facts import Unknown
from qlora_doctor.families import BY_TYPE, Family, family_of, known_model
from qlora_doctor.logs.explaining import explain_errors

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


@explain_errors()
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
        model: a model folder, a Hub name, `modelscope:OWNER/NAME`, or an adapter folder (its base is loaded under it).
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

    An exception of transformers or bitsandbytes carries a note with its cause, where that is known.
    """
    name = os.fspath(model)
    report = LoadReport(name, bits=bits)
    shelf = PREFIX if name.startswith(PREFIX) else ""
    name = name.removeprefix(shelf)
    off, codes_off = _judge_arguments(name, bits, gate, fixes)
    hardware.dtype_word(dtype)
    kwargs = dict(from_pretrained_kwargs)
    kwargs |= {k: v for k, v in (("revision", revision), ("attn_implementation", attn_implementation)) if v is not None}
    with report.phase("look"):
        if not shelf:
            name, adapter = _model_or_adapter(name, adapter, report, off)
        converts = "convert-layout" not in off
        name = (_original_in_cache(name, revision, cache_dir) if converts else "") or name
        checkpoint = _read(name, converts) if is_local(name) else None
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
    left: tuple[tuple[str, str], ...] = ()
    local = checkpoint is not None or bool(shelf)
    ask = GateQuestion(gate, strict, codes_off, device, local, endpoint, steps.settles(off))
    with report.phase("gate"):
        if gate == "off":
            plan.dtype_keyword = dtype_keyword(None)
        else:
            passed = _through_gate(plan, checkpoint, report, ask)
            endpoint, left = passed.endpoint or endpoint, passed.left
        if plan.name != name:
            checkpoint = _read(plan.name, converts) if is_local(plan.name) else None
            if checkpoint is not None:
                settle_checkpoint(plan, checkpoint)
        if checkpoint is None:
            _refuse_by_name(plan.name)
    if checkpoint is None:
        with report.phase("download"):
            checkpoint = _fetch(name, shelf, plan, endpoint, cache_dir, converts)
        if gate != "off" and not _knew_the_files(passed):
            with report.phase("gate"):
                ask = replace(ask, local=True, endpoint=None)
                left += _through_gate(plan, checkpoint, report, ask, str(checkpoint.folder)).left
    if checkpoint.original:
        with report.phase("convert"):
            steps.import_stack(16)
            checkpoint = steps.convert_layout(checkpoint, plan, report, endpoint, cache_dir)
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
    steps.say_what_is_left(left, report)
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


@dataclass(frozen=True, slots=True)
class GateQuestion:
    """How the gate is asked; `local`: no Hub need be asked, `settles` is `steps.settles()`."""

    mode: Gate
    strict: bool
    codes_off: tuple[str, ...]
    device: Any
    local: bool
    endpoint: str | None
    settles: Mapping[str, str]


def _through_gate(
    plan: Plan, checkpoint: Checkpoint | None, report: LoadReport, ask: GateQuestion, place: str = ""
) -> gates.Passed:
    """Runs the checks on the plan and takes their changes over. `place` is the folder, where the plan has a Hub name."""
    checks, broken = gates.checks_for_loads(ask.codes_off)
    text = str(ask.device) if ask.device is not None else None
    name, plan.name = plan.name, place or plan.name
    try:
        first = plan.request(plan.dtype or "bfloat16", {"": 0})
        facts = gates.gather_facts(first, checks, offline=ask.local, endpoint=ask.endpoint)
        plan.dtype_keyword = dtype_keyword(facts)
        expected = plan.dtype or hardware.expected_dtype(facts, plan.family, text)
        device_map = steps.expected_device_map(plan, facts, text)
        request = plan.request(expected, device_map)
        others = {bits: plan.request(expected, device_map, bits) for bits in BITS if bits != plan.bits}
    finally:
        plan.name = name
    sizes = {bits: checkpoint.bytes(bits, plan.kept or ()) if checkpoint else None for bits in others}
    passed = gates.gate(
        request,
        facts,
        checks,
        broken,
        fix=ask.mode == "fix",
        strict=ask.strict,
        alternatives=others,
        sizes=sizes,
        settles=ask.settles,
    )
    report.changes += [c for c in passed.changes if c not in report.changes]
    report.warnings += [w for w in passed.warnings if w not in report.warnings]
    plan.take_back(request, passed.request)
    gates.set_environment(passed.environ)
    return passed


def _knew_the_files(passed: gates.Passed) -> bool:
    """Whether the gate could look at the model's files before they were downloaded."""
    models = passed.facts.state("models")
    return not isinstance(models, Unknown) and any(m.name == passed.request.model_or for m in models)


def _read(name: str, converts: bool) -> Checkpoint:
    return read_folder(name, Path(name).expanduser(), original_too=converts)


def _original_in_cache(name: str, revision: str | None, cache_dir: Any) -> str:
    """The folder of an original LLaVA repository that lies whole in the Hub's cache: better converted than downloaded anew."""
    known = known_model(name)
    if known is None or known.layout != "original-llava" or Path(name).exists():
        return ""
    from qlora_doctor.download.store import Cache
    from qlora_doctor.gather.hub_cache import cache_folder

    return Cache(os.fspath(cache_dir) if cache_dir else cache_folder(os.environ), name, revision or "main").found()


def _fetch(name: str, shelf: str, plan: Plan, endpoint: str | None, cache_dir: Any, converts: bool) -> Checkpoint:
    """Downloads what the plan names; `name` is what the user asked for, which a check may have replaced."""
    from qlora_core.fetch import fetch

    kwargs = plan.kwargs
    try:
        folder = fetch(
            shelf + plan.name,
            revision=kwargs.get("revision"),
            token=kwargs.get("token"),
            endpoint=endpoint,
            cache_dir=cache_dir,
            local_files_only=bool(kwargs.get("local_files_only")),
            code=bool(kwargs.get("trust_remote_code")),
        )
        checkpoint = read_folder(plan.name, folder, original_too=converts)
        settle_checkpoint(plan, checkpoint)
    except UsageError as error:
        if plan.name == name:
            raise
        text = f"{error} ({plan.name} takes the place of {name}, which cannot be loaded as it is)"
        raise (ModelProblem if isinstance(error, ModelProblem) else UsageError)(text) from error
    return checkpoint
