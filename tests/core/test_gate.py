"""The gate: what it changes, what it refuses, and that it says so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_core import LoadBlocked, load_quantized
from qlora_core.gate import Passed, gate, set_environment
from qlora_doctor.errors import UnknownFact, UsageError
from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding
from qlora_doctor.fix import EnvVar, LoadKwarg, PipRequirement
from qlora_doctor.registry import Check, check
from qlora_doctor.request import LoadRequest
from qlora_doctor.testing import facts, load


def make(
    code: str,
    finds: Callable[[Facts, LoadRequest], Finding | None],
    needs: tuple[str, ...] = (),
    name: str = "bad_thing",
) -> Check:
    """A check of our own, as a plug-in would bring it."""

    def body(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
        finding = finds(facts, request)
        if finding is not None:
            yield finding

    body.__doc__ = "Finds something."
    body.__name__ = name
    body.__annotations__ = {"request": "LoadRequest"}
    return check(code, needs=needs, since="0.1")(body)


def argument(name: str, bad: Any, good: Any, severity: str = "warning", **fix: Any) -> Callable[..., Finding | None]:
    """Finds `name=bad` and proposes `name=good`."""

    def finds(facts: Facts, request: LoadRequest) -> Finding | None:
        if request.call.arguments.get(name) != bad:
            return None
        return Finding("{name} is bad", {"name": name}, severity, fixes=(LoadKwarg(name, good, **fix),))  # type: ignore[arg-type]

    return finds


WORLD = facts({"transformers": "5.23.0"}, environ={"HF_ENDPOINT": "http://dead.invalid"})


def passed(*checks: Check, request: LoadRequest | None = None, **options: Any) -> Passed:
    return gate(request or load("org/model", a=1), WORLD, checks, **options)


def test_a_safe_change_of_an_argument_is_made_and_listed() -> None:
    result = passed(make("XX001", argument("a", 1, 2)))
    assert result.request.call.arguments["a"] == 2
    (change,) = result.changes
    assert (change.code, change.argument, change.before, change.after, change.why) == (
        "XX001",
        "a",
        "1",
        "2",
        "a is bad",
    )


def test_changes_are_made_in_rounds_until_the_checks_are_quiet() -> None:
    result = passed(make("XX001", argument("a", 1, 2)), make("XX002", argument("a", 2, 3), name="worse"))
    assert result.request.call.arguments["a"] == 3
    assert [c.code for c in result.changes] == ["XX001", "XX002"]


def test_checks_that_undo_each_other_end_and_leave_a_warning() -> None:
    result = passed(make("XX001", argument("a", 1, 2)), make("XX002", argument("a", 2, 1), name="worse"))
    assert len(result.changes) == 2
    assert any("XX001" in w for w in result.warnings)


def test_an_error_without_a_change_blocks_with_the_findings_and_the_command() -> None:
    def finds(facts: Facts, request: LoadRequest) -> Finding:
        return Finding("torch is too old", severity="error", fixes=(PipRequirement("torch>=2.6"),))

    with pytest.raises(LoadBlocked) as caught:
        passed(make("XX001", finds))
    assert [f.code for f in caught.value.findings] == ["XX001"]
    assert caught.value.command == f"qlora-doctor fix --python {sys.executable} --model org/model"
    assert "XX001 torch is too old" in str(caught.value) and caught.value.command in str(caught.value)


def test_other_bits_are_offered_with_their_size_where_they_would_pass() -> None:
    def finds(facts: Facts, request: LoadRequest) -> Finding | None:
        four = request.quantization is not None and request.quantization.bits == 4
        return Finding("no 4-bit here", severity="error") if four else None

    others = {16: load("org/model", quantization_config=None)}
    with pytest.raises(LoadBlocked, match=r"bits=16 \(weights take about 2.00 GiB\)"):
        passed(make("XX001", finds), alternatives=others, sizes={16: 2 * 2**30})


def test_an_argument_change_that_needs_a_word_elsewhere_is_made_here_and_listed() -> None:
    result = passed(make("XX001", argument("a", 1, 2, applicability="unsafe")))
    assert result.request.call.arguments["a"] == 2 and len(result.changes) == 1


def test_a_change_that_is_only_for_display_is_not_made() -> None:
    result = passed(make("XX001", argument("a", 1, 2, applicability="display-only")))
    assert result.request.call.arguments["a"] == 1 and result.warnings == ("XX001: a is bad",)


def test_a_note_changes_an_argument_only_where_that_is_safe() -> None:
    assert passed(make("XX001", argument("a", 1, 2, "info"))).request.call.arguments["a"] == 2
    assert passed(make("XX001", argument("a", 1, 2, "info", applicability="unsafe"))).changes == ()


def environment(name: str, value: str | None) -> Callable[..., Finding | None]:
    def finds(facts: Facts, request: LoadRequest) -> Finding | None:
        if facts.environ.get(name) == value:
            return None
        return Finding("{name} is wrong", {"name": name}, "error", fixes=(EnvVar(name, value),))

    return finds


def test_an_endpoint_travels_as_an_argument_and_not_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    result = passed(make("XX001", environment("HF_ENDPOINT", "http://mirror.invalid")))
    set_environment(result.environ)
    import os

    assert result.endpoint == "http://mirror.invalid" and "HF_ENDPOINT" not in os.environ


def test_a_variable_that_would_come_too_late_blocks_instead_of_pretending(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub  # noqa: F401

    with pytest.raises(LoadBlocked, match="HF_HUB_DISABLE_XET is wrong"):
        passed(make("XX001", environment("HF_HUB_DISABLE_XET", "1")))
    monkeypatch.delitem(sys.modules, "huggingface_hub")
    result = passed(make("XX001", environment("HF_HUB_DISABLE_XET", "1")))
    assert dict(result.environ) == {"HF_HUB_DISABLE_XET": "1"}


def test_reporting_changes_nothing_and_blocks_nothing() -> None:
    result = passed(make("XX001", argument("a", 1, 2, "error")), fix=False)
    assert result.request.call.arguments["a"] == 1 and not result.changes
    assert result.warnings == ("XX001: a is bad",)


def crashes(facts: Facts, request: LoadRequest) -> Finding | None:
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("doubtful", "word"),
    [(make("XX001", crashes), "crashed"), (make("XX001", lambda f, r: None, needs=("driver",)), "nvidia-smi hangs")],
)
def test_a_check_that_cannot_tell_is_a_warning_and_a_block_when_strict(doubtful: Check, word: str) -> None:
    from qlora_doctor.facts import Unknown

    world = WORLD.but(driver=Unknown("nvidia-smi hangs"))
    result = gate(load("org/model"), world, [doubtful])
    assert len(result.warnings) == 1 and word in result.warnings[0]
    with pytest.raises(LoadBlocked, match="XX001"):
        gate(load("org/model"), world, [doubtful], strict=True)


def skip_before_transformers_5() -> None:
    import transformers

    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("before transformers 5 these names skip what they say")


def test_what_the_user_asked_for_is_what_the_checks_judge_and_the_change_reaches_the_load(
    tiny: Callable[..., Path],
) -> None:
    from transformers import BitsAndBytesConfig

    skip_before_transformers_5()
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["vision_tower"])
    loaded = load_quantized(tiny("llava"), quantization_config=config)
    changed = {c.argument for c in loaded.report.changes if c.code.startswith("QD")}
    assert "llm_int8_skip_modules" in changed
    assert type(loaded.model.lm_head).__name__ == "Linear"


def test_the_gate_switched_off_shows_the_failure_that_it_prevents(tiny: Callable[..., Path]) -> None:
    from transformers import BitsAndBytesConfig

    from qlora_core import NotVerified

    skip_before_transformers_5()
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["vision_tower"])
    with pytest.raises(NotVerified, match="vision_tower"):
        load_quantized(tiny("llava"), quantization_config=config, gate="off")


def test_a_tiny_model_passes_the_installed_checks_without_a_change_or_a_doubt(tiny: Callable[..., Path]) -> None:
    report = load_quantized(tiny("qwen3")).report
    assert not [c for c in report.changes if c.code.startswith("QD")]
    assert not report.warnings


def test_a_fix_that_names_another_model_is_followed(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from qlora_core import gate as gates

    folder = str(tiny("qwen3"))
    instead = make("XX001", argument("pretrained_model_name_or_path", str(tiny("llama")), folder, "error"))
    monkeypatch.setattr(gates, "checks_for_loads", lambda off: ((instead,), ()))
    loaded = load_quantized(tiny("llama"))
    assert type(loaded.model).__name__ == "Qwen3ForCausalLM"
    assert [c.after for c in loaded.report.changes if c.code == "XX001"] == [repr(folder)]


def test_a_word_in_fixes_that_names_nothing_is_refused_with_the_nearest(tiny: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="did you mean"):
        load_quantized(tiny("qwen3"), fixes={"QD1O1": False})
    with pytest.raises(UsageError, match="give False"):
        load_quantized(tiny("qwen3"), fixes={"QD101": "no"})  # type: ignore[dict-item]


def test_checks_that_could_not_be_made_for_one_reason_are_one_warning_with_their_codes() -> None:
    def finds(facts: Facts, request: LoadRequest) -> Finding | None:
        raise UnknownFact("model", "the Hub did not answer")

    (warning,) = passed(make("XX001", finds), make("XX002", finds, name="worse")).warnings
    assert "2 checks" in warning and "the Hub did not answer" in warning and "XX001, XX002" in warning
    (alone,) = passed(make("XX001", finds)).warnings
    assert alone == "XX001 (bad-thing) is unknown: model: the Hub did not answer"


def test_what_a_later_step_settles_neither_blocks_nor_warns_and_is_handed_on() -> None:
    def finds(facts: Facts, request: LoadRequest) -> Finding:
        return Finding("it is in another layout", severity="error")

    check = make("XX001", finds)
    result = passed(check, settles={"XX001": "convert-layout"})
    assert result.warnings == () and result.left == (("convert-layout", "XX001: it is in another layout"),)
    with pytest.raises(LoadBlocked):
        passed(check, settles={"XX002": "convert-layout"})


def test_what_the_step_did_not_settle_is_said_at_the_end() -> None:
    from qlora_core.report import Change, LoadReport
    from qlora_core.steps import say_what_is_left

    report = LoadReport("m", changes=[Change("processor", "processor", "a", "b", "why")])
    say_what_is_left([("processor", "QD333: no files"), ("convert-layout", "QD321: other layout")], report)
    assert report.warnings == ["QD321: other layout"]


def test_every_settled_code_is_a_check_and_every_step_can_be_switched_off() -> None:
    from qlora_core.steps import NAMES, SETTLES, settles
    from qlora_doctor.registry import installed_checks

    assert set(SETTLES) <= {c.code for c in installed_checks().checks}
    assert set(SETTLES.values()) - {"download"} <= set(NAMES)
    assert "QD333" not in settles(frozenset({"processor"}))
