"""QD1: arguments that no version takes: misspelt, or meant for another call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from qlora_checks import tables
from qlora_checks.api import (
    SETTINGS,
    beyond_reading,
    change_of,
    named_arguments,
    nearest,
    own_fields,
    signature_of,
    too_new,
    untaken,
)
from qlora_checks.common import at_least, installed_version
from qlora_checks.outdated import own_constructor, place_of, tests_versions
from qlora_checks.quantization import config_of
from qlora_doctor.facts import Facts, Signature
from qlora_doctor.families import BY_CLASS, family_of
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, Fix, LoadKwarg, TrainSetting
from qlora_doctor.registry import Check, check
from qlora_doctor.request import LoadRequest, Requests, TrainRequest
from qlora_doctor.source import Call

_OPTIONS = ("bnb_4bit_", "llm_int8_")
_FUNCTIONS = ("peft.get_peft_model", "peft.prepare_model_for_kbit_training")
_TARGETS: Mapping[str, Literal["settings", "lora", "trainer"]] = {
    "transformers.TrainingArguments": "settings",
    "transformers.Seq2SeqTrainingArguments": "settings",
    "trl.SFTConfig": "settings",
    "peft.LoraConfig": "lora",
    "transformers.Trainer": "trainer",
    "transformers.Seq2SeqTrainer": "trainer",
    "trl.SFTTrainer": "trainer",
    "peft.get_peft_model": "trainer",
    "peft.prepare_model_for_kbit_training": "trainer",
}


@check("QD125", needs=["packages"], wants=["installed"], since="0.1")
def unknown_load_argument(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """An argument of `from_pretrained` that is misspelt, or that belongs to the tokenizer or the BitsAndBytesConfig.

    `from_pretrained` sets what it does not know on the model's config where that has such an attribute, and passes the
    rest to the model's constructor, which refuses it: `TypeError: Qwen2ForCausalLM.__init__() got an unexpected keyword
    argument 'dtypee'` (run on transformers 5.23), after the download.

    A config has many attributes, so an unknown name is only reported where it can hardly be anything but a known one
    misspelt. `fp16=`, `padding_side=`, `bnb_4bit_*=` and the like are reported for the native families alone: the code
    of a model's own repository may take them.
    """
    if not request.call.function.startswith("transformers.") or request.call.guarded:
        return
    version = installed_version(facts, "transformers")
    data = tables.load("api.toml")
    signature = signature_of(facts, "transformers.PreTrainedModel.from_pretrained")
    known = (*data["from_pretrained"]["names"], *(signature.parameters if signature else ()))
    name_ = request.call.seen("pretrained_model_name_or_path")
    native = request.class_name in BY_CLASS or (isinstance(name_, str) and family_of(name_) is not None)
    for name, value in named_arguments(request.call):
        meant = data["not_for_a_model"].get(name)
        if name in known or name.startswith("_") or (name.startswith(_OPTIONS) and not at_least(version, "5.0")):
            continue
        if name.startswith(_OPTIONS) and request.call.seen("load_in_4bit") is True:
            continue
        fixes: tuple[Fix, ...]
        if meant is not None:
            if not native:
                continue
            fixes = (
                LoadKwarg(name, drop=True, applicability="unsafe", site=request.site),
                Advice(str(meant)),
            )
        else:
            near, clear = nearest(name, known)
            if not clear:
                continue
            meant = f"{near} is meant"
            fixes = (LoadKwarg(near, value, replaces=name, site=request.site),)
        yield Finding(
            "{class_name}.from_pretrained: {name}= is passed on to the model, which refuses it with a TypeError; "
            "{meant}",
            evidence={"class_name": request.class_name, "name": name, "meant": meant},
            severity="error",
            site=request.site,
            fixes=fixes,
        )


@check("QD126", needs=["packages", "installed"], since="0.1")
def unknown_training_argument(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """An argument that the installed TrainingArguments, SFTConfig, LoraConfig or trainer does not have.

    Their fields are read from the installed source, so this needs no table and does not grow stale. A dataclass refuses
    an unknown name with a TypeError: an error. The nearest field is named; it is a safe fix only where the spelling
    leaves no doubt. Names that an earlier or later version has are explained by QD121.

    Not judged: a class that takes `**kwargs`, a subclass in the script with a constructor of its own or with a base
    that cannot be read. The fields that a subclass adds are its own.
    """
    if tests_versions(request.when) or request.source == "config":
        return
    if request.settings is not None and not beyond_reading(facts, request.settings):
        yield from _unknown(facts, request.settings, "settings")
    if request.lora is not None:
        yield from _unknown(facts, request.lora, "lora")
    if not own_constructor(facts, request):
        yield from _unknown(facts, request.trainer, "trainer")


@check("QD128", needs=["packages", "installed", "script"], since="0.1")
def unknown_argument(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """An argument that the installed function does not have, in a call that could not be followed to a training run.

    Training arguments and LoRA configurations that a helper builds, and the two functions of PEFT that prepare a model
    (`get_peft_model`, `prepare_model_for_kbit_training`). A TypeError, as in QD126, and judged the same way.
    """
    judged = {place_of(c) for r in requests.trains for c in (r.settings, r.trainer, r.lora) if c is not None}
    for call in facts.script.calls:
        target = _TARGETS.get(call.function)
        if target is None or place_of(call) in judged or call.site is None or beyond_reading(facts, call):
            continue
        judged.add(place_of(call))
        yield from _unknown(facts, call, target)


def _unknown(facts: Facts, call: Call, target: Literal["settings", "lora", "trainer"]) -> Iterator[Finding]:
    signature = signature_of(facts, call.function)
    if signature is None or call.guarded:
        return
    short, own = call.function.rpartition(".")[2], own_fields(facts, call)
    for name in untaken(call, signature):
        if name in own:
            continue
        if change_of(call, name, "call") or too_new(facts, call, name, "call"):
            continue
        meant = synonym(short, name)
        near, clear = (meant, False) if meant in signature.parameters else nearest(name, signature.parameters)
        fix: Fix
        if call.function in _FUNCTIONS:
            fix = Advice(f"write {near}=" if near else f"drop {name}=")
            yield _untaken(facts, call, signature, name, near, fix)
            continue
        fix = TrainSetting(name, drop=True, target=target, applicability="unsafe", site=call.site)
        if near and near not in call.arguments:
            fix = TrainSetting(
                near,
                call.arguments[name],
                replaces=name,
                target=target,
                applicability="safe" if clear else "unsafe",
                site=call.site,
            )
        yield _untaken(facts, call, signature, name, near, fix)


def _untaken(facts: Facts, call: Call, signature: Signature, name: str, near: str, fix: Fix) -> Finding:
    package = call.function.partition(".")[0]
    return Finding(
        "{function}: the installed {package} {version} has no argument {name}=, so this is a TypeError; {what}",
        evidence={
            "function": call.function.rpartition(".")[2],
            "package": package,
            "version": str(facts.version(package) or ""),
            "name": name,
            "what": f"{near} is meant" if near else "drop it",
            "source": signature.source,
        },
        severity="error",
        site=call.site,
        fixes=(fix,),
    )


def synonym(function: str, name: str) -> str:
    """The argument that is meant by a name that no version has, or ""."""
    for row in tables.rows("api.toml", "synonym"):
        group = SETTINGS if row["calls"] == "settings" else row["calls"]
        if function in group and name in row["names"]:
            return str(row["names"][name])
    return ""


@check("QD127", wants=["installed"], since="0.1")
def unknown_quantization_argument(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """An argument of BitsAndBytesConfig that it does not have.

    BitsAndBytesConfig takes `**kwargs` and drops what it does not know, with a log line at the level of info that nobody
    sees (`BitsAndBytesConfig.__init__`, run on transformers 5.23). So `bnb_4bit_compute_dtyp=torch.bfloat16` leaves the
    compute dtype at float32.

    A warning, because what was meant does not happen. The fix renames it to the nearest field.
    """
    config = config_of(request)
    if config is None:
        return
    signature = signature_of(facts, "transformers.BitsAndBytesConfig")
    fields = signature.parameters if signature else tuple(tables.load("api.toml")["bitsandbytes_config"]["names"])
    for name, value in named_arguments(config):
        if name in fields or name in ("quant_method", "_load_in_4bit", "_load_in_8bit"):
            continue
        near, clear = nearest(name, fields)
        site = request.site
        fix = LoadKwarg(name, drop=True, target="quantization", site=site)
        if near and near not in config.arguments:
            fix = LoadKwarg(
                near,
                value,
                replaces=name,
                target="quantization",
                applicability="safe" if clear else "unsafe",
                site=site,
            )
        yield Finding(
            "BitsAndBytesConfig has no argument {name}= and drops it without a word; {what}",
            evidence={"name": name, "what": f"{near} is meant" if near else "it has no effect, so drop it"},
            severity="warning",
            site=config.site or request.site,
            fixes=(fix,),
        )


CHECKS: tuple[Check, ...] = (
    unknown_load_argument,
    unknown_training_argument,
    unknown_argument,
    unknown_quantization_argument,
)
