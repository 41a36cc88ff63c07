"""QD6: fp16 and bf16 in the training arguments, and the card."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from qlora_checks.common import at_least, installed_version, nvidia, without_bfloat16
from qlora_checks.runs import by_trl, decides_dtype, is_true
from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, Fix, TrainSetting
from qlora_doctor.registry import Check, check
from qlora_doctor.request import TrainRequest
from qlora_doctor.source import Call


@check("QD621", since="0.1")
def fp16_and_bf16_together(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """`fp16=True` and `bf16=True` in the same training arguments.

    TrainingArguments refuses: `ValueError: At most one of fp16 and bf16 can be True, but not both` (run on 5.23.0; the
    same since bf16 exists). The full-eval pair (`fp16_full_eval`, `bf16_full_eval`) likewise.

    Silent where one of them is decided when the script runs (`bf16=torch.cuda.is_bf16_supported()`).

    Fix: drop the one that does not fit the card: bfloat16 needs capability 8.0 (RTX 30, A100); older cards take fp16.

    Source: transformers `training_args.py`.
    """
    if request.settings is None:
        return
    for fp16, bf16 in (("fp16", "bf16"), ("fp16_full_eval", "bf16_full_eval")):
        # Rare words: where arguments may come from elsewhere, only what is written counts.
        if fp16 == "fp16_full_eval" and not {fp16, bf16} <= request.settings.arguments.keys():
            continue
        if request.settings.get(fp16) is not True or request.settings.get(bf16) is not True:
            continue
        old = without_bfloat16(facts)
        wrong, right = (bf16, fp16) if old else (fp16, bf16)
        seen = bool(nvidia(facts))
        yield Finding(
            "{fp16}=True and {bf16}=True exclude each other: TrainingArguments stops with 'At most one of fp16 and bf16 "
            "can be True'. Keep {right} and drop {wrong} ({why})",
            {
                "fp16": fp16,
                "bf16": bf16,
                "right": right,
                "wrong": wrong,
                "why": f"{', '.join(old)} has no bfloat16"
                if old
                else "the GPUs here have bfloat16"
                if seen
                else "bfloat16 does not overflow; cards before the RTX 30 need fp16",
            },
            severity="error",
            site=request.settings.site,
            fixes=(_without(request.settings, wrong, seen),),
        )


def _without(settings: Call, name: str, seen: bool) -> TrainSetting:
    # Where more arguments may come from elsewhere (a settings file), only a word that stays says that it is off.
    applicability: Literal["safe", "unsafe"] = "safe" if seen else "unsafe"
    if settings.open:
        return TrainSetting(name, False, applicability=applicability, site=settings.site)
    return TrainSetting(name, drop=True, applicability=applicability, site=settings.site)


@check("QD622", needs=["gpus", "packages"], wants=["environ"], since="0.1", requires=["QD621"])
def bf16_training_without_bfloat16(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """`bf16=True` on GPUs without bfloat16 units (capability below 8.0: T4, V100, RTX 20, GTX).

    The Trainer asks torch, which counts emulation as support (read in 2.13), so it is accepted; every bfloat16
    multiplication then runs emulated, without tensor cores. (An older torch says no, and the arguments are refused.) A
    warning. TRL's configs (SFTConfig from 0.20 on) take `bf16=True` by themselves unless `fp16=True` or `bf16=False` is
    given, so they are judged without the word as well.

    Silent where the script chooses by the card or by a flag for the precision (`bf16=torch.cuda.is_bf16_supported()`).

    On a machine without any GPU TrainingArguments raises `ValueError: Your setup doesn't support bf16/gpu` unless
    `use_cpu=True` is given (run on 5.23.0): that is the machine's doing and not the script's, and is information.

    Fix: `fp16=True` in its place, with the adapters in float32 (peft's default). Not for TRL 0.26 and newer on a
    quantised model: it makes the adapters bfloat16, which `fp16=True` cannot scale; there only transformers' Trainer
    trains in float16.

    Source: transformers `training_args.py` and `utils/import_utils.py` (4.44.2 to 5.23.0); torch `cuda/__init__.py`,
    is_bf16_supported; trl `trainer/sft_config.py` 0.20.0, `trainer/base_config.py` 0.29.0 and 1.16.0.
    """
    settings, old = request.settings, without_bfloat16(facts)
    if settings is None or (facts.gpus and not old) or is_true(settings, "use_cpu") or is_true(settings, "no_cuda"):
        return
    if decides_dtype(request.when):
        return
    given = settings.get("bf16")
    by_default = given is None and _trl_prefers_bf16(facts, settings)
    if given is not True and not by_default:
        return
    what = (
        "bf16=True" if given is True else f"{settings.function.rpartition('.')[2]} trains in bf16 unless told otherwise"
    )
    if old:
        yield Finding(
            "{what}, but {gpus} has no bfloat16 units: it runs emulated, several times slower than float16. {way}",
            {"what": what, "gpus": list(old), "way": _way_to_float16(request)},
            severity="warning",
            site=settings.site,
            fixes=_float16(request, settings, by_default),
        )
    else:
        yield Finding(
            "{what}, and this machine has no GPU: TrainingArguments stops with 'Your setup doesn't support bf16/gpu'. "
            "To train on the CPU, pass use_cpu=True as well",
            {"what": what},
            severity="info",
            site=settings.site,
            fixes=(Advice("to train on the CPU, pass use_cpu=True"),),
        )


def _trl_prefers_bf16(facts: Facts, settings: Call) -> bool:
    if not settings.function.startswith("trl.") or settings.get("fp16") is True:
        return False
    return at_least(installed_version(facts, "trl"), "0.20")


def _way_to_float16(request: TrainRequest) -> str:
    if by_trl(request):
        return "TRL makes the adapters bfloat16, so use transformers' Trainer with fp16=True on this card"
    return "Pass fp16=True in its place"


def _float16(request: TrainRequest, settings: Call, by_default: bool) -> tuple[Fix, ...]:
    if by_trl(request):
        return (Advice("On this card use transformers' Trainer with fp16=True"),)
    replaces = "" if by_default else "bf16"
    return (TrainSetting("fp16", True, replaces=replaces, applicability="unsafe", site=settings.site),)


CHECKS: tuple[Check, ...] = (fp16_and_bf16_together, bf16_training_without_bfloat16)
