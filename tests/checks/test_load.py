"""The load request: dtype, layout, device map."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qlora_checks import dtypes
from qlora_checks import load as checks
from qlora_doctor.facts import Unknown
from qlora_doctor.fix import Advice, LoadKwarg
from qlora_doctor.request import LoadRequest
from qlora_doctor.source import Dotted, Import, Script, Unresolved
from qlora_doctor.testing import RTX_3060, T4, assert_fixed_by, bnb, facts, findings, load, outcome

QD101 = checks.quantized_load_without_dtype
QD103 = dtypes.dtype_that_torch_does_not_have
QD104 = checks.original_llava_layout
QD105 = checks.device_map_auto_in_distributed_run
QD106 = dtypes.float16_for_a_t5_model


@pytest.mark.parametrize(
    ("version", "gpus", "keyword", "value", "word"),
    [
        pytest.param("4.44.2", (RTX_3060,), "torch_dtype", "bfloat16", "casts", id="4.44 forces float16"),
        pytest.param("4.55.4", (T4,), "torch_dtype", "float16", "casts", id="a T4 has no bfloat16"),
        pytest.param("4.56.0", (RTX_3060,), "dtype", "bfloat16", "casts", id="the word is dtype from 4.56"),
        pytest.param("4.57.6", (RTX_3060, T4), "dtype", "float16", "casts", id="the oldest GPU decides"),
        pytest.param("5.0.0.dev0", (RTX_3060,), "dtype", "bfloat16", "follows", id="a development version of 5.0"),
        pytest.param("5.23.0", (), "dtype", "bfloat16", "follows", id="no GPU: a modern one is assumed"),
    ],
)
def test_a_missing_dtype_is_a_note_that_says_what_the_installed_version_does(
    version: str, gpus: Any, keyword: str, value: str, word: str
) -> None:
    (found,) = findings(QD101, facts({"transformers": version}, gpus=gpus), load())
    assert found.severity == "info"
    assert found.fixes == (LoadKwarg(keyword, Dotted(f"torch.{value}")),)
    assert word in found.text and version in found.text
    assert_fixed_by(QD101, facts({"transformers": version}, gpus=gpus), load())


def test_no_gpu_known_is_said_as_an_assumption() -> None:
    (found,) = findings(QD101, facts({"transformers": "5.23.0"}, gpus=Unknown("nvidia-smi hangs")), load())
    assert "assumed" in found.text


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(load(dtype=Dotted("torch.bfloat16")), id="dtype is named"),
        pytest.param(load(torch_dtype="auto"), id="the old word is named"),
        pytest.param(load(dtype=Unresolved("argparse")), id="named, with a value that only running shows"),
        pytest.param(load(quantization_config=None), id="not quantised"),
        pytest.param(load(quantization_config=bnb(load_in_4bit=False)), id="quantisation is switched off"),
    ],
)
def test_a_load_that_names_its_dtype_or_is_not_quantised_is_silent(request_: Any) -> None:
    assert findings(QD101, facts({"transformers": "5.23.0"}), request_) == ()


def test_a_transformers_without_4bit_is_not_judged() -> None:
    assert findings(QD101, facts({"transformers": "4.29.2"}), load()) == ()


def test_without_a_transformers_version_the_missing_dtype_is_unknown() -> None:
    assert outcome(QD101, facts({}), load()) == "unknown"
    assert outcome(QD101, facts(), load()) == "skipped"
    assert outcome(QD101, facts({"transformers": "5.23.0"}), load(open="**kwargs of a function")) == "unknown"


@pytest.mark.parametrize("value", ["bf16", "fp16", "torch.bfloat16"])
def test_a_dtype_string_that_torch_does_not_have_is_an_error(value: str) -> None:
    world = facts({"transformers": "5.23.0"})
    (found,) = findings(QD103, world, load(dtype=value))
    assert found.severity == "error"
    assert_fixed_by(QD103, world, load(dtype=value))
    assert_fixed_by(QD103, world, load(quantization_config=bnb(bnb_4bit_compute_dtype=value)))


def test_a_compute_dtype_that_torch_has_is_silent() -> None:
    sound = bnb(bnb_4bit_compute_dtype="bfloat16")
    assert findings(QD103, facts({"transformers": "5.23.0"}), load(quantization_config=sound)) == ()


@pytest.mark.parametrize("value", ["auto", "bfloat16", Dotted("torch.bfloat16"), Unresolved("argparse"), None])
def test_a_dtype_that_torch_has_is_silent(value: Any) -> None:
    assert findings(QD103, facts({"transformers": "5.23.0"}), load(dtype=value)) == ()


LLAVA = "transformers.LlavaForConditionalGeneration"


@pytest.mark.parametrize(
    "cls", [LLAVA, "transformers.AutoModelForCausalLM", "transformers.AutoModelForImageTextToText"]
)
def test_the_original_llava_layout_is_an_error_with_any_transformers_class(cls: str) -> None:
    request = load("liuhaotian/llava-v1.5-7b", cls)
    (found,) = findings(QD104, facts(), request)
    assert found.severity == "error"
    assert found.fixes[0] == LoadKwarg(
        "pretrained_model_name_or_path", "llava-hf/llava-1.5-7b-hf", applicability="unsafe"
    )
    assert_fixed_by(QD104, facts(), request)


def test_the_right_class_is_named_where_the_layout_and_the_class_are_both_wrong() -> None:
    (found,) = findings(QD104, facts(), load("liuhaotian/llava-v1.6-mistral-7b", LLAVA))
    (advice,) = [f for f in found.fixes if isinstance(f, Advice)]
    assert "LlavaNextForConditionalGeneration" in advice.text
    (right,) = findings(QD104, facts(), load("liuhaotian/llava-v1.5-7b", LLAVA))
    assert len(right.fixes) == 1


def test_llavas_own_package_reads_its_own_layout() -> None:
    own = load("liuhaotian/llava-v1.5-7b", "llava.model.LlavaLlamaForCausalLM")
    assert findings(QD104, facts(), own) == ()
    script = Script("serve.py", imports=(Import("llava.model"),))
    auto = load("liuhaotian/llava-v1.5-7b", "transformers.AutoModelForCausalLM")
    assert findings(QD104, facts(script=script), auto) == ()


def test_the_original_layout_in_a_settings_file_is_a_warning() -> None:
    request = LoadRequest(load("liuhaotian/llava-v1.5-7b").call, source="config")
    request = replace(request, call=replace(request.call, function=".from_pretrained"))
    (found,) = findings(QD104, facts(), request)
    assert found.severity == "warning"
    assert_fixed_by(QD104, facts(), request)


@pytest.mark.parametrize("model", ["llava-hf/llava-1.5-7b-hf", "./llava-v1.5-7b", None])
def test_other_models_are_not_taken_for_the_original_layout(model: str | None) -> None:
    assert findings(QD104, facts(), load(model, LLAVA)) == ()


TORCHRUN = Script("train.py", distributed="LOCAL_RANK is read")


@pytest.mark.parametrize(
    ("gpus", "severity"),
    [
        pytest.param((RTX_3060, RTX_3060), "error", id="two GPUs"),
        pytest.param(Unknown("no driver"), "warning", id="GPUs not known"),
        pytest.param((RTX_3060,), "info", id="one GPU"),
    ],
)
def test_device_map_auto_under_torchrun_is_as_grave_as_the_number_of_gpus(gpus: Any, severity: str) -> None:
    (found,) = findings(QD105, facts(gpus=gpus), load(device_map="auto"), script=TORCHRUN)
    assert found.severity == severity


def test_device_map_is_no_matter_in_one_process_or_when_a_branch_decides_it() -> None:
    assert findings(QD105, facts(gpus=()), load(device_map="auto"), script=Script("train.py")) == ()
    assert findings(QD105, facts(gpus=()), load(device_map={"": 0}), script=TORCHRUN) == ()
    assert findings(QD105, facts(gpus=()), load(), script=TORCHRUN) == ()
    branch = replace(load(device_map="auto"), when="not ddp")
    assert findings(QD105, facts(gpus=(RTX_3060, RTX_3060)), branch, script=TORCHRUN) == ()


def test_float16_overflows_in_t5_and_not_in_vicuna() -> None:
    t5 = load("Salesforce/instructblip-flan-t5-xl", torch_dtype=Dotted("torch.float16"))
    (found,) = findings(QD106, facts(gpus=(RTX_3060,)), t5)
    assert found.severity == "warning"
    assert_fixed_by(QD106, facts(gpus=(RTX_3060,)), t5)
    (on_turing,) = findings(QD106, facts(gpus=(T4,)), t5)
    assert on_turing.fixes == (LoadKwarg("torch_dtype", Dotted("torch.float32"), applicability="unsafe"),)
    vicuna = load("Salesforce/instructblip-vicuna-7b", torch_dtype=Dotted("torch.float16"))
    assert findings(QD106, facts(), vicuna) == ()
    assert findings(QD106, facts(), load("Salesforce/instructblip-flan-t5-xl")) == ()
    assert findings(QD106, facts(), load(None, torch_dtype=Dotted("torch.float16"))) == ()
    (fast,) = findings(QD106, facts(gpus=(RTX_3060,)), t5)
    assert fast.fixes == (LoadKwarg("torch_dtype", Dotted("torch.bfloat16"), applicability="unsafe"),)
