"""Our settings as the arguments of transformers.TrainingArguments, and what of them follows from the run."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from qlora_core.settings import Settings
from qlora_doctor.errors import UsageError

UNPAGED = {
    "paged_adamw_8bit": "adamw_bnb_8bit", "paged_adamw_32bit": "adamw_torch", "paged_adamw": "adamw_torch",
    "paged_lion_8bit": "lion_8bit", "paged_lion_32bit": "lion_32bit",
    "paged_ademamix_8bit": "ademamix_8bit", "paged_ademamix_32bit": "ademamix",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Course:
    """How long a run is. `steps` are optimizer steps over all epochs, `rows_a_step` over all devices."""

    rows: int
    rows_a_step: int
    steps: int
    epochs: float


def course(settings: Settings, rows: int, world: int) -> Course:
    """The length of a run over so many rows."""
    a_step = (settings.per_device_train_batch_size or 1) * (settings.gradient_accumulation_steps or 1) * world
    an_epoch = max(1, -(-rows // a_step))
    if settings.max_steps > 0:
        return Course(rows, a_step, settings.max_steps, settings.max_steps / an_epoch)
    return Course(rows, a_step, max(1, -int(-settings.num_train_epochs * an_epoch // 1)), settings.num_train_epochs)


def settle_strategies(settings: Settings, has_eval: bool, given: frozenset[str] = frozenset()) -> Settings:
    """Evaluating and saving made to agree, with everything that was left open filled in.

    Raises:
        UsageError: something needs evaluation rows and there are none, or saving and evaluating contradict each other.
    """
    best = settings.load_best_model_at_end or settings.early_stopping_patience is not None
    needs = {
        "early_stopping_patience": settings.early_stopping_patience is not None,
        "load_best_model_at_end": settings.load_best_model_at_end,
        "metrics": bool(settings.metrics),
        "eval_strategy": settings.eval_strategy in ("steps", "epoch"),
    }
    lacking = [name for name, wanted in needs.items() if wanted]
    if lacking and not has_eval:
        raise UsageError(f"{lacking[0]} needs rows to evaluate on: give eval_data, or eval_split=0.05")
    strategy = settings.eval_strategy or ("epoch" if has_eval else "no")
    if best and strategy == "no":
        raise UsageError('eval_strategy="no", but early stopping and the best adapter are judged by the eval loss')
    changes: dict[str, Any] = {"eval_strategy": strategy, "load_best_model_at_end": best}
    if best and (settings.save_strategy != strategy or settings.save_steps != settings.eval_steps):
        if "save_strategy" in given and settings.save_strategy != strategy:
            raise UsageError(
                f"save_strategy={settings.save_strategy!r} and eval_strategy={strategy!r}: the best adapter can be kept "
                "only where each evaluation has its checkpoint; give both the same"
            )
        changes |= {"save_strategy": strategy}
        if strategy == "steps":
            changes |= {"save_steps": settings.eval_steps}
    return settings.but(**changes)


def training_arguments(settings: Settings, output: str, dtype: str, device: str, run: Course) -> dict[str, Any]:
    """The arguments of TrainingArguments under their names in transformers 5; a dict, so that the gate can judge it."""
    s, on_gpu = settings, device.startswith("cuda")
    warmup = int(s.warmup_steps * run.steps) if 0 < s.warmup_steps < 1 else int(s.warmup_steps)
    arguments: dict[str, Any] = {
        "output_dir": output,
        "per_device_train_batch_size": s.per_device_train_batch_size,
        "per_device_eval_batch_size": s.per_device_eval_batch_size or s.per_device_train_batch_size,
        "gradient_accumulation_steps": s.gradient_accumulation_steps,
        "num_train_epochs": s.num_train_epochs,
        "max_steps": s.max_steps,
        "learning_rate": s.learning_rate,
        "lr_scheduler_type": s.lr_scheduler_type,
        "warmup_steps": min(warmup, max(0, run.steps - 1)),
        "weight_decay": s.weight_decay,
        "max_grad_norm": s.max_grad_norm,
        # There is nothing to page from on a CPU; bitsandbytes would warn at every step's beginning.
        "optim": s.optim if on_gpu else UNPAGED.get(s.optim, s.optim),
        "seed": s.seed,
        "data_seed": s.data_seed,
        "bf16": on_gpu and dtype == "bfloat16",
        "fp16": on_gpu and dtype == "float16",
        "use_cpu": not on_gpu,
        "activation_checkpointing": s.gradient_checkpointing,
        "logging_strategy": "steps",
        "logging_steps": s.logging_steps or max(1, min(10, run.steps // 100)),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "non_padding",
        "disable_tqdm": True,
        "report_to": list(reporters(s)),
        "eval_strategy": s.eval_strategy or "no",
        "save_strategy": "no" if s.save_strategy == "epoch" and s.save_epochs > 1 else s.save_strategy,
        "save_steps": s.save_steps,
        "save_total_limit": s.save_total_limit,
        "save_only_model": s.save_only_model,
        "load_best_model_at_end": s.load_best_model_at_end,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "prediction_loss_only": True,
        "dataloader_num_workers": s.dataloader_num_workers,
        "dataloader_pin_memory": on_gpu,
        "train_sampling_strategy": s.train_sampling_strategy,
        "ddp_find_unused_parameters": bool(s.ddp_find_unused_parameters),
    }
    if s.gradient_checkpointing:
        arguments["activation_checkpointing_kwargs"] = {"use_reentrant": False}
    if s.load_best_model_at_end:
        arguments |= {"metric_for_best_model": "eval_loss", "greater_is_better": False}
    optional = ("eval_steps", "run_name", "neftune_noise_alpha", "fsdp", "fsdp_config", "deepspeed")
    return arguments | {name: getattr(s, name) for name in optional if getattr(s, name) is not None}


def reporters(settings: Settings) -> tuple[str, ...]:
    """The trackers of `report_to`; `auto` is TensorBoard where it is installed.

    Raises:
        UsageError: one that is not installed.
    """
    wanted = settings.report_to
    if wanted == "auto":
        return ("tensorboard",) if find_spec("tensorboard") or find_spec("tensorboardX") else ()
    names = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    names = tuple(name for name in names if name != "none")
    for name in names:
        packages = {"tensorboard": ("tensorboard", "tensorboardX")}.get(name, (name,))
        if not any(find_spec(package) for package in packages):
            raise UsageError(f"report_to={name!r}: {name} is not installed (pip install {name})")
    return names


def known_arguments(arguments: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The arguments that the installed TrainingArguments takes, old names where it has only those, and what it lacks."""
    import dataclasses

    import transformers

    fields = {f.name for f in dataclasses.fields(transformers.TrainingArguments)}
    taken, lost = {}, []
    for name, value in arguments.items():
        old = name.replace("activation_checkpointing", "gradient_checkpointing")
        if name in fields:
            taken[name] = value
        elif old in fields:
            taken[old] = value
        elif name == "train_sampling_strategy":
            taken["group_by_length"] = value == "group_by_length"
        else:
            lost.append(name)
    return taken, lost
