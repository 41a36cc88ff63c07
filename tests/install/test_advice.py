"""The newest set for a machine: the advice is judged by our own checks, and each choice by what is known of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_checks import CHECKS
from qlora_doctor.errors import UsageError
from qlora_doctor.facts import Driver, Facts, Gpu, Host, TorchBuild
from qlora_doctor.fix import EnvVar
from qlora_doctor.install.builds import Build, Rejected, fitting, judged
from qlora_doctor.install.choose import Choice, newest, size_of
from qlora_doctor.install.machine import Machine, machine_of, macos_of
from qlora_doctor.install.world import facts_with
from qlora_doctor.judge import Case, judge
from qlora_doctor.request import Requests
from qlora_doctor.source import Dotted
from qlora_doctor.tables import load, rows
from qlora_doctor.tables.builds import codes_of, serves, too_old
from qlora_doctor.testing import facts, train
from qlora_doctor.testing import load as load_request
from qlora_doctor.wire import from_data

MACHINES = Path(__file__).parents[1] / "machines"
NAMES = sorted(path.stem for path in MACHINES.glob("*.json"))
NOTHING_FITS = {"glibc-2.17"}
# What no set of packages can mend: the driver's own files, containers, the use of the GPUs, mixed GPUs.
OF_THE_MACHINE = {"QD410", "QD411", "QD412", "QD413", "QD420", "QD421", "QD422"}


def saved(name: str) -> Facts:
    return from_data(Facts, json.loads((MACHINES / f"{name}.json").read_text(encoding="utf-8")))


def qlora_run() -> Case:
    bf16 = Dotted("torch.bfloat16")
    request = load_request(dtype=bf16, device_map="auto")
    trains = (train(lora={"r": 8, "target_modules": "all-linear"}, load=request),)
    return Case(Requests((request,), trains, ("peft", "torch", "transformers", "trl")))


def gpu(capability: str, vendor: str = "nvidia") -> Gpu:
    return Gpu("a card", capability if vendor == "nvidia" else None, vendor=vendor)


def machine(python: str = "3.11.7", driver: str = "", *capabilities: str, **parts: Any) -> Machine:
    given: dict[str, Any] = {"libc": "glibc 2.36", "gpus": tuple(gpu(c) for c in capabilities)}
    return Machine(python, driver=Driver(driver) if driver else None, **{**given, **parts})


def names(choice: Choice) -> list[str]:
    return [p.requirement for p in choice.pins]


@pytest.mark.parametrize("name", NAMES)
def test_our_own_checks_find_no_error_in_what_is_advised(name: str) -> None:
    before = saved(name)
    choice = newest(machine_of(before), ["trl"])
    assert (choice.build is None) is (name in NOTHING_FITS)
    verdict = judge(CHECKS, facts_with(before, choice), [qlora_run()])
    assert [o for o in verdict.outcomes if o.outcome == "crashed"] == []
    if choice.build is not None:
        grave = [f for f in verdict.findings if f.severity == "error" or f.code.startswith("QD0")]
        # A variable that is set wrongly is set wrongly for every set of packages.
        left = {f.code: f.text for f in grave if not (f.fixes and isinstance(f.fixes[0], EnvVar))}
        assert {code: text for code, text in left.items() if code not in OF_THE_MACHINE} == {}


def test_the_checks_would_see_a_set_that_does_not_fit() -> None:
    before = saved("guide-rtx3060-bnb-0.43.3")
    h100 = newest(machine_of(saved("healthy-h100")))
    verdict = judge(CHECKS, facts_with(before, h100), [qlora_run()])
    assert "QD401" in {f.code for f in verdict.findings if f.severity == "error"}


@pytest.mark.parametrize("python", [f"3.{minor}.1" for minor in range(8, 15)])
@pytest.mark.parametrize(
    "given",
    [("",), ("550.120", "8.6"), ("580.95.05", "7.0"), ("580.95.05", "6.1"), ("580.95.05", "12.0"), ("515.65.01", "7.5")],
    ids=["CPU", "RTX 3060", "V100", "GTX 1080", "RTX 5090", "CUDA 11 driver"],
)  # fmt: skip
def test_a_set_for_every_python_is_silent_as_well(python: str, given: tuple[str, ...]) -> None:
    here = machine(python, *given)
    choice = newest(here, ["trl"])
    if choice.build is None:
        assert choice.reasons
        return
    state = facts({}, python=python, gpus=here.gpus, driver=here.driver, host=Host(libc="glibc 2.36"), environ={})
    verdict = judge(CHECKS, facts_with(state, choice), [qlora_run()])
    found = {f.code for f in verdict.findings if f.severity == "error" and f.code.startswith(("QD0", "QD4"))}
    assert found <= ({"QD405"} if any("refuses a 4-bit load" in note for note in choice.notes) else set())


@pytest.mark.parametrize(
    ("here", "torch"),
    [
        (machine("3.11.7", "580.95.05", "8.9"), "2.14.1"),
        (machine("3.11.7", "550.120", "8.6"), "2.14.1+cu126"),
        (machine("3.11.7", "580.95.05", "7.0"), "2.14.1+cu126"),
        (machine("3.11.7", "580.95.05", "6.1"), "2.14.1+cu126"),
        (machine("3.11.7", "570.172.08", "12.0"), "2.13.0+cu129"),
        (machine("3.11.7", "580.95.05", "7.0", "12.0"), "2.10.0"),
        (machine("3.11.7", "515.65.01", "7.0"), "2.7.1+cu118"),
        (machine("3.9.18", "550.120", "8.6"), "2.8.0"),
        (machine("3.8.18", "550.120", "8.6"), "2.4.1"),
        (machine("3.14.0", "580.95.05", "9.0"), "2.14.1"),
        (machine(), "2.14.1+cpu"),
        (machine(libc="glibc 2.26", driver="550.120", gpus=(gpu("8.6"),)), "2.6.0"),
        (machine(system="Windows", libc="", driver="581.42", gpus=(gpu("8.9"),)), "2.14.1+cu130"),
        (machine(system="Windows", libc=""), "2.14.1"),
        (machine(wsl=True, driver="581.42", gpus=(gpu("8.9"),)), "2.14.1"),
        (machine(wsl=True, driver="551.61", gpus=(gpu("8.9"),)), "2.14.1+cu126"),
        (machine(machine="aarch64", driver="580.95.05", gpus=(gpu("9.0"),)), "2.14.1+cu130"),
        (machine(system="Darwin", machine="aarch64", libc="", macos="15"), "2.14.1"),
        (machine(gpus=(gpu("", "amd"),)), "2.13.0+rocm7.2"),
        (machine(gpus=(Gpu("an RX 6800", vendor="amd", arch="gfx1030"),)), "2.14.1+rocm7.14"),
        (machine(gpus=(gpu("", "intel"),)), "2.14.1+xpu"),
        (machine(gpus=None, libc=""), "2.14.1"),
    ],
    ids=[
        "current", "driver of CUDA 12.4", "V100", "GTX 1080", "RTX 5090 on R570", "V100 beside a 5090", "driver of CUDA 11",
        "3.9", "3.8", "3.14", "CPU", "glibc 2.26", "Windows", "Windows CPU", "WSL", "WSL with an old Windows driver",
        "ARM server", "Mac", "AMD", "RX 6000", "Intel", "GPUs not known",
    ],
)  # fmt: skip
def test_the_newest_torch_build_follows_driver_card_system_and_python(here: Machine, torch: str) -> None:
    assert newest(here).version("torch") == torch


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        (machine("3.11.7", "390.157", "7.0"), "needs driver"),
        (machine(libc="glibc 2.17", driver="550.120", gpus=(gpu("8.6"),)), "glibc 2.24"),
        (machine(libc="musl 1.2.5"), "musl"),
        (machine("3.7.17"), "Python >=3.8"),
        (machine(system="Darwin", machine="x86_64", libc=""), "Intel CPU"),
        (machine(system="Windows", machine="aarch64", libc=""), "Windows on ARM"),
        (machine("3.9.18", gpus=(gpu("", "amd"),)), "Python >=3.10"),
        (machine("3.11.7", "580.95.05", "3.5"), "not for 3.5"),
    ],
    ids=["old driver", "glibc 2.17", "musl", "3.7", "Intel Mac", "Windows on ARM", "AMD with 3.9", "Kepler"],
)
def test_where_nothing_fits_it_says_why(here: Machine, reason: str) -> None:
    choice = newest(here)
    assert choice.build is None and choice.pins == ()
    assert reason in choice.refusal
    assert len(choice.refusal.split("; ")) < 9


def test_the_others_are_as_new_as_python_torch_and_one_another_allow() -> None:
    assert names(newest(machine("3.11.7", "580.95.05", "8.9"), ["trl"]))[1:] == [
        "transformers==5.23.0", "huggingface-hub==2.4.0", "peft==0.21.2", "accelerate==1.15.0", "bitsandbytes==0.50.2",
        "datasets==5.2.0", "trl==1.16.0",
    ]  # fmt: skip
    assert names(newest(machine("3.9.18", "550.120", "8.6"), ["trl"]))[1:] == [
        "transformers==4.57.6", "huggingface-hub==0.36.0", "peft==0.17.1", "accelerate==1.10.1", "bitsandbytes==0.48.2",
        "datasets==4.5.0", "trl==0.24.0",
    ]  # fmt: skip


def test_a_card_that_the_new_bitsandbytes_dropped_gets_an_older_one_and_what_goes_with_it() -> None:
    # transformers 4 takes no huggingface-hub 1, which datasets 5 and so the new trl insist on.
    assert names(newest(machine("3.11.7", "580.95.05", "5.2"), ["trl"])) == [
        "torch==2.14.1+cu126", "transformers==4.57.6", "huggingface-hub==0.36.0", "peft==0.21.2", "accelerate==1.15.0",
        "bitsandbytes==0.47.0", "datasets==4.5.0", "trl==0.24.0",
    ]  # fmt: skip


def test_each_pin_says_why_it_is_not_newer() -> None:
    choice = newest(machine("3.10.4", "550.120", "8.6"))
    why = {p.name: p.why for p in choice.pins}
    assert "CUDA 13.0 needs driver 580 or newer, and this is 550.120" in why["torch"]
    assert "5.23.0: it asks for Python >=3.11" in why["transformers"]
    assert "CUDA 12.6" in why["bitsandbytes"]


def test_every_build_that_is_offered_runs_and_every_other_has_a_reason() -> None:
    for here in (machine("3.11.7", "550.120", "8.6"), machine("3.12.1", "580.95.05", "7.0", "8.9")):
        assert here.driver is not None
        for found in judged(here):
            if isinstance(found, Rejected):
                assert found.why
                continue
            assert not too_old(here.driver, found.cuda, windows=False)
            codes = codes_of(found.torch, found.cuda, "x86_64")
            assert all(serves(codes, sm, found.cuda) for sm in here.capabilities)


def test_a_build_that_nobody_saw_comes_after_those_that_somebody_saw_and_is_said_to_be_one() -> None:
    amd = [b.verified for b in fitting(machine(gpus=(gpu("", "amd"),)))]
    assert amd == sorted(amd, reverse=True) and False in amd
    intel = newest(machine(gpus=(gpu("", "intel"),)))
    assert not intel.verified and any("not seen" in note for note in intel.notes)


def test_an_amd_card_that_is_not_seen_is_known_by_the_torch_that_is_installed() -> None:
    state = facts({}, gpus=(), host=Host(), torch=TorchBuild("2.8.0+rocm6.4", hip="6.4"))
    assert newest(machine_of(state)).version("torch") == "2.13.0+rocm7.2"


def test_no_gpu_and_an_unknown_gpu_are_told() -> None:
    assert any("no GPU was found" in note for note in newest(machine()).notes)
    assert any("could not be read" in note for note in newest(machine(gpus=None)).notes)


def test_an_extra_that_is_not_known_is_refused_with_the_ones_that_are() -> None:
    with pytest.raises(UsageError, match="datasets and trl"):
        newest(machine(), ["deepspeed"])


def test_a_torch_can_be_asked_for_and_the_rest_follows_it() -> None:
    choice = newest(machine("3.11.7", "580.95.05", "8.9"), torch="2.6")
    assert (choice.version("torch"), choice.version("transformers")) == ("2.6.0", "5.23.0")


@pytest.mark.parametrize(
    ("kernel", "macos"), [("20.6.0", "11"), ("22.1.0", "13"), ("24.6.0", "15"), ("25.0.0", "26"), ("19.6.0", "10"), ("", "")]
)  # fmt: skip
def test_the_macos_of_a_kernel(kernel: str, macos: str) -> None:
    assert macos_of(kernel) == macos


def test_every_release_row_is_one_that_the_matrix_knows_and_the_newest_is_the_newest_known() -> None:
    known = load("matrix.toml")["known_to"]
    for package in ("transformers", "peft", "bitsandbytes", "accelerate", "trl"):
        first = next(r["version"] for r in rows("install.toml", "release") if r["package"] == package)
        assert first.startswith(known[package]), package
    minors = [r["minor"] for r in rows("cuda.toml", "torch") if r.get("verified", True)]
    assert [r["minor"] for r in rows("install.toml", "torch")] == minors


def test_a_build_is_named_as_pip_names_it() -> None:
    assert Build("2.14", "12.6", False).version == "2.14.1+cu126"
    assert Build("2.14", "13.0", True).version == "2.14.1"
    assert Build("2.13", "", False, "cpu", "cpu").text == "the cpu build of torch 2.13"


def test_sizes_are_rough_where_the_index_was_not_asked() -> None:
    assert size_of("torch", "cpu") == 191_794_682
    assert size_of("no-such-package") is None
