"""The BitsAndBytesConfig."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qlora_checks import dtypes
from qlora_checks import quantization as checks
from qlora_doctor.source import Call, Dotted, Unresolved
from qlora_doctor.testing import RTX_3060, T4, assert_fixed_by, bnb, facts, findings, load, outcome

QD110 = checks.compute_dtype_left_at_float32
QD111 = checks.fp4_where_nf4_is_meant
QD112 = checks.both_4bit_and_8bit
QD113 = checks.quantization_options_without_bits
QD114 = dtypes.bfloat16_without_hardware
QD115 = checks.quantization_option_of_wrong_type
GPU = facts({"transformers": "5.23.0"}, gpus=(RTX_3060,))
CPU = facts({"transformers": "5.23.0"}, gpus=())
BF16 = Dotted("torch.bfloat16")


def config(**arguments: Any) -> Call:
    """A BitsAndBytesConfig with these arguments and no others."""
    return Call("transformers.BitsAndBytesConfig", arguments=arguments)


def test_a_compute_dtype_left_at_float32_is_a_warning_on_a_gpu_and_a_note_without_one() -> None:
    request = load(quantization_config=config(load_in_4bit=True))
    (slow,) = findings(QD110, GPU, request)
    assert slow.severity == "warning" and slow.fixes[0].applicability == "safe"
    assert "is not given" in slow.text
    (alone,) = findings(QD110, facts(gpus=(RTX_3060,)), request)
    assert alone.severity == "warning"
    (note,) = findings(QD110, CPU, request)
    assert note.severity == "info"
    assert_fixed_by(QD110, GPU, request)


def test_float32_by_name_is_a_note_and_float32_in_one_branch_is_the_scripts_choice() -> None:
    request = load(quantization_config=config(load_in_4bit=True, bnb_4bit_compute_dtype=Dotted("torch.float32")))
    (note,) = findings(QD110, GPU, request)
    assert note.severity == "info" and note.fixes[0].applicability == "unsafe"
    assert "says so" in note.text
    assert findings(QD110, GPU, replace(request, when="not args.fp16 and not args.bf16")) == ()


def test_bitsandbytes_before_047_takes_the_inputs_dtype_so_it_is_a_note_there() -> None:
    old = facts({"transformers": "4.50.3", "bitsandbytes": "0.46.1"}, gpus=(RTX_3060,))
    request = load(quantization_config=config(load_in_4bit=True), torch_dtype=BF16)
    (note,) = findings(QD110, old, request)
    assert note.severity == "info"
    new = facts({"transformers": "4.50.3", "bitsandbytes": "0.47.0"}, gpus=(RTX_3060,))
    (warning,) = findings(QD110, new, request)
    assert warning.severity == "warning"


@pytest.mark.parametrize(
    "value",
    [
        config(load_in_4bit=True, bnb_4bit_compute_dtype=BF16),
        config(load_in_4bit=True, bnb_4bit_compute_dtype="float16"),
        config(load_in_8bit=True),
        config(load_in_4bit=False),
        Call("transformers.GPTQConfig", arguments={"bits": 4}),
        None,
    ],
)
def test_a_sixteen_bit_compute_dtype_or_no_4bit_load_is_silent(value: Any) -> None:
    assert findings(QD110, GPU, load(quantization_config=value)) == ()


def test_a_compute_dtype_that_cannot_be_read_is_unknown() -> None:
    unread = config(load_in_4bit=True, bnb_4bit_compute_dtype=Unresolved("argparse"))
    assert outcome(QD110, GPU, load(quantization_config=unread)) == "unknown"
    built_elsewhere = load(quantization_config=Unresolved("a function's result"))
    assert outcome(QD110, GPU, built_elsewhere) == "unknown"


def test_a_plain_dict_is_read_as_a_config() -> None:
    request = load(quantization_config={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
    assert outcome(QD110, GPU, request) == "found"
    gptq = load(quantization_config={"quant_method": "gptq", "bits": 4})
    assert outcome(QD110, GPU, gptq) == "ok"


def test_fp4_by_default_is_a_note_and_fp4_by_name_is_meant() -> None:
    request = load(quantization_config=config(load_in_4bit=True))
    (found,) = findings(QD111, GPU, request)
    assert found.severity == "info"
    assert_fixed_by(QD111, GPU, request)
    assert findings(QD111, GPU, load(quantization_config=bnb(bnb_4bit_quant_type="fp4"))) == ()
    assert findings(QD111, GPU, load(quantization_config=config(load_in_8bit=True))) == ()


def test_4bit_and_8bit_together_are_refused() -> None:
    request = load(quantization_config=config(load_in_4bit=True, load_in_8bit=True))
    (found,) = findings(QD112, GPU, request)
    assert found.severity == "error"
    assert_fixed_by(QD112, GPU, request)
    one = load(quantization_config=config(load_in_4bit=True, load_in_8bit=False))
    assert findings(QD112, GPU, one) == ()


def test_options_alone_quantise_nothing() -> None:
    request = load(quantization_config=config(bnb_4bit_quant_type="nf4"))
    (found,) = findings(QD113, GPU, request)
    assert found.severity == "warning"
    assert_fixed_by(QD113, GPU, request)
    switched_off = config(load_in_4bit=False, bnb_4bit_quant_type="nf4")
    assert findings(QD113, GPU, load(quantization_config=switched_off)) == ()
    assert findings(QD113, GPU, load(quantization_config=config())) == ()
    maybe = replace(config(bnb_4bit_quant_type="nf4"), open="**kwargs")
    assert outcome(QD113, GPU, load(quantization_config=maybe)) == "unknown"


def test_bfloat16_on_a_turing_card_is_a_warning() -> None:
    turing = facts({"transformers": "5.23.0"}, gpus=(RTX_3060, T4))
    request = load(dtype=BF16)
    found = findings(QD114, turing, request)
    assert [f.severity for f in found] == ["warning", "warning"]
    assert "Tesla T4" in found[0].text and "RTX" not in found[0].text
    assert_fixed_by(QD114, turing, request)


def test_bfloat16_is_silent_with_hardware_for_it_or_where_a_branch_asks_first() -> None:
    assert findings(QD114, GPU, load(dtype=BF16)) == ()
    assert findings(QD114, CPU, load(dtype=BF16)) == ()
    turing = facts({"transformers": "5.23.0"}, gpus=(T4,))
    assert findings(QD114, turing, replace(load(dtype=BF16), when="torch.cuda.is_bf16_supported()")) == ()
    sixteen = load(dtype=Dotted("torch.float16"), quantization_config=bnb(bnb_4bit_compute_dtype="float16"))
    assert findings(QD114, turing, sixteen) == ()
    assert outcome(QD114, facts(), load(dtype=BF16)) == "skipped"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"llm_int8_threshold": 6}, id="an int for a float"),
        pytest.param({"llm_int8_skip_modules": "lm_head"}, id="a string for a list"),
        pytest.param({"bnb_4bit_quant_type": "NF4"}, id="capitals"),
    ],
)
def test_values_that_bitsandbytes_config_refuses_are_errors_with_the_right_value(arguments: dict[str, Any]) -> None:
    request = load(quantization_config=config(load_in_4bit=True, **arguments))
    (found,) = findings(QD115, GPU, request)
    assert found.severity == "error"
    assert_fixed_by(QD115, GPU, request)


def test_a_flag_that_is_no_boolean_is_refused() -> None:
    (found,) = findings(QD115, GPU, load(quantization_config=bnb(bnb_4bit_use_double_quant="yes")))
    assert found.severity == "error" and found.fixes == ()


@pytest.mark.parametrize("check", [QD112, QD113, QD115], ids=lambda c: c.code)
def test_without_a_readable_bitsandbytes_config_nothing_is_judged(check: Any) -> None:
    assert outcome(check, GPU, load(quantization_config=None)) == "ok"
    assert outcome(check, GPU, load(quantization_config=Call("transformers.GPTQConfig", {"bits": 4}))) == "ok"
    assert outcome(check, GPU, load(quantization_config=Unresolved("a function's result"))) == "unknown"


def test_a_quant_type_nobody_knows_has_no_fix_and_right_values_are_silent() -> None:
    (found,) = findings(QD115, GPU, load(quantization_config=bnb(bnb_4bit_quant_type="int4")))
    assert found.fixes == ()
    sound = bnb(llm_int8_threshold=6.0, llm_int8_skip_modules=("lm_head",))
    assert findings(QD115, GPU, load(quantization_config=sound)) == ()
