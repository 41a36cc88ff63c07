"""The nouns and the runner: facts that are unknown stay unknown, one check's trouble does not end the others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qlora_doctor.errors import NewerSchema, RegistryError, UnknownFact, WireError
from qlora_doctor.facts import Facts, Gpu, Unknown
from qlora_doctor.finding import Finding
from qlora_doctor.fix import KINDS, LoadKwarg, PipRequirement, SourceEdit, fix_from_data, fix_to_data
from qlora_doctor.judge import judge
from qlora_doctor.registry import check
from qlora_doctor.request import LoadRequest
from qlora_doctor.source import Call, Dotted
from qlora_doctor.testing import facts, load
from qlora_doctor.wire import from_data, to_data


def test_reading_an_unknown_part_raises_with_its_reason() -> None:
    with pytest.raises(UnknownFact, match="nvidia-smi timed out"):
        _ = Facts(gpus=Unknown("nvidia-smi timed out")).gpus  # type: ignore[arg-type]


def test_facts_survive_the_round_trip_with_unknown_parts_kept_unknown() -> None:
    given = facts({"torch": "2.13.0"}, gpus=(Gpu("RTX 3060", "8.6"),), driver=Unknown("no NVML"))
    assert from_data(Facts, to_data(given)).to_wire() == given.to_wire()
    assert given.to_wire()["driver"] == {"unknown": "no NVML"}


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"schema": 1, "gpus": [{"name": 3}]}, r"\$\.gpus\[0\]\.name"),
        ({"schema": 1, "gpus": [{}]}, r"'name' is missing"),
        ({"schema": 1, "nonsense": 1}, "unknown key 'nonsense'"),
        ({"schema": True}, r"\$\.schema"),
        ([], "expected an object"),
    ],
)
def test_facts_of_another_shape_are_refused_with_the_place(data: object, place: str) -> None:
    with pytest.raises(WireError, match=place):
        from_data(Facts, data)


def test_facts_of_a_newer_format_are_refused_with_the_way_out() -> None:
    with pytest.raises(NewerSchema, match="update it"):
        from_data(Facts, {"schema": 999})


@pytest.mark.parametrize(
    "fix",
    [
        PipRequirement("bitsandbytes>=0.46.1", applicability="safe"),
        LoadKwarg("dtype", Dotted("torch.bfloat16"), replaces="torch_dtype"),
        LoadKwarg("trust_remote_code", drop=True),
        LoadKwarg("quantization_config", Call("transformers.BitsAndBytesConfig", {"load_in_4bit": True})),
        SourceEdit("a.py", "00", (), "nothing"),
    ],
    ids=lambda fix: fix.title,
)
def test_a_fix_survives_the_round_trip(fix: object) -> None:
    assert fix_from_data(fix_to_data(fix)) == fix  # type: ignore[arg-type]


def test_a_fix_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(WireError, match="kind"):
        fix_from_data({"kind": "magic"})
    assert set(KINDS) >= {"advice", "pip-requirement"}


@check("TST001", since="0.1")
def always_crashes(facts: Facts) -> Iterator[Finding]:
    """A check that raises."""
    raise ZeroDivisionError("boom")
    yield


@check("TST002", needs=["gpus"], since="0.1")
def needs_a_gpu_list(facts: Facts) -> Iterator[Finding]:
    """A check of the GPUs."""
    yield Finding("{count} GPUs", {"count": len(facts.gpus)})


@check("TST003", since="0.1", requires=["TST002"])
def after_the_other(facts: Facts) -> Iterator[Finding]:
    """A check that another makes pointless."""
    yield Finding("never alone")


@check("TST004", since="0.1")
def dtype_of_a_load(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A check of a request."""
    if request.dtype is None:
        yield Finding("{model}: no dtype", {"model": request.model})


def test_a_check_that_raises_is_crashed_and_the_others_run() -> None:
    verdict = judge([always_crashes, needs_a_gpu_list], facts(gpus=()))
    assert [o.outcome for o in verdict.outcomes] == ["crashed", "found"]
    assert "ZeroDivisionError: boom" in verdict.outcomes[0].reason


def test_a_check_whose_fact_is_unknown_is_unknown_and_not_called() -> None:
    verdict = judge([needs_a_gpu_list], facts(gpus=Unknown("driver hangs")))
    assert verdict.outcomes[0].outcome == "unknown"
    assert "driver hangs" in verdict.outcomes[0].reason


def test_a_check_whose_required_check_found_something_is_skipped() -> None:
    verdict = judge([after_the_other, needs_a_gpu_list], facts(gpus=()))
    assert [o.outcome for o in verdict.outcomes] == ["found", "skipped"]


def test_an_argument_that_cannot_be_resolved_is_unknown_and_not_a_finding() -> None:
    from qlora_doctor.judge import Case
    from qlora_doctor.request import Requests

    cases = [Case(Requests(loads=(load(open="**kwargs of main()"),)))]
    verdict = judge([dtype_of_a_load], facts(), cases)
    assert (verdict.outcomes[0].outcome, verdict.findings) == ("unknown", ())


def test_a_check_without_a_docstring_is_refused() -> None:
    def bare(facts: Facts) -> Iterator[Finding]:
        yield from ()

    with pytest.raises(RegistryError, match="docstring"):
        check("TST009", since="0.1")(bare)


def test_a_message_whose_field_the_evidence_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="version"):
        Finding("torch {version}", {})
