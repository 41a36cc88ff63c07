"""For the authors of checks: facts and requests in a line, and the proof that a fix removes its finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_doctor.facts import DataFacts, Distribution, Facts, Gpu, Interpreter, Packages, RowFault
from qlora_doctor.finding import Finding
from qlora_doctor.judge import Case, judge
from qlora_doctor.registry import Check
from qlora_doctor.repair.simulate import facts_after, requests_after
from qlora_doctor.request import LoadRequest, Requests, TrainRequest
from qlora_doctor.source import Call, Script, Value

RTX_3060 = Gpu("NVIDIA GeForce RTX 3060", "8.6", 12 * 2**30, 12 * 2**30)
T4 = Gpu("Tesla T4", "7.5", 15 * 2**30, 15 * 2**30)


def facts(packages: Mapping[str, str] | None = None, python: str = "3.11.7", **parts: Any) -> Facts:
    """Facts with these packages installed (name to version) and these parts; all else is unknown."""
    given: dict[str, Any] = {"interpreter": Interpreter(python)}
    if packages is not None:
        given["packages"] = Packages(tuple(Distribution(n, v, location="site-packages") for n, v in packages.items()))
    return Facts(**{**given, **parts})


def bnb(**arguments: Value) -> Call:
    """A BitsAndBytesConfig call; 4-bit NF4 with bfloat16 compute where nothing else is said."""
    from qlora_doctor.source import Dotted

    default: dict[str, Value] = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": Dotted("torch.bfloat16"),
        "bnb_4bit_use_double_quant": True,
    }
    return Call("transformers.BitsAndBytesConfig", arguments={**default, **arguments})


def load(
    model: str | None = "Qwen/Qwen3-0.6B",
    cls: str = "transformers.AutoModelForCausalLM",
    quantization_config: Value = "nf4",
    open: str = "",
    **arguments: Value,
) -> LoadRequest:
    """A load request, 4-bit where nothing else is said. `quantization_config=None` leaves it out."""
    given: dict[str, Value] = {} if model is None else {"pretrained_model_name_or_path": model}
    if quantization_config is not None:
        given["quantization_config"] = bnb() if quantization_config == "nf4" else quantization_config
    return LoadRequest(Call(f"{cls}.from_pretrained", arguments={**given, **arguments}, open=open))


def train(
    trainer: str = "transformers.Trainer",
    settings: Mapping[str, Value] | None = None,
    lora: Mapping[str, Value] | None = None,
    load: LoadRequest | None = None,
    settings_class: str = "transformers.TrainingArguments",
    **more: Any,
) -> TrainRequest:
    """A train request with these training arguments and this LoRA configuration."""
    return TrainRequest(
        trainer=Call(trainer, arguments=more.pop("trainer_arguments", {})),
        settings=None if settings is None else Call(settings_class, arguments=settings),
        lora=None if lora is None else Call("peft.LoraConfig", arguments=lora),
        load=load,
        **more,
    )


def data(*faults: tuple[str, int], rows: int = 100, **more: Any) -> DataFacts:
    """Training data of `rows` rows in which each kind of fault has so many rows: `data(("duplicate", 3))`."""
    found = tuple(RowFault(kind, "d.jsonl", n + 1, "", f"{kind} {n}") for kind, count in faults for n in range(count))
    given: dict[str, Any] = {"files": ("d.jsonl",), "format": "alpaca", "rows": rows, "faults": found}
    return DataFacts(**{**given, "counts": dict(faults), **more})


def findings(
    check: Check,
    facts: Facts,
    *requests: LoadRequest | TrainRequest,
    script: Script | None = None,
) -> tuple[Finding, ...]:
    """What one check finds.

    Raises:
        AssertionError: the check crashed or found something unknown (use `outcome` to test that).
    """
    verdict = judge([check], facts, [_case(requests, script)])
    word, reason = verdict.outcomes[0].outcome, verdict.outcomes[0].reason
    assert word not in ("crashed", "unknown"), f"{check.code} {word}: {reason}"
    return verdict.findings


def outcome(check: Check, facts: Facts, *requests: LoadRequest | TrainRequest, script: Script | None = None) -> str:
    """How one check's run ends: `ok`, `found`, `unknown`, `skipped` or `crashed`."""
    return judge([check], facts, [_case(requests, script)]).outcomes[0].outcome


def _case(requests: Sequence[LoadRequest | TrainRequest], script: Script | None) -> Case:
    loads = tuple(r for r in requests if isinstance(r, LoadRequest))
    trains = tuple(r for r in requests if isinstance(r, TrainRequest))
    return Case(Requests(loads, trains), script)


def assert_fixed_by(check: Check, facts: Facts, *requests: LoadRequest | TrainRequest) -> None:
    """Proves that the first fix of each finding, carried out on a simulated world, leaves nothing for the check.

    Raises:
        AssertionError: there is no finding, a finding has no fix, or something is left.
    """
    found = findings(check, facts, *requests)
    assert found, f"{check.code} found nothing to fix"
    for finding in found:
        assert finding.fixes, f"{check.code}: {finding.text} has no fix"
    fixes = tuple(fix for finding in found for fix in finding.fixes if fix.applicability != "display-only")
    case = requests_after(_case(requests, None).requests, fixes)
    after: tuple[LoadRequest | TrainRequest, ...] = (*case.loads, *case.trains)
    left = findings(check, facts_after(facts, fixes), *after)
    assert not left, f"{check.code}: still found after its own fix: {left[0].text}"
