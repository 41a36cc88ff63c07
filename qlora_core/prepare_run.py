"""Everything about a training run that can be known before the model is loaded: read, planned, audited, judged.

What comes out (`Prepared`) is all that `--dry-run` shows, and all that `train` goes on with.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_core import gate as load_gate
from qlora_core import hardware, presets, run_record, train_gate
from qlora_core.adapters import scope_pattern
from qlora_core.answers import check_metrics
from qlora_core.arguments import UNPAGED, Course, course, settle_strategies, training_arguments
from qlora_core.checkpoint import Checkpoint, adapter_base, is_local, read_folder
from qlora_core.data.audit import Audit, audit
from qlora_core.data.encode import Encoder, make_encoder
from qlora_core.data.read import read
from qlora_core.data.rows import Rows
from qlora_core.distributed import settle_sharded
from qlora_core.presets import MemoryPlan
from qlora_core.refusals import enough_disk, judge_adapter, judge_lora, with_lora
from qlora_core.report import LoadReport
from qlora_core.settings import Settings, make_settings
from qlora_doctor.errors import UsageError
from qlora_doctor.facts import Facts
from qlora_doctor.families import family_of

Say = Callable[[str], None]
# The plan needs the size of the largest image; of many, so many are looked at.
LOOKED_AT = 500


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that can begin. `settings` are complete; `given` names those that the user set."""

    name: str
    output: Path
    settings: Settings
    given: frozenset[str]
    plan: MemoryPlan
    processor: Any
    encoder: Encoder
    train: Audit
    evaluation: Audit | None
    course: Course
    gate: train_gate.Passed
    checkpoint: str | None
    identity: Mapping[str, Any]
    lora: Any = None
    endpoint: str | None = None
    family: str = ""
    vision: bool = False
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The plan, the audit and the settings, as `--dry-run` prints them."""
        from qlora_doctor.report.memory import breakdown_lines, gib

        plan, b = self.plan, self.plan.breakdown
        lines = [
            f"{self.name}: {self.family or 'a family that we do not know'}, {self.settings.bits}-bit, on {plan.room.card}"
        ]
        lines += [f"  chosen   {name} = {value} ({why})" for name, value, why in plan.chosen]
        lines += [f"  changed  {change}" for change in self.gate.changes]
        lines += [f"  refused  {text}" for text in self.gate.refused]
        lines += [f"  warning  {text}" for text in self.gate.warnings]
        lines += [f"  note     {text}" for text in (*self.notes, *plan.notes)]
        c = self.course
        lines.append(f"  course   {c.rows} rows, {c.rows_a_step} a step, {c.steps} steps, {c.epochs:.3g} epochs")
        if b is not None:
            room = f", {plan.room.card} has {gib(plan.room.bytes)}" if plan.room.bytes else ""
            lines += [
                "",
                f"memory: {gib(b.expected)} expected ({gib(b.low)} to {gib(b.high)}){room}; at its peak ({b.phase}):",
            ]
            lines += [*breakdown_lines(b), f"  a checkpoint takes {gib(b.saved)}"]
        lines += ["", str(self.train)]
        if self.evaluation is not None:
            lines.append(f"evaluation: {len(self.evaluation.kept)} of {len(self.evaluation.rows)} rows")
        defaults = Settings()
        own = [f for f in dataclasses.fields(Settings) if getattr(self.settings, f.name) != getattr(defaults, f.name)]
        lines += ["", "settings that are not the defaults:"]
        lines += [f"  {f.name} = {getattr(self.settings, f.name)!r}" for f in own]
        return "\n".join(lines)


def prepare_run(
    model: str,
    data: Any,
    output: Path,
    *,
    preset: str,
    eval_data: Any,
    lora: Any,
    resume: bool | str,
    values: Mapping[str, Any],
    dry: bool = False,
    begins: bool = True,
    say: Say = lambda _: None,
) -> Prepared:
    """Reads, plans, audits and judges a run. `begins`: it will write to `output`, which must be fit for that. `dry`: nothing
    will be loaded, so the checks of the load are asked here too, and what would stop the run is told, not raised.

    Raises:
        UsageError: a setting, a file or a folder that cannot be used.
        LoadBlocked: the checks refuse the run.
    """
    asked = make_settings(values)
    judge_lora(asked, lora)
    asked, sharding = settle_sharded(with_lora(asked, lora), frozenset(values))
    check_metrics(asked.metrics)
    resumed = run_record.check_output(output, resume) if begins or resume else None
    codes_off = load_gate.switched_off(asked.fixes, _STEPS)[1]
    local = is_local(model)
    if local and Path(model).expanduser().is_dir() and adapter_base(Path(model).expanduser()) is not None:
        raise UsageError(f"model={model!r} is an adapter; give its base as the model, and it as --set adapter={model}")
    known = read_folder(model, Path(model).expanduser()) if local else None
    family = known.family if known else family_of(model)
    load = train_gate.load_request(model, asked.bits, asked.dtype or "bfloat16", family, **_load_words(asked))
    checks, broken = train_gate.train_checks(codes_off, all_of_them=dry)
    facts = train_gate.gather(load, checks if asked.gate != "off" else (), offline=local)
    endpoint = asked.endpoint
    if known is None:
        endpoint = _through_load_gate(load, asked, codes_off) or endpoint
        known = _fetch_small(model, asked, endpoint)
    pattern = scope_pattern(known.family, asked.train)
    judge_adapter(asked, model, known)
    say("reading the data")
    rows, evaluation = _rows(data, eval_data, asked)
    identity = {"data": run_record.data_hash(rows), "base": model, "train": asked.train, "train_on": asked.train_on}
    if resumed is not None:
        run_record.check_output(output, resumed, identity)
    room = presets.find_room(preset, facts, asked)
    images = max((len(row.images) for row in rows), default=0) if known.family and known.family.vision else None
    size = _largest_image(rows) if images else (0, 0)
    first = presets.first_plan(known.config, asked, room, images, size)
    processor, config, warnings = _processor(known, model, first.settings)
    encoder = make_encoder(
        processor, config, template=asked.template, enable_thinking=asked.enable_thinking, train_on=asked.train_on
    )
    say(f"auditing {len(rows)} rows")
    length = first.settings.max_length
    audited = audit(rows, encoder, max_length=length, too_long=asked.too_long, eval_rows=evaluation)  # type: ignore[arg-type]
    judged = None
    if evaluation is not None:
        judged = audit(evaluation, encoder, max_length=length, too_long="drop")
        if not judged.kept:
            raise UsageError(f"none of the {len(evaluation)} evaluation rows can be used:\n{judged}")
    world = int(os.environ.get("WORLD_SIZE", "1") or 1)
    longest = max((len(one.input_ids) for one in audited.encoded.made), default=1)
    plan = presets.final_plan(first, asked, longest, len(audited.kept), world)
    settings = settle_strategies(plan.settings, judged is not None, frozenset(values))
    settings = settings.but(lora_alpha=settings.lora_alpha or 2 * (settings.lora_r or presets.RANK))
    if settings.ddp_find_unused_parameters is None:
        settings = settings.but(ddp_find_unused_parameters=_some_rows_skip_a_part(rows, asked.train))
    plan = dataclasses.replace(plan, settings=settings)
    run = course(settings, max(1, len(audited.kept)), world)
    dtype = asked.dtype or hardware.expected_dtype(facts, known.family, asked.device)
    device = "cuda" if room.device == "cuda" and _has_gpu(facts) else "cpu"
    request = _request(load, settings, lora, pattern, training_arguments(settings, str(output), dtype, device, run))
    if judged is not None:
        request = train_gate.with_evaluation(request)
    passed = train_gate.Passed(request)
    if asked.gate != "off":
        facts = facts.but(data=(audited.facts,))
        passed = train_gate.gate(request, facts, checks, broken, mode=asked.gate, strict=asked.strict, raises=not dry)
    if not audited.kept and not dry:
        raise UsageError(f"none of the {len(rows)} rows can be trained on:\n{audited}")
    enough_disk(output, plan, settings, run)
    return Prepared(
        model, output, settings, frozenset(values), plan, processor, encoder, audited, judged, run, passed, resumed,
        identity, lora, endpoint, known.family.title if known.family else "", bool(known.family and known.family.vision),
        (*_notes(rows, encoder), *sharding, *warnings, *_doubts(settings), *_instead(settings, device)),
    )  # fmt: skip


_STEPS = (
    "adapter-base", "avx512-repack", "device-map", "native-class", "pad-token", "processor", "training-settings",
)  # fmt: skip


def _load_words(settings: Settings) -> dict[str, Any]:
    words = {"attn_implementation": settings.attn_implementation, "revision": settings.revision}
    return {name: value for name, value in words.items() if value is not None}


def _through_load_gate(load: Any, asked: Settings, codes_off: tuple[str, ...]) -> str | None:
    """A model of the Hub is judged before its small files are asked for; the endpoint that a check asks for."""
    if asked.gate == "off":
        return None
    checks, broken = load_gate.checks_for_loads(codes_off)
    facts = load_gate.gather_facts(load, checks, offline=False)
    passed = load_gate.gate(load, facts, checks, broken, fix=asked.gate == "fix", strict=asked.strict)
    load_gate.set_environment(passed.environ)
    return passed.endpoint


def _fetch_small(name: str, asked: Settings, endpoint: str | None) -> Checkpoint:
    from qlora_core.fetch import fetch

    folder = fetch(name, revision=asked.revision, endpoint=endpoint, cache_dir=asked.cache_dir, weights=False)
    return read_folder(name, folder)


def _request(load: Any, settings: Settings, lora: Any, pattern: str, arguments: Mapping[str, Any]) -> Any:
    adapter: dict[str, Any] = {"r": settings.lora_r, "lora_alpha": settings.lora_alpha}
    adapter["lora_dropout"] = settings.lora_dropout
    adapter["target_modules"] = pattern if settings.target_modules is None else settings.target_modules
    if isinstance(lora, Mapping):
        adapter |= lora
    return train_gate.train_request(load, arguments, adapter, {"loss": settings.loss})


def _rows(data: Any, eval_data: Any, asked: Settings) -> tuple[Rows, Rows | None]:
    """The rows to train on and those to evaluate on.

    Raises:
        UsageError: an eval split that leaves nothing to train on, or eval data and an eval split.
    """
    rows = read(data, format=asked.format, images=asked.images, limit=asked.limit)
    if eval_data is not None:
        if asked.eval_split:
            raise UsageError("eval_data and eval_split both say what to evaluate on; give one of them")
        return rows, read(eval_data, format=asked.format, images=asked.images)
    if not asked.eval_split:
        return rows, None
    share = asked.eval_split
    count = round(share * len(rows)) if share < 1 else int(share)
    if count >= len(rows):
        raise UsageError(
            f"eval_split={share:g} takes {count} rows, and there are {len(rows)}: none would be trained on"
        )
    places = set(random.Random(asked.seed).sample(range(len(rows)), max(1, count)))
    parts = [tuple(row for i, row in enumerate(rows) if (i in places) is kept) for kept in (False, True)]
    return dataclasses.replace(rows, rows=parts[0]), dataclasses.replace(rows, rows=parts[1], faults=())


def _some_rows_skip_a_part(rows: Rows, train: str) -> bool:
    """Whether a batch of text alone would leave adapters without a gradient: those of what only images pass through."""
    mixed = 0 < sum(bool(row.images) for row in rows) < len(rows)
    return mixed and train != "language"


def _largest_image(rows: Rows) -> tuple[int, int]:
    """Width and height of the largest of some images, from their headers; (0, 0) where none can be read."""
    from qlora_core.data.vision import image_size
    from qlora_core.errors import RowProblem

    with_images = [row for row in rows if row.images]
    best = (0, 0)
    for row in with_images[:: max(1, len(with_images) // LOOKED_AT)]:
        for image in row.images:
            try:
                size = image_size(image, row.where)
            except RowProblem:
                # The audit says which image cannot be read, and drops its row.
                continue
            best = max(best, size, key=lambda pair: pair[0] * pair[1])
    return best


def _processor(known: Checkpoint, name: str, settings: Settings) -> tuple[Any, Any, tuple[str, ...]]:
    """The processor and configuration alone; the model's weights are not touched."""
    from qlora_core.plan import Plan
    from qlora_core.steps import make_processor, read_config

    import_stack()
    plan, report = Plan(name, settings.bits, None, known.family), LoadReport(name)
    config = read_config(plan, known)
    processor = make_processor(known, config, plan, report, frozenset())
    limit_pixels(processor, settings.max_pixels)
    return processor, config, tuple(report.warnings)


