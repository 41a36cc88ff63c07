"""Code from the model's repository."""

from __future__ import annotations

import pytest

from qlora_checks import remote_code as checks
from qlora_doctor.fix import Advice, LoadKwarg
from qlora_doctor.source import Unresolved
from qlora_doctor.testing import assert_fixed_by, facts, findings, load, outcome

QD102 = checks.trust_remote_code_without_need
QD107 = checks.quantized_load_of_remote_code_model
NOW = facts({"transformers": "5.23.0"})


@pytest.mark.parametrize(
    ("model", "cls", "word"),
    [
        ("llava-hf/llava-1.5-7b-hf", "transformers.LlavaForConditionalGeneration", "no effect"),
        ("Qwen/Qwen3-4B", "transformers.AutoModelForCausalLM", "has Qwen3 itself"),
        ("./my-model", "transformers.Qwen2ForCausalLM", "no effect"),
    ],
)
def test_trust_that_changes_nothing_is_a_note_and_is_dropped(model: str, cls: str, word: str) -> None:
    request = load(model, cls, trust_remote_code=True)
    (found,) = findings(QD102, NOW, request)
    assert found.severity == "info"
    assert word in found.text
    assert found.fixes == (LoadKwarg("trust_remote_code", drop=True),)
    assert_fixed_by(QD102, NOW, request)


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        pytest.param("Qwen/Qwen3-4B", {}, id="not given"),
        pytest.param("Qwen/Qwen3-4B", {"trust_remote_code": False}, id="switched off"),
        pytest.param("openbmb/MiniCPM-V-2", {"trust_remote_code": True}, id="a model that may need it"),
        pytest.param("Qwen/Qwen-VL-Chat", {"trust_remote_code": True}, id="a model that needs it"),
    ],
)
def test_trust_that_may_be_needed_is_silent(model: str, arguments: dict[str, bool]) -> None:
    assert findings(QD102, NOW, load(model, **arguments)) == ()


def test_an_architecture_newer_than_the_installed_transformers_may_need_its_code() -> None:
    assert findings(QD102, facts({"transformers": "4.44.2"}), load("Qwen/Qwen3-4B", trust_remote_code=True)) == ()


def test_what_cannot_be_read_is_unknown() -> None:
    assert outcome(QD102, NOW, load(trust_remote_code=Unresolved("argparse"))) == "unknown"
    assert outcome(QD102, NOW, load(None, trust_remote_code=True)) == "unknown"
    assert outcome(QD102, facts({}), load(trust_remote_code=True)) == "unknown"


def test_a_4bit_load_of_qwen_vl_chat_names_its_native_successor() -> None:
    (trusted,) = findings(QD107, NOW, load("Qwen/Qwen-VL-Chat", trust_remote_code=True))
    assert trusted.severity == "warning" and "ValueError" not in trusted.text
    assert "Qwen/Qwen2-VL-7B-Instruct" in trusted.text
    assert isinstance(trusted.fixes[0], Advice) and "AutoModelForImageTextToText" in trusted.fixes[0].text
    (untrusted,) = findings(QD107, NOW, load("Qwen/Qwen-VL-Chat"))
    assert untrusted.severity == "error" and "ValueError" in untrusted.text


def test_a_model_without_a_readable_name_is_no_remote_code_model() -> None:
    assert findings(QD107, NOW, load(None, trust_remote_code=True)) == ()
    unread = load("Qwen/Qwen-VL-Chat", trust_remote_code=Unresolved("argparse"))
    (found,) = findings(QD107, NOW, unread)
    assert found.severity == "warning"


def test_a_text_model_is_replaced_by_name_and_an_unquantised_load_is_not_judged() -> None:
    assert_fixed_by(QD107, NOW, load("Qwen/Qwen-7B-Chat", trust_remote_code=True))
    assert findings(QD107, NOW, load("Qwen/Qwen-VL-Chat", quantization_config=None)) == ()
    assert findings(QD107, NOW, load("Qwen/Qwen2-VL-7B-Instruct")) == ()
