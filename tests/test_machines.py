"""Whole machines, saved as facts, with what is to be said of each: of the environment alone, and of a QLoRA run on it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qlora_checks import CHECKS
from qlora_checks.common import suited_dtype
from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding
from qlora_doctor.judge import Case, Verdict, judge
from qlora_doctor.request import LoadRequest, Requests
from qlora_doctor.source import Dotted
from qlora_doctor.testing import bnb, load, train
from qlora_doctor.wire import from_data

FOLDER = Path(__file__).parent / "machines"
FAMILIES = ("QD0", "QD2", "QD4", "QD9")
BF16 = Dotted("torch.bfloat16")

# What is said of the environment alone, and of a 4-bit load with training on it: code to severity.
EXPECTED: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "guide-rtx3060-bnb-0.43.3": ({}, {}),
    "guide-rtx3060-bnb-0.44.1": ({}, {}),
    "guide-rtx3060-bnb-0.48.2": ({"QD004": "info"}, {"QD004": "info"}),
    "guide-without-a-gpu": ({"QD004": "info", "QD405": "info"}, {"QD004": "info", "QD405": "error"}),
    "rtx3060-with-the-default-torch-2.14": ({"QD401": "warning"}, {"QD401": "error"}),
    "healthy-h100": ({}, {}),
    "healthy-a100-middle": ({}, {}),
    "healthy-cpu": ({"QD405": "info"}, {"QD405": "info"}),
    "healthy-rocm": ({}, {}),
    "healthy-wsl-rtx4060": ({}, {}),
    "recorded-cpu-5.23": ({"QD405": "info"}, {"QD405": "info"}),
    "v100-with-cuda-13": ({"QD402": "warning"}, {"QD402": "error"}),
    "rtx5090-with-torch-2.5": ({"QD402": "warning", "QD004": "info"}, {"QD402": "error", "QD004": "info"}),
    "torch-2.11-with-bnb-0.47": ({"QD403": "warning", "QD004": "info"}, {"QD403": "error", "QD004": "info"}),
    "peft-0.17-with-transformers-5": ({"QD004": "warning"}, {"QD004": "error"}),
    "t4-with-transformers-4-and-hub-1": ({"QD003": "warning"}, {"QD003": "error"}),
    "triton-3.2-with-bnb-0.44": ({"QD004": "warning"}, {"QD004": "error"}),
    "torch-2.5-with-transformers-5.23": ({"QD006": "warning"}, {"QD006": "error"}),
    "windows-cpu-torch-and-old-stand-ins": (
        {"QD015": "warning", "QD406": "warning"},
        {"QD015": "error", "QD406": "warning", "QD415": "info"},
    ),
    "half-installed": (
        {"QD010": "warning", "QD011": "warning", "QD013": "warning", "QD016": "info", "QD017": "warning"},
        {"QD010": "warning", "QD011": "warning", "QD013": "error", "QD016": "info", "QD017": "error"},
    ),
    "hidden-gpu": ({"QD407": "warning"}, {"QD407": "warning"}),
    "nvidia-smi-hangs": ({}, {}),
    "a100-beside-a-t4": ({"QD413": "info"}, {"QD413": "warning"}),
    "a100-mig-without-a-slice": ({"QD412": "warning"}, {"QD412": "error"}),
    "a100-mig": ({"QD412": "info"}, {"QD412": "info"}),
    "a100-taken-by-a-notebook": ({"QD410": "warning"}, {"QD410": "warning"}),
    "cluster-login-node": ({"QD405": "info"}, {"QD405": "info"}),
    "conda-with-two-cudas": ({"QD424": "warning"}, {"QD424": "warning"}),
    "container-with-nvidia-smi-only": ({"QD421": "warning"}, {"QD421": "error"}),
    "container-without-the-nvidia-runtime": (
        {"QD421": "warning", "QD405": "info"},
        {"QD421": "error", "QD405": "info"},
    ),
    "driver-updated-and-not-restarted": ({"QD422": "warning"}, {"QD422": "warning"}),
    "flash-attn-of-another-torch": ({"QD427": "warning"}, {"QD427": "warning"}),
    "glibc-2.17": ({"QD425": "warning"}, {"QD425": "error"}),
    "gtx1080-with-cuda-13": ({"QD402": "warning"}, {"QD402": "error"}),
    "h100-exclusive-and-held": ({"QD411": "warning"}, {"QD411": "error"}),
    "healthy-600-packages": ({}, {}),
    "healthy-arc": ({}, {}),
    "healthy-colab-t4": ({}, {}),
    "healthy-gh200": ({}, {}),
    "healthy-kaggle-2xt4": ({}, {}),
    "healthy-m3": ({}, {}),
    "healthy-mi300": ({}, {}),
    "healthy-rtx4090-cu128": ({}, {}),
    "healthy-rtx5090": ({}, {}),
    "healthy-v100-cu126": ({}, {}),
    "healthy-windows-rtx4060-laptop": ({}, {"QD415": "info"}),
    "live-crash-of-bitsandbytes": ({"QD901": "error"}, {"QD901": "error"}),
    "mi300-with-an-old-bitsandbytes": ({"QD431": "warning"}, {"QD431": "error"}),
    "mi300-with-the-cuda-torch": ({"QD430": "warning"}, {"QD430": "error"}),
    "python-3.9": ({"QD004": "info"}, {"QD004": "info"}),
    "rtx2050-laptop": ({}, {}),
    "rtx5090-with-torch-2.3": ({"QD402": "warning"}, {"QD402": "error"}),
    "stub-of-libcuda": ({"QD420": "warning"}, {"QD420": "error"}),
    "t4-with-todays-torch": ({}, {}),
    "windows-laptop-with-pips-torch": ({"QD406": "warning"}, {"QD406": "warning", "QD415": "info"}),
    "wsl-without-libcuda": ({"QD421": "warning"}, {"QD421": "error"}),
    "x86-environment-on-gh200": ({"QD426": "warning"}, {"QD426": "error"}),
    "arc-with-pips-torch": ({"QD430": "warning"}, {"QD430": "error"}),
    "compat-package-on-geforce": ({"QD423": "warning"}, {"QD423": "warning"}),
    "cublas-left-over-from-cuda-11": ({"QD428": "info"}, {"QD428": "info"}),
    "cudnn-moved-by-another-package": ({"QD434": "warning"}, {"QD434": "warning"}),
    "deepspeed-with-a-cuda-11-toolkit": ({"QD435": "info"}, {"QD435": "info"}),
    "driver-470-with-cuda-12": ({"QD401": "warning"}, {"QD401": "error"}),
    "four-gpus-and-a-list-with-a-hole": ({"QD437": "warning"}, {"QD437": "warning"}),
    "h100-with-memory-errors": ({"QD414": "warning"}, {"QD414": "warning"}),
    "healthy-a100-with-nvidia-wheels": ({}, {}),
    "healthy-b200": ({}, {}),
    "healthy-deepspeed-with-its-toolkit": ({}, {}),
    "healthy-dgx-spark": ({}, {}),
    "healthy-max-1550": ({}, {}),
    "healthy-mi350": ({}, {}),
    "healthy-rx6800-passing-for-another": ({}, {}),
    "healthy-rx7900xtx": ({}, {}),
    "healthy-a100-beside-a-hidden-t4": ({}, {}),
    "healthy-h100-beside-a-hidden-one-in-use": ({}, {}),
    "t4-before-an-a100-by-number": ({"QD441": "info"}, {"QD441": "info"}),
    "kaggle-p100": ({"QD402": "warning"}, {"QD402": "error"}),
    "live-hang-of-the-second-gpu": ({"QD902": "error"}, {"QD902": "error"}),
    "live-missing-library": ({"QD901": "error"}, {"QD901": "error"}),
    "live-ranks-that-cannot-talk": ({"QD906": "warning"}, {"QD906": "warning"}),
    "live-undefined-symbol-of-flash-attn": ({"QD901": "warning"}, {"QD901": "warning"}),
    "live-wrong-4-bit": ({"QD903": "warning"}, {"QD903": "error"}),
    "m3-with-bnb-0.48": ({"QD431": "warning", "QD004": "info"}, {"QD431": "error", "QD004": "info"}),
    "mi300-hidden": ({"QD438": "warning"}, {"QD438": "warning"}),
    "mi300-with-an-override-of-bitsandbytes": ({"QD439": "warning"}, {"QD439": "error"}),
    "nccl-of-two-cudas": ({"QD440": "warning"}, {"QD440": "warning"}),
    "old-nccl-on-the-library-path": ({"QD433": "warning"}, {"QD433": "error"}),
    "rx6800-with-rocm-7.1": ({"QD432": "warning"}, {"QD432": "error"}),
    "torch-without-its-cudnn": ({"QD434": "warning"}, {"QD434": "error"}),
    "xformers-of-another-torch": ({"QD436": "info"}, {"QD436": "info"}),
}


def saved(name: str) -> Facts:
    return from_data(Facts, json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))


def run(*loads: LoadRequest) -> Case:
    imports = ("peft", "torch", "transformers")
    return Case(Requests(loads, (train(lora={"r": 8, "target_modules": "all-linear"}, load=loads[0]),), imports))


SOUND = load(dtype=BF16, device_map="auto")


def of_environment(verdict: Verdict) -> dict[str, str]:
    assert not [o for o in verdict.outcomes if o.outcome == "crashed"], verdict.outcomes
    return {f.code: f.severity for f in verdict.findings if f.code.startswith(FAMILIES)}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_machine_gets_its_findings_and_no_other(name: str) -> None:
    alone, with_run = EXPECTED[name]
    assert of_environment(judge(CHECKS, saved(name))) == alone
    assert of_environment(judge(CHECKS, saved(name), [run(SOUND)])) == with_run


def test_there_are_at_least_forty_machines_and_a_third_of_them_are_healthy() -> None:
    healthy = [n for n in EXPECTED if n.startswith(("healthy", "recorded"))]
    assert len(EXPECTED) >= 40
    assert len(healthy) >= 15


def test_every_saved_machine_is_expected_to_say_something() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(n for n in EXPECTED if n.startswith(("healthy", "recorded"))))
def test_a_sound_run_on_a_healthy_machine_is_silent_in_all_families(name: str) -> None:
    facts = saved(name)
    dtype = Dotted(f"torch.{suited_dtype(facts)[0]}")
    keyword = "dtype" if facts.packages.find("trl") or name == "recorded-cpu-5.23" else "torch_dtype"
    request = load(quantization_config=bnb(bnb_4bit_compute_dtype=dtype), device_map="auto", **{keyword: dtype})
    verdict = judge(CHECKS, facts, [run(request)])
    assert [f.text for f in verdict.findings if f.severity != "info"] == []


def test_a_driver_that_hangs_makes_unknown_outcomes_and_no_findings() -> None:
    outcomes = {o.code: o.outcome for o in judge(CHECKS, saved("nvidia-smi-hangs"), [run(SOUND)]).outcomes}
    assert {outcomes[c] for c in ("QD401", "QD402", "QD404", "QD405", "QD406", "QD407")} == {"unknown"}


def test_the_saved_machines_are_those_that_the_builder_describes() -> None:
    build = builder()
    for name, facts in build.machines().items():
        assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == build.text_of(facts), f"{name}: run build.py"


def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("machines_build", FOLDER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- the first guide: bitsandbytes 0.43.3, 0.44.1 and 0.48.2 with transformers 4.44.2 on an RTX 3060

GUIDES_MODEL = "liuhaotian/llava-v1.5-7b"
OLD_MODEL = "facebook/opt-125m"  # one that transformers 4.44 knows
CLASS = "transformers.LlavaForConditionalGeneration"
FP16 = Dotted("torch.float16")


def guides_load(bits: int = 4, **arguments: Any) -> LoadRequest:
    config = bnb() if bits == 4 else bnb(load_in_4bit=False, load_in_8bit=True)
    return load(GUIDES_MODEL, CLASS, quantization_config=config, device_map="auto", **arguments)


def errors(machine: str, request: LoadRequest, *, trains: bool = False) -> list[Finding]:
    case = run(request) if trains else Case(Requests(loads=(request,)))
    return [f for f in judge(CHECKS, saved(machine), [case]).findings if f.severity == "error"]


@pytest.mark.parametrize("version", ["0.43.3", "0.44.1", "0.48.2"])
@pytest.mark.parametrize(
    "request_",
    [guides_load(), guides_load(torch_dtype=FP16), guides_load(trust_remote_code=True), guides_load(8)],
    ids=["no dtype", "dtype", "trust_remote_code", "8 bit"],
)
def test_the_guides_crash_is_the_layout_of_the_checkpoint_with_every_bitsandbytes(
    version: str, request_: LoadRequest
) -> None:
    found = errors(f"guide-rtx3060-bnb-{version}", request_)
    assert {f.code for f in found} == {"QD104"}
    assert "layout" in found[0].text


@pytest.mark.parametrize("version", ["0.43.3", "0.44.1", "0.48.2"])
def test_the_converted_checkpoint_loads_with_every_bitsandbytes_dtype_or_not(version: str) -> None:
    for dtype in ({}, {"torch_dtype": FP16}):
        request = load("llava-hf/llava-1.5-7b-hf", CLASS, device_map="auto", **dtype)
        assert errors(f"guide-rtx3060-bnb-{version}", request) == []


def test_training_in_8_bit_with_bitsandbytes_0_48_breaks_on_the_old_peft() -> None:
    eight_bit = bnb(load_in_4bit=False, load_in_8bit=True)
    request = load(OLD_MODEL, quantization_config=eight_bit, torch_dtype=FP16)
    assert {f.code for f in errors("guide-rtx3060-bnb-0.48.2", request, trains=True)} == {"QD004"}
    assert errors("guide-rtx3060-bnb-0.44.1", request, trains=True) == []


def test_without_a_gpu_the_old_transformers_refuses_the_load_and_says_so() -> None:
    (found,) = errors("guide-without-a-gpu", load(OLD_MODEL, torch_dtype=FP16))
    assert (found.code, "refuses a quantised load" in found.text) == ("QD405", True)
