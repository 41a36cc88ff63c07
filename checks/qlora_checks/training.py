"""QD6: the training arguments and the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from qlora_checks.common import at_least, installed_version
from qlora_checks.runs import by_trainer, calls_named, checkpoints, literal, positional, script_of
from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, Fix, TrainSetting
from qlora_doctor.registry import Check, check
from qlora_doctor.request import TrainRequest
from qlora_doctor.source import Call, Script, Site

if TYPE_CHECKING:
    from packaging.version import Version


@check("QD623", needs=["packages"], since="0.1")
def evaluation_without_an_eval_set(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """`eval_strategy` is "steps" or "epoch", but the trainer gets no `eval_dataset`.

    From 4.46 on the Trainer refuses when it is made: `ValueError: You have set args.eval_strategy to ... but you didn't
    pass an eval_dataset` (run on 4.57.6 and 5.23.0). Before, training ran up to the first evaluation and stopped there:
    `ValueError: Trainer: evaluation requires an eval_dataset.`

    Silent where the trainer's arguments cannot all be seen, and for a subclass with an `__init__` of its own.

    Fix: pass `eval_dataset=`, or `eval_strategy="no"`.

    Source: transformers `trainer.py` 4.44.2, 4.45.2, 4.46.0, 4.57.6, 5.23.0.
    """
    settings = request.settings
    if settings is None or not by_trainer(request) or positional(request.trainer) or _own_init(facts, request):
        return
    name = "evaluation_strategy" if "evaluation_strategy" in settings.arguments else "eval_strategy"
    # An eval set that is made when the script runs is an eval set.
    if request.trainer.arguments.get("eval_dataset") is not None or request.trainer.get("eval_dataset") is not None:
        return
    strategy = literal(settings.get(name))
    if strategy not in ("steps", "epoch"):
        return
    version = installed_version(facts, "transformers")
    when = "refuses to be made" if at_least(version, "4.46") else "stops at the first evaluation"
    # The old name may be a TypeError by now, so it is not what we tell anyone to write.
    off = "eval_strategy" if at_least(version, "4.41") else name
    yield Finding(
        "{name}={strategy!r}, but no eval_dataset is passed: the Trainer of transformers {transformers} {when}. Pass "
        "eval_dataset=, or {off}='no'",
        {"name": name, "strategy": strategy, "transformers": str(version), "when": when, "off": off},
        severity="error",
        site=request.site,
        fixes=_no_evaluation(name, version, settings),
    )


def _no_evaluation(name: str, version: Version, settings: Call) -> tuple[Fix, ...]:
    # The old name is renamed by another check's fix first; two fixes of one argument would only cancel out.
    if name == "evaluation_strategy" and at_least(version, "4.41"):
        return (Advice("pass eval_dataset=, or evaluate never"),)
    return (TrainSetting(name, "no", applicability="unsafe", site=settings.site),)


def _own_init(facts: Facts, request: TrainRequest) -> bool:
    script = script_of(facts)
    if not request.subclass or script is None:
        return bool(request.subclass)
    return any(
        c.name == request.subclass and any(m.name in ("__init__", "get_eval_dataloader") for m in c.methods)
        for c in script.classes
    )


@check("QD624", since="0.1")
def best_model_without_matching_strategies(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """`load_best_model_at_end=True`, but saving and evaluating do not go together.

    TrainingArguments raises `ValueError: --load_best_model_at_end requires the save and eval strategy to match`; with
    both on "steps", `save_steps` must be a multiple of `eval_steps` (run on 5.23.0). `eval_strategy` is "no" unless it
    is given, and `save_strategy` "steps": so `load_best_model_at_end=True` alone is refused as well. Exempt is
    `save_strategy="best"` (4.47 and newer).

    Fix: give both the same strategy.

    Source: transformers `training_args.py` 4.44.2 and 5.23.0.
    """
    settings = request.settings
    if settings is None or settings.get("load_best_model_at_end") is not True:
        return
    name = "evaluation_strategy" if "evaluation_strategy" in settings.arguments else "eval_strategy"
    evaluate, save = literal(settings.get(name, "no")), literal(settings.get("save_strategy", "steps"))
    if save == "best" or evaluate is None or save is None:
        return
    if evaluate != save:
        yield Finding(
            "load_best_model_at_end=True needs saving and evaluating at the same times, but {name} is {evaluate!r} and "
            "save_strategy is {save!r}: TrainingArguments raises ValueError. Give both the same strategy",
            {"name": name, "evaluate": evaluate, "save": save},
            severity="error",
            site=settings.site,
            fixes=(_same_strategy(settings, name, evaluate),),
        )
    elif evaluate == "steps":
        yield from _steps(settings)


def _same_strategy(settings: Call, name: str, evaluate: str) -> TrainSetting:
    if evaluate == "no":
        return TrainSetting("load_best_model_at_end", drop=True, applicability="unsafe", site=settings.site)
    return TrainSetting("save_strategy", evaluate, applicability="unsafe", site=settings.site)


def _steps(settings: Call) -> Iterator[Finding]:
    save = settings.get("save_steps", 500)
    evaluate = settings.get("eval_steps", settings.get("logging_steps", 500))
    if not isinstance(save, int) or not isinstance(evaluate, int) or evaluate < 1 or save % evaluate == 0:
        return
    yield Finding(
        "load_best_model_at_end=True needs save_steps to be a multiple of eval_steps, but they are {save} and "
        "{evaluate}: TrainingArguments raises ValueError. Save every {multiple} steps",
        {"save": save, "evaluate": evaluate, "multiple": evaluate * max(1, round(save / evaluate))},
        severity="error",
        site=settings.site,
        fixes=(
            TrainSetting(
                "save_steps", evaluate * max(1, round(save / evaluate)), applicability="unsafe", site=settings.site
            ),
        ),
    )


@check("QD625", needs=["packages"], since="0.1")
def cache_with_gradient_checkpointing(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """`use_cache` is set True, or left so, in a run with gradient checkpointing.

    The two do not go together, and transformers settles it: since 5.0 the Trainer sets `config.use_cache` from its own
    argument `use_cache`, False by default, whatever was set before; and a layer that is checkpointed drops the cache
    with a log line (4.x: "use_cache=True is incompatible with gradient checkpointing. Setting use_cache=False"). The
    result is the same; only the log line goes away. Information, and only where something asks for the cache.

    Source: transformers `trainer.py` 4.57.6, 5.0.0, 5.23.0 and `modeling_layers.py`; run on 4.57.6 and 5.23.0.
    """
    script = script_of(facts)
    asked = [
        (f"{a.target} = True", a.site)
        for a in (() if script is None else script.assignments)
        # Behind the trainer it is switched on again, to generate.
        if a.target.endswith("config.use_cache") and a.value is True and not 0 < request.trainer.order < a.order
    ]
    if request.load is not None and request.load.call.seen("use_cache") is True:
        asked.append(("use_cache=True in from_pretrained", request.load.site))
    if asked and _checkpointing(script, request):
        for what, site in asked:
            yield _cache(facts, what, site)


def _checkpointing(script: Script | None, request: TrainRequest) -> bool:
    if calls_named(script, ".gradient_checkpointing_enable"):
        return True
    return request.settings is not None and checkpoints(request.settings)


def _cache(facts: Facts, what: str, site: Site | None) -> Finding:
    version = installed_version(facts, "transformers")
    return Finding(
        "{what} together with gradient checkpointing: transformers {transformers} switches the cache off by "
        "itself. Nothing breaks; set it False to say what happens",
        {"what": what, "transformers": str(version)},
        severity="info",
        site=site,
        fixes=(Advice("Set model.config.use_cache = False while training"),),
    )


@check("QD626", needs=["packages", "gpus"], since="0.1")
def eight_bit_optimizer_without_gpu(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """An 8-bit optimizer of bitsandbytes on a machine without a GPU.

    With bitsandbytes 0.48.2 the first step stops: `RuntimeError: All input tensors need to be on the same GPU, but
    found some tensors to not be on a GPU`. With 0.50.2 they work on CPU (both run); which release in between brought it
    is not known, and is not judged.

    Fix: `optim="adamw_torch"` on CPU, or bitsandbytes 0.50.2.

    Source: run on bitsandbytes 0.48.2 and 0.50.2.
    """
    if request.settings is None or facts.gpus:
        return
    optimizer = literal(request.settings.get("optim"))
    if optimizer is None or "8bit" not in optimizer:
        return
    version = installed_version(facts, "bitsandbytes")
    if at_least(version, "0.48.3"):
        return
    yield Finding(
        "optim={optimizer!r} needs a GPU with bitsandbytes {bitsandbytes}, and there is none: the first step stops with "
        "'All input tensors need to be on the same GPU'. Pass optim='adamw_torch'",
        {"optimizer": optimizer, "bitsandbytes": str(version)},
        severity="error",
        site=request.settings.site,
        fixes=(TrainSetting("optim", "adamw_torch", applicability="unsafe", site=request.settings.site),),
    )


CHECKS: tuple[Check, ...] = (
    evaluation_without_an_eval_set,
    best_model_without_matching_strategies,
    cache_with_gradient_checkpointing,
    eight_bit_optimizer_without_gpu,
)
