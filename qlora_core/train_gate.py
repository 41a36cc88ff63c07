"""The gate of a training run: the doctor's checks on the trainer that is about to be made and on the data, before a load.

The load itself goes through its own gate (`gate.py`) when it comes to that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qlora_core.errors import LoadBlocked
from qlora_core.gate import fix_command
from qlora_core.plan import make_plan
from qlora_core.report import Change, LoadReport
from qlora_core.values import to_python, to_value
from qlora_doctor.facts import Facts
from qlora_doctor.families import Family
from qlora_doctor.finding import Finding, Outcome
from qlora_doctor.fix import Advice, TrainSetting
from qlora_doctor.judge import Case, Verdict, judge
from qlora_doctor.registry import Check, installed_checks, matches
from qlora_doctor.repair.simulate import request_after
from qlora_doctor.request import LoadRequest, Requests, TrainRequest
from qlora_doctor.source import Call, show

ROUNDS = 5
OURS = "qlora_core.Trainer"
IMPORTS = ("accelerate", "bitsandbytes", "datasets", "peft", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class Passed:
    """What the gate let through: the request after its changes, and what it has to say.

    `refused` is only filled where nothing is raised: what would stop the run.
    """

    request: TrainRequest
    changes: tuple[Change, ...] = ()
    warnings: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """The training arguments as Python objects."""
        return _python(self.request.settings)

    def lora(self) -> dict[str, Any]:
        """The LoRA arguments as Python objects."""
        return _python(self.request.lora)


def load_request(name: str, bits: int, dtype: str, family: Family | None, **kwargs: Any) -> LoadRequest:
    """The load that `load_quantized` will ask for, as the checks see it."""
    plan = make_plan(name, bits, dtype, family, kwargs, LoadReport(name), for_training=True)
    return plan.request(dtype, {"": 0})


def train_request(
    load: LoadRequest, arguments: Mapping[str, Any], lora: Mapping[str, Any], trainer: Mapping[str, Any]
) -> TrainRequest:
    """The run as the checks see it: our Trainer is one of transformers', on a model that was given adapters."""
    return TrainRequest(
        Call("transformers.Trainer", arguments={k: to_value(v) for k, v in trainer.items()}),
        Call("transformers.TrainingArguments", arguments={k: to_value(v) for k, v in arguments.items()}),
        Call("peft.LoraConfig", arguments={k: to_value(v) for k, v in lora.items()}),
        load,
        prepared=False,
        peft=True,
        subclass=OURS,
        source="api",
    )


def with_evaluation(request: TrainRequest) -> TrainRequest:
    """The same run with rows to evaluate on."""
    arguments = {**request.trainer.arguments, "eval_dataset": "the evaluation rows"}
    return replace(request, trainer=replace(request.trainer, arguments=arguments))


def train_checks(
    switched_off: Sequence[str], *, all_of_them: bool = False
) -> tuple[tuple[Check, ...], Sequence[Outcome]]:
    """The installed checks that concern training and data; all that need no script where nothing is loaded afterwards.

    Raises:
        UsageError: a switched-off word that is a code of no check.
    """
    available = installed_checks()
    for word in switched_off:
        available.find(word)
    chosen = tuple(
        c
        for c in available.checks
        if not c.per_script
        and (all_of_them or c.judges in ("train", "requests") or "data" in c.needs)
        and not any(matches(c, word) for word in switched_off)
    )
    return chosen, available.broken


def gather(load: LoadRequest, checks: Sequence[Check], *, offline: bool) -> Facts:
    """The facts that `checks` need, of this process; those of the data come from the audit."""
    from qlora_doctor import examine

    wanted = {need for check in checks for need in (*check.needs, *check.wants)} - {"data"}
    wanted |= {"packages", "gpus", "torch", "host"}
    return examine.gather(examine.Question(offline=offline), wanted, [Case(Requests(loads=(load,), imports=IMPORTS))])


def gate(
    request: TrainRequest,
    facts: Facts,
    checks: Sequence[Check],
    broken: Sequence[Outcome] = (),
    *,
    mode: str = "fix",
    strict: bool = False,
    raises: bool = True,
) -> Passed:
    """Judges the run and folds the fixes of its training arguments in.

    A fix is made where it is safe, or where an error would stop the run; others stay words. `mode` "report" changes
    and blocks nothing. `raises=False` puts what would block into `refused`.

    Raises:
        LoadBlocked: an error is left, or (`strict`) a check is unknown or crashed.
    """
    changes: list[Change] = []
    tried: set[tuple[str, str]] = set()
    verdict = _judge(checks, facts, request)
    for _ in range(ROUNDS if mode == "fix" else 0):
        chosen = _choose(verdict, tried)
        if not chosen:
            break
        for finding, fix in chosen:
            changes.append(_change(finding, fix, request))
            request = request_after(request, (fix,))
        verdict = _judge(checks, facts, request)
    errors = [f for f in verdict.findings if f.severity == "error"] if mode == "fix" else []
    doubts = [o for o in (*verdict.outcomes, *broken) if o.outcome in ("crashed", *(["unknown"] if strict else []))]
    said = [f"{o.code} {o.name}: {o.outcome} ({o.reason})" for o in doubts]
    if raises and (errors or (strict and doubts)):
        assert request.load is not None
        # What only a person can repair, data above all, has no command.
        repairs = any(not isinstance(fix, (Advice, TrainSetting)) for f in errors for fix in f.fixes)
        command = fix_command(request.load) if repairs else ""
        raise LoadBlocked(errors, command, reasons=said if strict else (), what="training")
    left = [f"{f.code}: {f.text}" for f in verdict.findings if f not in errors and f.severity != "info"]
    return Passed(request, tuple(changes), (*left, *said), tuple(f"{f.code}: {f.text}" for f in errors))


def _judge(checks: Sequence[Check], facts: Facts, request: TrainRequest) -> Verdict:
    loads = (request.load,) if request.load is not None else ()
    return judge(checks, facts, [Case(Requests(loads=loads, trains=(request,), imports=IMPORTS))])


def _choose(verdict: Verdict, tried: set[tuple[str, str]]) -> list[tuple[Finding, TrainSetting]]:
    chosen: list[tuple[Finding, TrainSetting]] = []
    for finding in verdict.findings:
        for fix in finding.fixes:
            if not isinstance(fix, TrainSetting) or fix.target == "trainer" or fix.applicability == "display-only":
                continue
            if fix.applicability != "safe" and finding.severity != "error":
                continue
            key = (fix.name, "dropped" if fix.drop else show(fix.value))
            if key not in tried and all(fix.name != other.name for _, other in chosen):
                tried.add(key)
                chosen.append((finding, fix))
    return chosen


def _change(finding: Finding, fix: TrainSetting, request: TrainRequest) -> Change:
    call = request.lora if fix.target == "lora" else request.settings
    arguments = {} if call is None else call.arguments
    name = fix.replaces or fix.name
    before = show(arguments[name]) if name in arguments else "not given"
    return Change(finding.code, fix.name, before, "not given" if fix.drop else show(fix.value), finding.text)


def _python(call: Call | None) -> dict[str, Any]:
    return {} if call is None else {name: to_python(value) for name, value in call.arguments.items()}