def limit_pixels(processor: Any, most: int | None) -> None:
    """Tells an image processor the largest image in pixels, where the family has such a limit.

    Raises:
        UsageError: it has none.
    """
    if most is None:
        return
    images = getattr(processor, "image_processor", None)
    if not hasattr(images, "max_pixels") and "longest_edge" not in (getattr(images, "size", None) or {}):
        raise UsageError("max_pixels: the image processor of this model has no such limit; leave it out")
    assert images is not None
    if hasattr(images, "max_pixels"):
        images.max_pixels = most
    if "longest_edge" in (getattr(images, "size", None) or {}):
        smallest = min(images.size.get("shortest_edge") or most, most)
        images.size = {**dict(images.size), "longest_edge": most, "shortest_edge": smallest}


def import_stack() -> None:
    """Raises UsageError where a package that training needs is not installed."""
    from importlib.util import find_spec

    for name in ("torch", "transformers", "peft", "bitsandbytes", "accelerate"):
        if find_spec(name) is None:
            raise UsageError(f'{name} is not installed; training needs it: pip install "qlora-doctor[train]"')


def _has_gpu(facts: Facts) -> bool:
    from qlora_doctor.facts import Unknown

    gpus, build = facts.state("gpus"), facts.state("torch")
    return not isinstance(gpus, Unknown) and bool(gpus) and not isinstance(build, Unknown) and bool(build)


def _notes(rows: Rows, encoder: Encoder) -> tuple[str, ...]:
    encodings = [f"{file} is in {encoding}" for file, encoding in rows.encodings.items()]
    return (f"data: {rows.format}, {len(rows)} rows", *encodings, *rows.notes, *encoder.notes)


def _instead(settings: Settings, device: str) -> tuple[str, ...]:
    """The optimizer that a CPU gets instead."""
    if device == "cuda" or settings.optim not in UNPAGED:
        return ()
    return (f"optim: {UNPAGED[settings.optim]} in place of {settings.optim}: on a CPU there is nothing to page from",)


def _doubts(settings: Settings) -> tuple[str, ...]:
    if settings.save_only_model and settings.save_strategy != "no":
        return ("save_only_model: these checkpoints hold no optimizer and no random states, so none can be resumed",)
    return ()
