"""QD432 to QD441: what lies beside torch: NCCL, NVIDIA's wheels, extensions, ROCm libraries, and variables that hide GPUs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qlora_checks import amd, cuda_wheels, extensions, features, gpus, natives, versions, visible
from qlora_doctor.facts import (
    BnbBuild,
    Distribution,
    Facts,
    Gpu,
    Host,
    Interpreter,
    Library,
    Native,
    Packages,
    TorchBuild,
    Unknown,
)
from qlora_doctor.finding import Finding
from qlora_doctor.testing import assert_fixed_by, findings, load, outcome, train

GIB = 2**30
H100 = Gpu("NVIDIA H100", "9.0", 80 * GIB, 79 * GIB, uuid="GPU-a")
MI300 = Gpu("AMD Instinct MI300X", None, 192 * GIB, 191 * GIB, vendor="amd", arch="gfx942")
RX_6800 = Gpu("AMD Radeon RX 6800", None, 16 * GIB, 16 * GIB, vendor="amd", arch="gfx1030")
ASKED = ("nvidia-nccl-cu12==2.27.3", "nvidia-cudnn-cu12==9.10.2.21", "filelock")
ALL = (*amd.CHECKS, *cuda_wheels.CHECKS, *extensions.CHECKS, *visible.CHECKS)
RUN = (load(), train(settings={}))


def machine(
    versions: dict[str, str] | None = None, requires: dict[str, tuple[str, ...]] | None = None, **parts: Any
) -> Facts:
    """A sound Linux machine with torch 2.8 for CUDA 12.8, whose own wheels are there."""
    installed = {
        "torch": "2.8.0",
        "bitsandbytes": "0.50.2",
        "nvidia-nccl-cu12": "2.27.3",
        "nvidia-cudnn-cu12": "9.10.2.21",
        **(versions or {}),
    }
    asks = {"torch": ASKED, **(requires or {})}
    rows = tuple(Distribution(n, v, "/site", requires=asks.get(n, ())) for n, v in installed.items() if v)
    given: dict[str, Any] = {
        "interpreter": Interpreter("3.11.9"),
        "packages": Packages(rows),
        "torch": TorchBuild("2.8.0", "12.8"),
        "bitsandbytes": BnbBuild("0.50.2", ("cpu", "cuda128")),
        "gpus": (H100,),
        "environ": {},
        "host": Host(),
        "native": Native(),
    }
    return Facts(**{**given, **parts})


def rocm(
    gpu: Gpu = MI300, hip: str = "7.1.25424", libraries: str = "64 70 71 72 714", bnb: str = "0.50.2", **parts: Any
) -> Facts:
    given: dict[str, Any] = {
        "torch": TorchBuild("2.13.0+rocm7.1", hip=hip),
        "bitsandbytes": BnbBuild(bnb, ("cpu", *(f"rocm{v}" for v in libraries.split()))),
        "gpus": (gpu,),
    }
    return machine({"bitsandbytes": bnb}, **{**given, **parts})


def severities(found: tuple[Finding, ...]) -> list[str]:
    return [f.severity for f in found]


@pytest.mark.parametrize("check", ALL, ids=lambda c: c.code)
@pytest.mark.parametrize("given", [machine(), rocm()], ids=["CUDA", "ROCm"])
def test_a_sound_machine_is_silent(check: Any, given: Facts) -> None:
    assert findings(check, given, *RUN) == ()


@pytest.mark.parametrize("check", ALL, ids=lambda c: c.code)
def test_what_could_not_be_read_is_unknown(check: Any) -> None:
    parts = ("gpus", "torch", "native", "packages", "environ", "bitsandbytes")
    assert outcome(check, machine().but(**{p: Unknown("it hangs") for p in parts}), *RUN) == "unknown"


@pytest.mark.parametrize("check", ALL, ids=lambda c: c.code)
def test_an_environment_without_torch_is_silent(check: Any) -> None:
    bare = machine().but(packages=Packages(), torch=None, bitsandbytes=None)
    assert findings(check, bare, *RUN) == ()


# ---- QD433: NCCL


def nccl(version: str) -> Native:
    return Native(on_path=(Library("libnccl", "/opt/nccl/lib/libnccl.so.2", version, by="LD_LIBRARY_PATH"),))


@pytest.mark.parametrize(("version", "told"), [("2.18.5", True), ("2.27.3", False), ("2.28.3", False), ("2", False)])
def test_an_older_nccl_or_cudnn_in_front_of_torchs_own(version: str, told: bool) -> None:
    found = findings(cuda_wheels.older_nccl_or_cudnn_in_front, machine(native=nccl(version)), *RUN)
    assert severities(found) == (["error"] if told else [])


def test_an_older_nccl_is_gone_without_the_path_and_only_warns_without_a_run() -> None:
    given = machine(native=nccl("2.18.5"), environ={"LD_LIBRARY_PATH": "/opt/nccl/lib"})
    assert severities(findings(cuda_wheels.older_nccl_or_cudnn_in_front, given)) == ["warning"]
    assert_fixed_by(cuda_wheels.older_nccl_or_cudnn_in_front, given, *RUN)


def test_where_torch_names_no_nccl_the_installed_wheel_counts_and_two_of_them_do_not() -> None:
    check = cuda_wheels.older_nccl_or_cudnn_in_front
    given = machine(requires={"torch": ()}, native=nccl("2.18.5"))
    assert findings(check, given)
    assert findings(check, machine({"nvidia-nccl-cu11": "2.14.3"}, {"torch": ()}, native=nccl("2.18.5"))) == ()


@pytest.mark.parametrize(("version", "told"), [("9.1.0", True), ("9.10.1", False), ("9.12", False), ("8.9.7", False)])
def test_an_older_cudnn_of_the_same_major_is_a_warning(version: str, told: bool) -> None:
    native = Native(on_path=(Library("libcudnn", "/opt/cudnn/lib/libcudnn.so.9", version, by="LD_LIBRARY_PATH"),))
    found = findings(cuda_wheels.older_nccl_or_cudnn_in_front, machine(native=native), *RUN)
    assert severities(found) == (["warning"] if told else [])


def test_unread_libraries_of_bitsandbytes_are_no_matter_to_a_cuda_build() -> None:
    given = machine(bitsandbytes=Unknown("its folder is not there"))
    assert {outcome(check, given, *RUN) for check in amd.CHECKS} == {"ok"}
    given = rocm().but(bitsandbytes=Unknown("its folder is not there"))
    assert {outcome(check, given, *RUN) for check in amd.CHECKS} == {"unknown"}


# ---- QD434: the wheels that torch names


def test_an_absent_wheel_fails_a_run_and_the_fix_is_the_named_version() -> None:
    check = cuda_wheels.cuda_wheels_that_torch_did_not_ask_for
    given = machine({"nvidia-cudnn-cu12": ""})
    (found,) = findings(check, given, *RUN)
    assert (found.severity, found.fixes[0].title) == ("error", "install nvidia-cudnn-cu12==9.10.2.21")
    assert severities(findings(check, given)) == ["warning"]
    assert_fixed_by(check, given, *RUN)


def test_wheels_of_other_versions_are_one_warning_and_not_repeated_by_the_check_of_metadata() -> None:
    check = cuda_wheels.cuda_wheels_that_torch_did_not_ask_for
    given = machine({"nvidia-cudnn-cu12": "9.1.0.70", "nvidia-nccl-cu12": "2.20.5", "filelock": "3.0"})
    (found,) = findings(check, given, *RUN)
    assert found.severity == "warning" and "9.1.0.70" in found.text and "2.20.5" in found.text
    assert findings(versions.requirement_that_is_not_met, given, *RUN) == ()
    assert_fixed_by(check, given, *RUN)


@pytest.mark.parametrize("kind", ["conda", "elsewhere on the path", "CPU build"])
def test_libraries_that_come_from_elsewhere_are_not_missed(kind: str) -> None:
    given = machine({"nvidia-cudnn-cu12": ""})
    if kind == "conda":
        rows = tuple(replace(d, installer="conda") for d in given.packages.distributions)
        given = given.but(packages=Packages(rows))
    elif kind == "CPU build":
        given = given.but(torch=TorchBuild("2.8.0+cpu"))
    else:
        given = given.but(native=Native(on_path=(Library("libcudnn", "/usr/local/cuda/lib64/libcudnn.so.9", "9.10"),)))
    assert findings(cuda_wheels.cuda_wheels_that_torch_did_not_ask_for, given, *RUN) == ()


# ---- QD440: two wheels, one file


def test_two_wheels_that_share_a_file_are_told_with_the_order_of_the_repair() -> None:
    given = machine({"nvidia-nccl-cu11": "2.14.3", "nvidia-cublas-cu11": "11.10.3"})
    (found,) = findings(cuda_wheels.cuda_wheels_that_overwrite_each_other, given, *RUN)
    commands = "pip uninstall -y nvidia-nccl-cu11 && pip install --force-reinstall --no-deps nvidia-nccl-cu12==2.27.3"
    assert (found.severity, found.evidence["commands"]) == ("warning", commands)


@pytest.mark.parametrize(
    ("owner", "severity", "words"),
    [
        ("nvidia-nccl-cu12", "info", "torch's own are there now"),
        ("nvidia-nccl-cu11", "warning", "those of nvidia-nccl-cu11 are there"),
        ("", "warning", "installed last"),
    ],
)
def test_whose_file_lies_there_decides_how_grave_it_is(owner: str, severity: str, words: str) -> None:
    given = machine({"nvidia-nccl-cu11": "2.14.3"})
    lying = replace(given.packages, contested={"nvidia/nccl/lib/libnccl.so.2": owner})
    (found,) = findings(cuda_wheels.cuda_wheels_that_overwrite_each_other, given.but(packages=lying), *RUN)
    assert found.severity == severity and words in found.text


def test_two_majors_of_cudnn_have_files_of_their_own() -> None:
    check = cuda_wheels.cuda_wheels_that_overwrite_each_other
    assert findings(check, machine({"nvidia-cudnn-cu11": "8.9.6.50"}), *RUN) == ()
    assert findings(check, machine({"nvidia-cudnn-cu11": "9.4.0.58"}), *RUN)


def test_a_wheel_whose_removal_would_take_torchs_library_along_is_not_called_leftover() -> None:
    given = machine({"nvidia-nccl-cu11": "2.14.3", "nvidia-cublas-cu11": "11.10.3"})
    (found,) = findings(natives.cuda_wheels_of_another_major, given, *RUN)
    assert found.evidence["names"] == ["nvidia-cublas-cu11"]


# ---- QD435: DeepSpeed


def toolkit(version: str, path: str = "/usr/local/cuda") -> Native:
    return Native(toolkits=(Library("cuda", path, version),), nvcc="" if path != "/usr/local/cuda" else version)


@pytest.mark.parametrize(("version", "told"), [("11.8", True), ("13.0", True), ("12.1", False), ("", False)])
def test_deepspeed_wants_a_toolkit_of_torchs_major(version: str, told: bool) -> None:
    check = extensions.deepspeed_with_another_cuda_toolkit
    given = machine({"deepspeed": "0.17.0"}, native=toolkit(version))
    assert severities(findings(check, given, *RUN)) == (["info"] if told else [])
    used = train(settings={"deepspeed": "zero2.json"})
    assert severities(findings(check, given, load(), used)) == (["warning"] if told else [])


def test_cuda_home_decides_which_toolkit_deepspeed_takes() -> None:
    check = extensions.deepspeed_with_another_cuda_toolkit
    native = Native(toolkits=(Library("cuda", "/opt/cuda-12.8", "12.8.1"),), nvcc="11.5")
    assert findings(check, machine({"deepspeed": "0.17.0"}, native=native), *RUN)
    for environ in ({"CUDA_HOME": "/opt/cuda-12.8"}, {"DS_SKIP_CUDA_CHECK": "1"}):
        assert findings(check, machine({"deepspeed": "0.17.0"}, native=native, environ=environ), *RUN) == ()
    assert findings(check, machine(native=native), *RUN) == ()


# ---- QD436: xformers


@pytest.mark.parametrize(
    ("asks", "told"), [("torch==2.4.1", True), ("torch==2.8.0", False), ("torch==2.8.1", False), ("torch>=2.4", False)]
)
def test_xformers_names_the_torch_that_it_was_built_for(asks: str, told: bool) -> None:
    given = machine({"xformers": "0.0.28"}, {"xformers": (asks, "numpy")})
    found = findings(extensions.xformers_of_another_torch, given, *RUN)
    assert severities(found) == (["info"] if told else [])
    if told:
        assert_fixed_by(extensions.xformers_of_another_torch, given, *RUN)


# ---- QD437 and QD438: hidden GPUs


@pytest.mark.parametrize(
    ("value", "left"),
    [("0,7", "0"), ("1,0,2,3", "1,0"), ("0,1", ""), ("0,-1", ""), ("7", ""), ("GPU-a,7", ""), ("", "")],
)
def test_entries_that_no_gpu_has_cut_the_list_off(value: str, left: str) -> None:
    check = visible.visible_gpus_that_do_not_exist
    given = machine(gpus=(H100, replace(H100, index=1)), environ={"CUDA_VISIBLE_DEVICES": value})
    found = findings(check, given, *RUN)
    assert [f.evidence["left"] for f in found] == ([left] if left else [])
    if left:
        assert_fixed_by(check, given, *RUN)


@pytest.mark.parametrize("name", ["HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"])
@pytest.mark.parametrize(("value", "hidden"), [("", True), ("-1", True), ("3", True), ("0", False), ("GPU-8f3", False)])
def test_amd_gpus_are_hidden_by_three_variables(name: str, value: str, hidden: bool) -> None:
    given = rocm(environ={name: value})
    assert bool(findings(visible.every_amd_gpu_hidden, given, *RUN)) is hidden
    if hidden:
        assert_fixed_by(visible.every_amd_gpu_hidden, given, *RUN)


T4 = Gpu("Tesla T4", "7.5", 15 * GIB, 15 * GIB, uuid="GPU-b", index=1)
OTHERS = replace(H100, index=1, uuid="GPU-c", memory_free=9 * GIB)


@pytest.mark.parametrize(
    ("value", "told"),
    [("0", False), ("1", True), ("GPU-a", False), ("GPU-c", True), ("0,1", True), ("0,9,1", False), ("", False)],
)
def test_a_gpu_that_the_run_does_not_see_is_not_judged(value: str, told: bool) -> None:
    given = machine(gpus=(H100, OTHERS), environ={"CUDA_VISIBLE_DEVICES": value})
    assert bool(findings(gpus.gpu_memory_already_taken, given, *RUN)) is told


def test_ids_that_cannot_be_compared_leave_every_gpu_in_view() -> None:
    unknown = tuple(replace(g, uuid="") for g in (H100, OTHERS))
    given = machine(gpus=unknown, environ={"CUDA_VISIBLE_DEVICES": "GPU-a"})
    assert findings(gpus.gpu_memory_already_taken, given, *RUN)


def test_an_old_card_that_is_hidden_is_no_reason_to_avoid_bfloat16() -> None:
    asked = load(attn_implementation="flash_attention_2")
    seen = machine(gpus=(H100, T4), environ={"CUDA_VISIBLE_DEVICES": "1"})
    hidden = machine(gpus=(H100, T4), environ={"CUDA_VISIBLE_DEVICES": "0"})
    assert findings(features.flash_attention_on_an_old_gpu, seen, asked)
    assert findings(features.flash_attention_on_an_old_gpu, hidden, asked) == ()


# ---- QD441: the order of the numbers

FIRST_T4 = (replace(T4, index=0), replace(H100, index=1))


@pytest.mark.parametrize(
    ("value", "cards", "told"),
    [
        ("1", FIRST_T4, "Tesla T4"),  # nvidia-smi's 1 is the H100
        ("0", FIRST_T4, "NVIDIA H100"),
        ("0,1", FIRST_T4, ""),
        ("1", (H100, T4), ""),
        ("1", (H100, replace(H100, index=1)), ""),
        ("GPU-a", FIRST_T4, ""),
        ("7", FIRST_T4, ""),
    ],
)
def test_cuda_counts_the_fastest_gpu_first(value: str, cards: tuple[Gpu, ...], told: str) -> None:
    check = visible.gpu_numbers_in_another_order
    given = machine(gpus=cards, environ={"CUDA_VISIBLE_DEVICES": value})
    found = findings(check, given, *RUN)
    assert [(f.severity, f.evidence["cudas"]) for f in found] == ([("info", told)] if told else [])
    if told:
        assert_fixed_by(check, given, *RUN)


def test_variables_of_amd_do_not_matter_to_a_cuda_build() -> None:
    assert findings(visible.every_amd_gpu_hidden, machine(environ={"HIP_VISIBLE_DEVICES": ""}), *RUN) == ()


# ---- QD432 and QD439: the ROCm libraries of bitsandbytes


@pytest.mark.parametrize(
    ("hip", "libraries", "bnb", "told"),
    [
        ("7.1.25424", "70 72", "0.49.2", True),  # exact before 0.50
        ("7.1.25424", "70 71", "0.49.2", False),
        ("7.1.25424", "70 72", "0.50.2", False),  # the same major from 0.50 on
        ("8.0.1", "64 70 72", "0.50.2", True),
        ("7.1", "", "0.50.2", False),  # QD431's
    ],
)
def test_a_library_for_the_rocm_of_torch(hip: str, libraries: str, bnb: str, told: bool) -> None:
    found = findings(amd.bitsandbytes_without_the_rocm_of_torch, rocm(MI300, hip, libraries, bnb), *RUN)
    assert severities(found) == (["error"] if told else [])


def test_an_override_that_names_no_rocm_library_is_unset() -> None:
    given = rocm(environ={"BNB_ROCM_VERSION": "63"})
    assert_fixed_by(amd.bitsandbytes_without_the_rocm_of_torch, given, *RUN)
    assert findings(amd.bitsandbytes_without_the_rocm_of_torch, rocm(environ={"BNB_ROCM_VERSION": "70"}), *RUN) == ()


@pytest.mark.parametrize(
    ("gpu", "hip", "words"),
    [
        (RX_6800, "7.1.25424", "ROCm 7.14"),
        (RX_6800, "7.14.1", ""),
        (RX_6800, "7.20", ""),  # it takes the newest below, 7.14
        (replace(MI300, arch="gfx950"), "6.4", "ROCm 7.0"),
        (replace(MI300, arch="gfx906"), "7.1", "from source"),
        (replace(MI300, arch="gfx942:sramecc+:xnack-"), "7.1", ""),
        (replace(MI300, arch=""), "7.1", ""),
    ],
)
def test_an_amd_gpu_that_the_library_has_no_code_for(gpu: Gpu, hip: str, words: str) -> None:
    found = findings(amd.amd_gpu_without_code_in_bitsandbytes, rocm(gpu, hip), *RUN)
    assert severities(found) == (["error"] if words else [])
    assert all(words in f.text for f in found)


@pytest.mark.parametrize(
    "parts",
    [{"environ": {"HSA_OVERRIDE_GFX_VERSION": "10.3.0"}}, {"host": Host(system="Windows")}, {"bnb": "0.51.0"}],
    ids=["passes for another", "Windows", "not in the table"],
)
def test_what_the_table_does_not_know_is_not_judged(parts: dict[str, Any]) -> None:
    assert findings(amd.amd_gpu_without_code_in_bitsandbytes, rocm(RX_6800, **parts), *RUN) == ()
