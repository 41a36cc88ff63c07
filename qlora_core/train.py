"""`train`: from a data file to an adapter that learned, and the proof of it. From top to bottom, one run.

Importing this brings no torch; what needs it is imported when the run has passed every check that needs none.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qlora_core.answers import Measure, Sample
from qlora_core.prepare_run import Prepared, prepare_run
from qlora_core.report import LoadReport
from qlora_core.settings import Settings
from qlora_doctor.errors import UsageError
from qlora_doctor.i18n import said, said_lines, tr

QUICK_STEPS = 5
ADAPTER, SAMPLES, CURVE = "adapter", "samples.json", "loss.png"


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run gave. `run` is what run.json holds; `adapter` is None for a dry or quick run.

    `losses` and `eval_losses` are (step, loss). `peak` is what was measured in bytes, `predicted` what the memory plan
    said (None where it could say nothing). `scope` maps a part of the model to its adapters' tensors and parameters.
    `warnings` have their causes with them. `model` and `processor` are those that were trained, still loaded.
    """

    prepared: Prepared
    adapter: Path | None = None
    steps: int = 0
    losses: tuple[tuple[int, float], ...] = ()
    eval_losses: tuple[tuple[int, float], ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    peak: Mapping[str, int] = field(default_factory=dict)
    predicted: int | None = None
    step_seconds: float | None = None
    scope: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    report: LoadReport | None = None
    warnings: tuple[str, ...] = ()
    run: Mapping[str, Any] = field(default_factory=dict)
    model: Any = field(default=None, repr=False)
    processor: Any = field(default=None, repr=False)

    @property
    def settings(self) -> Settings:
        """The settings of the run, with everything that was left open filled in."""
        return self.prepared.settings

    def __str__(self) -> str:
        from qlora_core.run_record import result_lines

        return "\n".join(result_lines(self))


def train(
    model: str | os.PathLike[str],
    data: Any,
    output_dir: str | os.PathLike[str],
    *,
    preset: str = "auto",
    eval_data: Any = None,
    lora: Any = None,
    resume: bool | str = False,
    dry_run: bool = False,
    quick: bool = False,
    measure: Measure | None = None,
    **settings: Any,
) -> TrainResult:
    """Trains a LoRA adapter on a 4-bit model: LLaVA, Qwen, Qwen-VL, InstructBLIP, BLIP-2, and other text models.

    Nothing is loaded before the settings, the data, the memory and the environment were judged; no step is taken from
    which the adapter would not recover.

    Args:
        model: a model folder or a Hub name.
        data: a file, several, a folder, a Hub dataset, a `datasets.Dataset` or a list of dictionaries.
        output_dir: an empty or new folder: the adapter, checkpoints, run.json, train_log.jsonl, loss.png, samples.json.
        preset: `8gb`, `12gb`, `16gb`, `24gb` or a card's name: batch, length and rank that fit it; `auto` takes this
            machine's GPU.
        eval_data: rows to evaluate on, in any form that `data` has.
        lora: a PEFT configuration, passed through, or a dictionary for LoraConfig.
        resume: goes on from the newest checkpoint of `output_dir`, or from the one that is named.
        dry_run: loads no model; `str(result)` is the plan, the audit and the settings.
        quick: five steps on the longest rows, and the 4-bit proof; keeps nothing.
        measure: called with the answers generated for eval rows and the expected ones; gives named scores.
        settings: see docs/settings.md; an unknown name is an error.

    Raises:
        UsageError: something that cannot be used, before the model is loaded.
        LoadBlocked: the checks refuse the run or the load.
        NotVerified: the model that was loaded is not what was asked for.
        TrainingStopped: the run was stopped, with the step, the cause and what is kept.
    """
    from qlora_doctor.logs.explaining import explain_errors

    if quick:
        # The point is the memory and the time of the heaviest steps; what a run writes or judges besides would be in the way.
        settings = {**settings, "save_strategy": "no", "samples": 0, "eval_strategy": "no", "metrics": ()}
        settings |= {"early_stopping_patience": None, "load_best_model_at_end": False, "push_to_hub": False}
        settings |= {"report_to": "none", "max_steps": QUICK_STEPS}
    say = _say if settings.get("progress", True) is True and _main_process() else _quiet
    with explain_errors():
        prepared = prepare_run(
            os.fspath(model), data, Path(output_dir).expanduser(), preset=preset, eval_data=eval_data, lora=lora,
            resume=resume, values=settings, dry=dry_run, begins=_main_process() and not (dry_run or quick), say=say,
        )  # fmt: skip
        if dry_run:
            return TrainResult(prepared, predicted=_predicted(prepared), warnings=prepared.gate.warnings)
        say(_first_words(prepared))
        if not quick:
            return _run(prepared, prepared.output, measure, say, quick=False)
        with tempfile.TemporaryDirectory(prefix="qlora-quick-") as folder:
            return _run(prepared, Path(folder), measure, say, quick=True)


def _run(p: Prepared, output: Path, measure: Measure | None, say: Any, *, quick: bool) -> TrainResult:
    from qlora_core import run_record

    s, main = p.settings, _main_process()
    warnings = list(p.gate.warnings)
    _silence()
    record = run_record.begin(p)
    if main and not quick:
        output.mkdir(parents=True, exist_ok=True)
        run_record.write_run(output, record)
    try:
        # ---------------------------------------------------------------- the model
        say(f"loading {p.name}")
        loaded = _load(p)
        model, processor, report = loaded.model, loaded.processor, loaded.report
        warnings += report.warnings
        device = str(next(model.parameters()).device)
        if s.max_memory is not None:
            from qlora_core.guard import cap_memory

            if not cap_memory(int(s.max_memory * 2**30), device):
                warnings.append(
                    f"max_memory={s.max_memory:g} caps a GPU, and this run is on {device}: nothing is capped"
                )
        held = _resident()
        # ---------------------------------------------------------------- the adapter
        model = _with_adapter(model, p)
        from qlora_core.adapters import scope as scope_of

        scope = scope_of(model)
        say(f"learns: {_scope_words(scope)}")
        # ---------------------------------------------------------------- before
        shown = _sample_rows(p) if main and not quick and not _distributed() else []
        before = _answers(model, p, processor, shown) if shown else []
        # ---------------------------------------------------------------- training
        trainer, meter = _trainer(model, processor, p, output, device, report.dtype, warnings, say, quick)
        say(f"loss: {trainer.route.name}{f' ({trainer.route.why})' if trainer.route.why else ''}")
        trainer.train(resume_from_checkpoint=p.checkpoint)
        peak = meter.peak
        # First of all: what comes after may fail, and a night's work would be gone.
        adapter = None if quick else _save(trainer, model, processor, p, output, main)
        if s.load_best_model_at_end and trainer.state.best_metric is not None:
            say(f"kept the adapter of eval loss {trainer.state.best_metric:.4g}")
        # ---------------------------------------------------------------- after
        after = _answers(model, p, processor, shown) if shown else []
        samples = tuple(
            Sample(row.where, *_question(row), before=b, after=a)
            for row, b, a in zip(shown, before, after, strict=True)
        )
        metrics = _metrics(model, p, processor, measure) if main and not _distributed() and not quick else {}
        warnings += _doubts(meter, s, trainer.guard)
    except BaseException as error:
        if main and not quick:
            run_record.write_run(output, run_record.stopped(record, error))
        raise
    result = TrainResult(
        p, adapter, trainer.state.global_step, tuple(meter.losses), tuple(meter.evals), metrics, samples, peak,
        _predicted(p), meter.step_seconds, scope, report, tuple(dict.fromkeys(warnings)), record, model, processor,
    )  # fmt: skip
    if main and not quick:
        result = replace(result, run=run_record.finished(result, held))
        _write_results(result, output)
    return result


# -------------------------------------------------------------------- the parts of a run, in their order


def _load(p: Prepared) -> Any:
    from qlora_core.load import load_quantized

    s = p.settings
    loaded = load_quantized(
        p.name,
        bits=s.bits,
        dtype=s.dtype,
        for_training=True,
        adapter=s.adapter,
        revision=s.revision,
        device=s.device,
        quantize_vision=bool(s.quantize_vision),
        attn_implementation=s.attn_implementation,
        gate=s.gate,  # type: ignore[arg-type]
        fixes=s.fixes,
        strict=s.strict,
        endpoint=p.endpoint,
        cache_dir=s.cache_dir,
    )
    from qlora_core.prepare_run import limit_pixels

    limit_pixels(loaded.processor, s.max_pixels)
    if not s.gradient_checkpointing:
        off = getattr(loaded.model, "activation_checkpointing_disable", None)
        (off or loaded.model.gradient_checkpointing_disable)()
    return loaded


def _with_adapter(model: Any, p: Prepared) -> Any:
    import transformers

    from qlora_core.adapters import attach

    if p.settings.adapter is not None:
        return model
    # Before the adapter: its first values are drawn here.
    transformers.set_seed(p.settings.seed)
    if p.lora is not None and not isinstance(p.lora, Mapping):
        return attach(model, config=p.lora)
    words = dict(p.gate.lora())
    words["r"], words["alpha"], words["dropout"] = words.pop("r"), words.pop("lora_alpha"), words.pop("lora_dropout")
    targets = words.pop("target_modules", None)
    own = p.settings.target_modules is not None or "target_modules" in (p.lora or {})
    if not own and not any(change.argument == "target_modules" for change in p.gate.changes):
        # Told to the checks as a pattern of the family; here the model itself says what lies in the part.
        targets = None
    return attach(model, targets=targets, train=p.settings.train, **words)


def _trainer(
    model: Any, processor: Any, p: Prepared, output: Path, device: str, dtype: str, warnings: list[str], say: Any,
    quick: bool,
) -> tuple[Any, Any]:  # fmt: skip
    import transformers

    from qlora_core.arguments import known_arguments
    from qlora_core.callbacks import LOG, Meter, RunLog, screen
    from qlora_core.data.collate import make_collator
    from qlora_core.guard import NanGuard
    from qlora_core.presets import words_that_fit
    from qlora_core.trainer import Trainer

    s, main = p.settings, _main_process()
    on_gpu = device.startswith("cuda")
    arguments = p.gate.settings()
    arguments |= {"output_dir": str(output), "use_cpu": not on_gpu}
    arguments |= {"bf16": on_gpu and dtype == "bfloat16", "fp16": on_gpu and dtype == "float16"}
    taken, lost = known_arguments(arguments)
    warnings += [f"{name}: this transformers has no such training argument; it is left out" for name in lost]

    def told(text: str) -> None:
        warnings.append(text)
        say(f"warning: {text}")

    data = _longest(p) if quick else p.train.encoded
    guard = NanGuard(
        output,
        name_rows=lambda places: [data.rows[place].where or f"row {place + 1}" for place in places],
        say=told,
        on_oom=lambda peak: words_that_fit(p.plan, peak),
    )
    meter = Meter(device=device)
    callbacks: list[Any] = [RunLog(meter, output / LOG if main and not quick else None, screen(s.progress and main))]
    if s.early_stopping_patience is not None:
        callbacks.append(transformers.EarlyStoppingCallback(s.early_stopping_patience))
    trainer = Trainer(
        model=model,
        args=transformers.TrainingArguments(**taken),
        train_dataset=data,
        eval_dataset=p.evaluation.encoded if p.evaluation is not None and s.eval_strategy != "no" else None,
        data_collator=make_collator(processor, model.config),
        processing_class=processor,
        callbacks=callbacks,
        guard=guard,
        loss=s.loss,
        save_epochs=s.save_epochs if s.save_strategy == "epoch" and s.save_epochs > 1 else None,
        run=p.identity,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.remove_callback(transformers.trainer_callback.ProgressCallback)
    return trainer, meter


def _longest(p: Prepared) -> Any:
    """The rows of five steps that take the most memory."""
    from qlora_core.data.audit import TrainData

    data = p.train.encoded
    order = sorted(range(len(data)), key=lambda i: -data.lengths[i])[: QUICK_STEPS * p.course.rows_a_step]
    return TrainData(tuple(data.rows[i] for i in order), tuple(data.made[i] for i in order), data.encode)


def _sample_rows(p: Prepared) -> list[Any]:
    source = p.evaluation or p.train
    return [row for row in source.encoded.rows if row.messages[0].role != "text"][: p.settings.samples]


def _answers(model: Any, p: Prepared, processor: Any, rows: list[Any]) -> list[str]:
    from qlora_core.answers import answer

    return answer(model, p.encoder, processor, rows, max_new_tokens=p.settings.max_new_tokens)


def _question(row: Any) -> tuple[str, str]:
    from qlora_core.answers import question_of

    return question_of(row), row.answer


def _metrics(model: Any, p: Prepared, processor: Any, measure: Measure | None) -> dict[str, float]:
    from qlora_core.answers import measure as of_names

    if p.evaluation is None or not (p.settings.metrics or measure):
        return {}
    rows = [row for row in p.evaluation.encoded.rows if row.answer][: p.settings.metric_rows]
    said, expected = _answers(model, p, processor, rows), [row.answer for row in rows]
    scores = of_names(p.settings.metrics, said, expected)
    return scores | {k: float(v) for k, v in (measure(said, expected) if measure else {}).items()}


def _save(trainer: Any, model: Any, processor: Any, p: Prepared, output: Path, main: bool) -> Path:
    """The adapter and its processor, in FOLDER/adapter, whole or not at all."""
    from qlora_core.checkpoints import atomic_folder

    place = output / ADAPTER
    for config in getattr(model, "peft_config", {}).values():
        # The folder of a download says nothing on another machine; its name does.
        config.base_model_name_or_path = str(Path(p.name).resolve()) if Path(p.name).is_dir() else p.name
    if _distributed():
        trainer.save_model(str(place))
    elif main:
        with atomic_folder(place) as folder:
            model.save_pretrained(str(folder))
    if main:
        processor.save_pretrained(str(place))
    return place


def _write_results(result: TrainResult, output: Path) -> None:
    import json

    from qlora_core import run_record
    from qlora_core.card import model_card
    from qlora_core.curve import draw_curve

    run_record.write_run(output, result.run)
    if result.samples:
        rows = [{n: getattr(one, n) for n in Sample.__dataclass_fields__} for one in result.samples]
        run_record.write_whole(output / SAMPLES, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    draw_curve(result.losses, result.eval_losses, output / CURVE, f"{result.prepared.name}: loss by step")
    if result.adapter is not None:
        run_record.write_whole(result.adapter / "README.md", model_card(result.run))
        run_record.write_run(result.adapter, result.run)
        if result.settings.push_to_hub:
            _push(result)


def _push(result: TrainResult) -> None:
    import huggingface_hub as hub

    s = result.settings
    assert s.hub_model_id is not None
    api = hub.HfApi(endpoint=s.endpoint)
    api.create_repo(s.hub_model_id, private=s.hub_private_repo, exist_ok=True)
    api.upload_folder(repo_id=s.hub_model_id, folder_path=str(result.adapter))


# -------------------------------------------------------------------- what is said


def _doubts(meter: Any, settings: Settings, guard: Any) -> list[str]:
    """What the course of the loss says against the run, with a cause; what the guard said on the way is not said again."""
    losses, found = [value for _, value in meter.losses], []
    if len(losses) >= 5 and not guard.has_said("flat"):
        part = max(1, len(losses) // 5)
        first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
        if last >= first * 0.999:
            high = settings.learning_rate >= 1e-3
            found.append(
                f"the loss did not fall ({first:.4g} at first, {last:.4g} at the end): the learning rate "
                f"{settings.learning_rate:g} is {'probably too high' if high else 'too low or too high'}, the run too short, "
                "or the answers do not follow from the questions"
            )
    if meter.norms and not any(meter.norms) and not guard.has_said("zero"):
        found.append("the gradient norm was 0 at every step: no gradient reached the adapter, so nothing was learned")
    if len(meter.evals) >= 2 and meter.evals[-1][1] > 1.1 * min(v for _, v in meter.evals):
        best = min(meter.evals, key=lambda pair: pair[1])
        found.append(
            f"the eval loss was lowest at step {best[0]} ({best[1]:.4g}) and rose to {meter.evals[-1][1]:.4g}: the adapter "
            "learned rows by heart; fewer epochs, or early_stopping_patience=2"
        )
    return found


def _first_words(p: Prepared) -> str:
    chosen = ", ".join(f"{name} {value}" for name, value, _ in p.plan.chosen)
    changed = "".join(f"\nchanged: {change}" for change in p.gate.changes)
    noted = "".join(f"\n{note}" for note in p.notes) + "".join(f"\nwarning: {w}" for w in p.gate.warnings)
    dropped = len(p.train.rows) - len(p.train.kept)
    rows = tr("{kept} rows", kept=len(p.train.kept)) + (said(f" ({dropped} left out)") if dropped else "")
    return f"{rows}, {p.course.steps} steps of {p.course.rows_a_step}; chosen: {chosen or 'nothing'}{noted}{changed}"


def _scope_words(scope: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(
        f"{part} " + said(f"{weights:,} weights in {tensors} tensors") for part, (tensors, weights) in scope.items()
    )


def _predicted(p: Prepared) -> int | None:
    b = p.plan.breakdown
    return None if b is None else b.allocated


def _resident() -> int:
    from qlora_core.guard import resident_bytes

    return resident_bytes()


def _main_process() -> bool:
    return os.environ.get("RANK", "0") in ("", "0")


def _distributed() -> bool:
    from qlora_core.hardware import distributed

    return distributed()


def _silence() -> None:
    """transformers' bars and notices would break ours up; what matters of them arrives as an error with its cause."""
    import transformers

    transformers.utils.logging.disable_progress_bar()


def _say(text: str) -> None:
    print(said_lines(text), file=sys.stderr, flush=True)


def _quiet(text: str) -> None:
    pass


__all__ = ["TrainResult", "UsageError", "train"]
