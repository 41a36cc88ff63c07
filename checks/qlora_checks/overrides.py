"""QD6: what a script overrides or hands to the Trainer, and how the installed Trainer calls it."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.common import at_least, installed_version
from qlora_checks.runs import by_trl, positional, script_of, takes_images
from qlora_doctor.errors import UnknownArgument
from qlora_doctor.facts import Facts, Unknown
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, Edit, Fix, SourceEdit, TrainSetting
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests, TrainRequest
from qlora_doctor.source import Call, ClassDefinition, Dotted, Method, Script

# Method, the transformers that first passes one argument more, its name, how many parameters it then needs.
_PASSED = (
    ("compute_loss", "4.46", "num_items_in_batch", 4, "unexpected keyword argument 'num_items_in_batch'"),
    ("training_step", "4.46", "num_items_in_batch", 4, "takes 3 positional arguments but 4 were given"),
    ("log", "4.47", "start_time", 3, "takes 2 positional arguments but 3 were given"),
)


@check("QD631", needs=["packages", "script"], since="0.1")
def trainer_override_takes_too_little(facts: Facts, request: Requests) -> Iterator[Finding]:
    """A Trainer subclass overrides a method with the parameters of an older transformers.

    - `compute_loss`: since 4.46 the Trainer passes `num_items_in_batch=` by keyword. An override that takes only
      `(model, inputs, return_outputs=False)` stops the first step: `TypeError: ... got an unexpected keyword argument
      'num_items_in_batch'` (run on 4.57.6 and 5.23.0).
    - `training_step`: since 4.46 it gets a third argument by position (run on 5.23.0).
    - `log`: since 4.47 it gets `start_time` by position at every log.

    Silent where the override takes `**kwargs` (compute_loss), `*args` (the others), or the argument itself.

    Fix: add `num_items_in_batch=None` to the parameters. An override that then ignores it is right with
    `gradient_accumulation_steps=1`.

    Source: transformers `trainer.py` 4.45.2, 4.46.0, 4.46.3, 4.47.1, 4.57.6, 5.0.0, 5.23.0.
    """
    script = facts.script
    version = installed_version(facts, "transformers")
    used = {t.subclass for t in request.trains}
    for trainer in _trainers(script):
        for method in trainer.methods:
            for name, since, parameter, count, error in _PASSED:
                if method.name != name or _takes(method, parameter, count):
                    continue
                if not _passes(facts, name, parameter, at_least(version, since)):
                    continue
                yield Finding(
                    "{trainer}.{method} does not take {parameter}, which the Trainer of transformers {transformers} "
                    "passes: TypeError, {error!r}. Add {parameter}=None to its parameters",
                    {
                        "trainer": trainer.name,
                        "method": name,
                        "parameter": parameter,
                        "transformers": str(version),
                        "error": error,
                    },
                    severity="error" if not request.trains or trainer.name in used else "warning",
                    site=method.site or trainer.site,
                    fixes=_add_parameter(method, parameter),
                )


def _trainers(script: Script) -> Iterator[ClassDefinition]:
    names: set[str] = set()
    for definition in script.classes:
        for base in definition.bases:
            short = base.rpartition(".")[2]
            library = base.startswith(("transformers.", "trl.")) and short.endswith("Trainer")
            if library or base in names or short in names:
                names.add(definition.name)
                yield definition
                break


def _passes(facts: Facts, method: str, parameter: str, by_version: bool) -> bool:
    """Whether the Trainer passes the argument: as the installed Trainer's own method says, else by its version."""
    installed = facts.state("installed")
    own = None if isinstance(installed, Unknown) else installed.signatures.get(f"transformers.Trainer.{method}")
    return by_version if own is None else parameter in own.parameters


def _takes(method: Method, parameter: str, count: int) -> bool:
    parameters = method.parameters
    if parameter in parameters:
        return True
    if method.name == "compute_loss":
        return "**" in parameters or any(p.startswith("**") for p in parameters)
    stars = any(p.startswith("*") and not p.startswith("**") for p in parameters)
    return stars or len([p for p in parameters if not p.startswith("*")]) >= count


def _add_parameter(method: Method, parameter: str) -> tuple[Fix, ...]:
    site = method.site
    place = None if site is None else site.spans.get("parameters")
    text = f"{parameter}=None"
    if site is None or place is None or not site.sha256:
        return (Advice(f"Add {text} to the parameters of {method.name}"),)
    edit = Edit(place[1], place[1], f", {text}")
    return (SourceEdit(site.path, site.sha256, (edit,), what=f"add {text} to {method.name}", cell=site.cell),)


@check("QD632", since="0.1")
def columns_dropped_before_the_collator(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """A vision-language model is trained with a collator of the script's own on raw rows, and `remove_unused_columns`
    is left True.

    The Trainer drops every column that is not a parameter of the model's forward *before* the collator runs. Rows such
    as `{"image", "messages"}` have none left: `ValueError: No columns in the dataset match the model's forward method
    signature`; of a list or a torch Dataset the collator gets empty rows and fails with KeyError; with a `labels`
    column it gets that alone. (Run on 5.23.0 with LLaVA and LoRA.)

    Only where the rows go from `load_dataset` to the Trainer unchanged: a dataset that was mapped to `input_ids` and
    `pixel_values` passes, and is not judged. TRL's trainers keep the raw columns of image data themselves.

    Fix: `remove_unused_columns=False`.

    Source: transformers `trainer.py`, _remove_unused_columns; run on 5.23.0.
    """
    if by_trl(request) or request.load is None or request.settings is None or not takes_images(request.load):
        return
    if positional(request.trainer) or request.settings.get("remove_unused_columns", True) is not True:
        return
    if not _own_collator(request.trainer, script_of(facts)) or not _raw(request.trainer):
        return
    yield Finding(
        "The collator of this script gets rows without their columns: remove_unused_columns is True, and the Trainer "
        "drops what is not a parameter of {model}'s forward (images, messages, text) before it. Pass "
        "remove_unused_columns=False",
        {"model": request.load.model_or},
        severity="error",
        site=request.settings.site,
        fixes=(TrainSetting("remove_unused_columns", False, site=request.settings.site),),
    )


def _own_collator(trainer: Call, script: Script | None) -> bool:
    value = trainer.arguments.get("data_collator")
    name = value.name if isinstance(value, Dotted) else value.function if isinstance(value, Call) else ""
    return bool(name) and script is not None and not script.imports_module(name.partition(".")[0]) and "." not in name


def _raw(trainer: Call) -> bool:
    try:
        value = trainer.get("train_dataset")
    except UnknownArgument:
        return False
    return isinstance(value, Call) and value.function.rpartition(".")[2] == "load_dataset"


CHECKS: tuple[Check, ...] = (trainer_override_takes_too_little, columns_dropped_before_the_collator)
