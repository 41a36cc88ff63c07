"""QD1: arguments that the installed versions renamed, moved or removed."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.api import SETTINGS
from qlora_checks.renames import findings_of
from qlora_doctor.facts import Facts, Unknown
from qlora_doctor.finding import Finding
from qlora_doctor.registry import Check, check
from qlora_doctor.request import LoadRequest, Requests, TrainRequest
from qlora_doctor.source import Call

_LOADERS = ("transformers.", "peft.AutoPeft")
# These take settings under names of their own and translate them for the transformers they ship with.
_OWN_NAMES = ("axolotl.", "swift.")
# LLaMA-Factory has fields of its own for what transformers dropped and its users still write.
_FACTORY = ("overwrite_output_dir",)


@check("QD120", needs=["packages"], wants=["installed"], since="0.1")
def outdated_load_argument(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """An argument of `from_pretrained` that the installed transformers renamed or removed, or does not have yet.

    In transformers 5 what `from_pretrained` does not know goes to the model's constructor, so `load_in_4bit=` (also as
    False), `use_auth_token=`, `resume_download=` and `use_flash_attention_2=` are a TypeError after the download has
    been paid for: an error. What is only deprecated (`torch_dtype=` from 4.56, `load_in_4bit=` from 4.38) is a note. A
    name that is newer than the installed version (`dtype=` before 4.56) is an error too, for the same reason.

    Versions are those of the wheels that were opened (4.36 to 5.23), each removal was run on 5.23. Code that tests the
    version, or catches the failure, is not judged.

    Fix: the name of the installed version with the value as it stands; `load_in_4bit=True` becomes a
    BitsAndBytesConfig, together with the `bnb_4bit_*` arguments beside it.
    """
    if request.call.function.startswith(_LOADERS) and not tests_versions(request.when):
        yield from findings_of(facts, request.call, "load")


@check("QD121", needs=["packages"], wants=["installed"], since="0.1")
def outdated_training_argument(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """An argument of the training arguments or of the trainer that the installed versions renamed, moved or removed.

    `TrainingArguments(evaluation_strategy=...)`, `Trainer(tokenizer=...)`, `SFTTrainer(max_seq_length=...)` and the like
    are a TypeError where the name is gone: an error. Where it is only deprecated it is a note. What the installed source
    says of its own fields comes before the table; the table knows what took the place, and what the new name means
    (`warmup_steps=0.1` is a ratio in transformers 5).

    Versions are those of the wheels that were opened (transformers 4.36 to 5.23, TRL 0.8 to 1.16); most were run on
    5.23 and 1.16. A subclass with a constructor of its own, code that tests the version, and the settings of axolotl and
    ms-swift (which translate names themselves) are not judged.

    Fix: the new name with the value as it stands, safe where the meaning is the same.
    """
    if tests_versions(request.when) or request.trainer.function.startswith(_OWN_NAMES):
        return
    if request.settings is not None:
        factory = request.trainer.function.startswith("llamafactory.")
        for finding in findings_of(facts, request.settings, "settings"):
            if not (factory and finding.evidence["name"] in _FACTORY):
                yield finding
    if not own_constructor(facts, request):
        yield from findings_of(facts, request.trainer, "trainer", request.settings)


@check("QD122", needs=["packages", "script"], wants=["installed"], since="0.1")
def outdated_argument(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """An outdated argument in a call that could not be followed to a load or a training run.

    Training arguments that a helper function builds, or a trainer in a class that nothing here calls, are not part of
    any run that can be seen. Their arguments are judged all the same, by the table that QD121 uses. So are those of
    `push_to_hub` of a model, adapter, tokenizer or processor, which fails when the training is over.
    """
    judged = {place_of(c) for r in requests.trains for c in (r.settings, r.trainer, r.lora) if c is not None}
    subclasses = {c.name for c in facts.script.classes}
    for call in facts.script.calls:
        short = call.function.rpartition(".")[2]
        if place_of(call) in judged or short in subclasses or call.site is None:
            continue
        if not call.function.startswith(("transformers.", "trl.", "accelerate.")) and not _uploads(call):
            continue
        judged.add(place_of(call))
        yield from findings_of(facts, call, "settings" if short in SETTINGS else "trainer")


def _uploads(call: Call) -> bool:
    """Whether a call is transformers' `push_to_hub` of an object that it or PEFT made (a trainer has its own)."""
    return (
        call.function == ".push_to_hub"
        and call.origin.startswith(("transformers.", "peft."))
        and not call.origin.endswith("Trainer")
    )


def place_of(call: Call) -> tuple[str, int | None, int] | None:
    """What tells one call of a script from another."""
    site = call.site
    return None if site is None else (site.path, site.cell, site.start)


def tests_versions(when: str) -> bool:
    """Whether a branch is taken after a look at a version or a signature."""
    return any(word in when for word in ("version", "signature", "hasattr", "__init__", "is_transformers"))


def own_constructor(facts: Facts, request: TrainRequest) -> bool:
    """Whether the trainer is a subclass in the script whose `__init__` may do what it likes with the arguments.

    One that calls `super().__init__` is followed: the request holds what that call passes.
    """
    if not request.subclass:
        return False
    script = facts.state("script")
    if isinstance(script, Unknown):
        return True
    for definition in script.classes:
        if definition.name == request.subclass.rpartition(".")[2]:
            return any(method.name == "__init__" and not method.calls_super for method in definition.methods)
    return True


CHECKS: tuple[Check, ...] = (outdated_load_argument, outdated_training_argument, outdated_argument)
