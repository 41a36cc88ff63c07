"""QD410 to QD431: the state of the GPUs, what runs ask of them, and the native libraries beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qlora_checks import accelerators, cuda, features, gpus, natives
from qlora_doctor.facts import (
    Binary,
    Distribution,
    Driver,
    Facts,
    Gpu,
    GpuProcess,
    Host,
    Library,
    MigSlice,
    Native,
    Packages,
    TorchBuild,
    Unknown,
)
from qlora_doctor.finding import Finding
from qlora_doctor.testing import assert_fixed_by, bnb, facts, findings, load, outcome, train

GIB = 2**30
A100 = Gpu("NVIDIA A100-SXM4-80GB", "8.0", 80 * GIB, 79 * GIB, uuid="GPU-a")
T4 = Gpu("Tesla T4", "7.5", 15 * GIB, 15 * GIB, uuid="GPU-b", index=1)
V100 = Gpu("Tesla V100-SXM2-16GB", "7.0", 16 * GIB, 16 * GIB)
RTX_3060 = Gpu("NVIDIA GeForce RTX 3060", "8.6", 12 * GIB, 11 * GIB)
RUN = (load(), train(settings={}))


def machine(*cards: Gpu, versions: dict[str, str] | None = None, **parts: Any) -> Facts:
    given: dict[str, Any] = {
        "gpus": cards or (A100,),
        "torch": TorchBuild("2.13.0", "13.0"),
        "driver": Driver("580.95.05", "13.0"),
        "environ": {},
        "host": Host(libc="glibc 2.35"),
        "native": Native(),
    }
    return facts({"torch": "2.13.0", "bitsandbytes": "0.50.2", **(versions or {})}, **{**given, **parts})


def severities(found: tuple[Finding, ...]) -> list[str]:
    return [f.severity for f in found]


# ---- QD410: taken memory


def test_taken_memory_names_who_holds_it() -> None:
    held = replace(
        A100, memory_free=20 * GIB, processes=(GpuProcess(7, "python", 55 * GIB), GpuProcess(8, "vllm", None))
    )
    (found,) = findings(gpus.gpu_memory_already_taken, machine(held))
    assert "60.0 of 80.0 GiB" in found.text
    assert "python (pid 7, 55.0 GiB), vllm (pid 8)" in found.text


def test_taken_memory_of_an_amd_gpu_is_told_too() -> None:
    held = Gpu("AMD Instinct MI300X", None, 192 * GIB, 40 * GIB, vendor="amd")
    (found,) = findings(gpus.gpu_memory_already_taken, machine(held))
    assert "152.0 of 192.0 GiB" in found.text and "amd-smi" in found.fixes[0].title


def test_taken_memory_without_a_name_is_said_to_be_of_others() -> None:
    (found,) = findings(gpus.gpu_memory_already_taken, machine(replace(A100, memory_free=20 * GIB)))
    assert "does not name" in found.text


@pytest.mark.parametrize(
    "gpu",
    [
        replace(RTX_3060, memory_free=int(10.1 * GIB)),
        replace(A100, memory_free=70 * GIB),
        replace(A100, memory_free=None),
        replace(A100, memory_free=0, mig=True),
    ],
    ids=["a desktop", "a small share", "unknown", "MIG"],
)
def test_what_a_desktop_takes_is_not_told(gpu: Gpu) -> None:
    assert findings(gpus.gpu_memory_already_taken, machine(gpu)) == ()


# ---- QD411 and QD412: modes


@pytest.mark.parametrize(
    ("mode", "processes", "severity"),
    [
        ("default", (), []),
        ("prohibited", (), ["error"]),
        ("exclusive-process", (), ["info"]),
        ("exclusive-process", (GpuProcess(7, "python"),), ["error"]),
        ("", (), []),
    ],
)
def test_a_restricted_mode_is_as_grave_as_what_it_stops(mode: str, processes: Any, severity: list[str]) -> None:
    given = machine(replace(A100, compute_mode=mode, processes=processes))
    assert severities(findings(gpus.gpu_in_a_restricted_mode, given, *RUN)) == severity


@pytest.mark.parametrize(
    ("gpu", "severity"),
    [
        (replace(A100, mig=True, slices=()), ["error"]),
        (replace(A100, mig=True, slices=(MigSlice("MIG-1", 10 * GIB),)), ["info"]),
        (replace(A100, mig=True, slices=None), []),
        (A100, []),
    ],
    ids=["no slice", "one slice", "unknown", "no MIG"],
)
def test_a_gpu_in_slices(gpu: Gpu, severity: list[str]) -> None:
    found = findings(gpus.gpu_split_into_slices, machine(gpu), *RUN)
    assert severities(found) == severity
    assert all("10 GiB" in f.text for f in found if f.severity == "info")


# ---- QD413 to QD415


def test_gpus_of_different_kinds_are_a_warning_where_one_lacks_bfloat16() -> None:
    check = gpus.gpus_of_different_kinds
    small = replace(A100, name="NVIDIA GeForce RTX 3060", capability="8.6", memory_total=12 * GIB, index=1)
    assert severities(findings(check, machine(A100, T4), *RUN)) == ["warning"]
    assert severities(findings(check, machine(A100, small), *RUN)) == ["info"]
    assert findings(check, machine(A100, replace(A100, index=1)), *RUN) == ()
    assert findings(check, machine(A100, T4, environ={"CUDA_VISIBLE_DEVICES": "0"}), *RUN) == ()
    three = machine(T4, replace(A100, index=2), replace(A100, index=3))
    assert "CUDA_VISIBLE_DEVICES=2,3" in findings(check, three)[0].text


def test_memory_errors_are_told_where_there_are_some() -> None:
    check = gpus.gpu_with_memory_errors
    assert severities(findings(check, machine(replace(A100, ecc=True, ecc_errors=3)))) == ["warning"]
    assert findings(check, machine(replace(A100, ecc=True, ecc_errors=0), T4)) == ()


def test_windows_spills_only_for_a_run_on_a_gpu() -> None:
    check = gpus.memory_that_spills_on_windows
    windows = machine(RTX_3060, host=Host(system="Windows"))
    assert severities(findings(check, windows, *RUN)) == ["info"]
    assert findings(check, windows) == ()
    assert findings(check, machine(RTX_3060), *RUN) == ()


# ---- QD407 by id


@pytest.mark.parametrize(
    ("value", "hidden"),
    [("GPU-a", False), ("GPU-zz", True), ("MIG-1", False), ("MIG-2", True), ("0", False), ("-1", True), ("", True)],
)
def test_a_gpu_is_also_hidden_by_an_id_that_none_has(value: str, hidden: bool) -> None:
    gpu = replace(A100, mig=True, slices=(MigSlice("MIG-1"),))
    found = findings(cuda.every_gpu_hidden, machine(gpu, environ={"CUDA_VISIBLE_DEVICES": value}))
    assert bool(found) is hidden


def test_an_id_is_not_judged_where_those_of_the_gpus_are_not_known() -> None:
    given = machine(replace(A100, uuid="", mig=True), environ={"CUDA_VISIBLE_DEVICES": "GPU-zz"})
    assert findings(cuda.every_gpu_hidden, given) == ()
    asks_a_slice = {"CUDA_VISIBLE_DEVICES": "MIG-9"}
    assert findings(cuda.every_gpu_hidden, given.but(environ=asks_a_slice)) == ()
    nameless = machine(replace(A100, mig=True, slices=(MigSlice(""),)), environ=asks_a_slice)
    assert findings(cuda.every_gpu_hidden, nameless) == ()


# ---- QD416 to QD419: what a run asks for


def test_flash_attention_wants_ampere_and_the_fix_takes_sdpa() -> None:
    request = load(attn_implementation="flash_attention_2")
    assert severities(findings(features.flash_attention_on_an_old_gpu, machine(T4), request)) == ["error"]
    assert_fixed_by(features.flash_attention_on_an_old_gpu, machine(T4), request)
    assert findings(features.flash_attention_on_an_old_gpu, machine(A100), request) == ()
    assert findings(features.flash_attention_on_an_old_gpu, machine(T4), load(attn_implementation="sdpa")) == ()


@pytest.mark.parametrize(
    ("gpu", "bits", "severity"),
    [(V100, 8, ["warning"]), (V100, 4, []), (T4, 8, []), (replace(V100, capability="5.2"), 4, ["error"])],
)
def test_eight_bit_wants_turing_and_four_bit_pascal(gpu: Gpu, bits: int, severity: list[str]) -> None:
    config = bnb() if bits == 4 else bnb(load_in_4bit=False, load_in_8bit=True)
    found = findings(features.eight_bit_on_an_old_gpu, machine(gpu), load(quantization_config=config))
    assert severities(found) == severity


def test_tf32_wants_ampere() -> None:
    asked = train(settings={"tf32": True})
    assert severities(findings(features.tf32_on_an_old_gpu, machine(T4), asked)) == ["error"]
    assert_fixed_by(features.tf32_on_an_old_gpu, machine(T4), asked)
    assert findings(features.tf32_on_an_old_gpu, machine(A100), asked) == ()
    assert findings(features.tf32_on_an_old_gpu, machine(T4), train(settings={"tf32": False})) == ()


def test_compiling_on_windows_wants_a_triton_of_others() -> None:
    check = features.compile_on_windows_without_triton
    windows = machine(host=Host(system="Windows"))
    compiled = train(settings={"torch_compile": True})
    assert severities(findings(check, windows, compiled)) == ["error"]
    assert findings(check, windows, train(settings={})) == ()
    assert findings(check, machine(), compiled) == ()
    triton = machine(versions={"triton-windows": "3.5.0"}, host=Host(system="Windows"))
    assert findings(check, triton, compiled) == ()


# ---- QD420 to QD424: libcuda and its friends


def libcuda(kind: str = "driver", version: str = "580.95.05", by: str = "ld.so.cache", path: str = "/lib") -> Library:
    return Library("libcuda.so.1", f"{path}/libcuda.so.1", version, kind, by)


def test_a_stub_in_front_is_told_and_one_behind_is_not() -> None:
    stub = libcuda("stub", "", "LD_LIBRARY_PATH", "/cuda/stubs")
    check = natives.stub_of_libcuda_taken
    assert severities(findings(check, machine(native=Native((stub, libcuda()))), *RUN)) == ["error"]
    assert findings(check, machine(native=Native((libcuda(), stub)))) == ()


DOCKER = Host(container="docker")


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"gpus": (), "host": DOCKER, "environ": {"NVIDIA_VISIBLE_DEVICES": "all"}}, "docker run --gpus all"),
        ({"host": DOCKER, "environ": {"NVIDIA_DRIVER_CAPABILITIES": "utility"}}, "compute,utility"),
        ({"host": Host(wsl=2)}, "/usr/lib/wsl/lib"),
        ({"gpus": (), "host": DOCKER}, ""),
        ({"gpus": (), "host": DOCKER, "environ": {"NVIDIA_VISIBLE_DEVICES": "void"}}, ""),
        ({"gpus": (), "host": Host(wsl=2)}, ""),
        ({"host": Host(wsl=2), "native": Native((libcuda("wsl"),))}, ""),
        ({"gpus": (), "host": DOCKER, "environ": {"NVIDIA_VISIBLE_DEVICES": "all"}, "torch": TorchBuild("2.13.0+cpu")}, ""),
    ],
    ids=["no --gpus", "utility", "WSL path", "no GPU image", "void", "WSL without GPU", "WSL sound", "CPU torch"],
)  # fmt: skip
def test_a_driver_that_was_not_handed_in(parts: dict[str, Any], words: str) -> None:
    found = findings(natives.driver_not_handed_in, machine().but(**parts), *RUN)
    assert severities(found) == (["error"] if words else [])
    assert all(words in f.text for f in found)


@pytest.mark.parametrize(
    ("copy", "told"),
    [
        (libcuda(version="570.10"), True),
        (libcuda(), False),
        (libcuda(version="1"), False),
        (libcuda("compat", "590.1"), False),
        (libcuda(version="570.10", by="not on the loader's path"), False),
    ],
)
def test_a_libcuda_of_another_driver(copy: Library, told: bool) -> None:
    assert bool(findings(natives.libcuda_of_another_driver, machine(native=Native((copy,))))) is told


def test_the_compatibility_package_is_not_for_geforce() -> None:
    compat = Native((libcuda("compat", "590.1", "LD_LIBRARY_PATH"),))
    check = natives.compatibility_package_on_geforce
    assert severities(findings(check, machine(RTX_3060, native=compat), *RUN)) == ["warning"]
    assert findings(check, machine(A100, native=compat)) == ()
    assert findings(check, machine(RTX_3060, native=Native((libcuda(),)))) == ()


@pytest.mark.parametrize(
    ("name", "version", "severity"),
    [
        ("libnvJitLink", "13.0.39", []),
        ("libnvJitLink", "12.1.105", ["warning"]),
        ("libcudart", "12.1.105", ["info"]),
        ("libnvJitLink", "12.8.93", []),
        ("libnvJitLink", "12.6.85", []),
        ("libnvJitLink", "11.8", []),
        ("libcusparse", "12.1.0", []),
        ("libcudart", "12", []),
    ],
)
def test_older_cuda_libraries_in_front_of_torchs_own(name: str, version: str, severity: list[str]) -> None:
    copy = Library(name, f"/opt/cuda/lib64/{name}.so", version, by="LD_LIBRARY_PATH")
    given = machine(
        torch=TorchBuild("2.7.0", "12.6"),
        native=Native(on_path=(copy,)),
        environ={"LD_LIBRARY_PATH": "/opt/cuda/lib64"},
    )
    found = findings(natives.older_cuda_libraries_in_front, given)
    assert severities(found) == severity


# ---- QD425 to QD428: what the wheels bring


TORCH = Binary("torch", "lib/libtorch_cpu.so", "x86_64", {"GLIBC": "2.28", "GLIBCXX": "3.4.22"})


@pytest.mark.parametrize(
    ("libc", "provided", "asked"),
    [
        ("glibc 2.17", {"GLIBCXX": "3.4.33"}, ["GLIBC_2.28"]),
        ("glibc 2.35", {"GLIBCXX": "3.4.19"}, ["GLIBCXX_3.4.22"]),
        ("glibc 2.17", {"GLIBCXX": "3.4.19"}, ["GLIBC_2.28", "GLIBCXX_3.4.22"]),
        ("glibc 2.28", {"GLIBCXX": "3.4.22"}, []),
        ("glibc 2.35", {}, []),
        ("", {}, []),
    ],
)
def test_a_system_older_than_the_binaries(libc: str, provided: dict[str, str], asked: list[str]) -> None:
    given = machine(host=Host(libc=libc), native=Native(binaries=(TORCH,), provided=provided))
    found = findings(natives.system_older_than_the_binaries, given, *RUN)
    assert [f.evidence["asked"] for f in found] == ([asked] if asked else [])
    assert severities(found) == (["error"] if asked else [])


def test_a_library_of_bitsandbytes_that_torch_will_not_take_does_not_count() -> None:
    xpu = Binary("bitsandbytes", "libbitsandbytes_xpu2026.so", "x86_64", {"GLIBC": "2.99"})
    own = Binary("bitsandbytes", "libbitsandbytes_cuda130.so", "x86_64", {"GLIBC": "2.99"})
    check = natives.system_older_than_the_binaries
    assert findings(check, machine(native=Native(binaries=(xpu,)))) == ()
    assert len(findings(check, machine(native=Native(binaries=(xpu, own))))) == 1


@pytest.mark.parametrize(("machine_", "told"), [("x86_64", False), ("AMD64", False), ("aarch64", True)])
def test_an_environment_that_was_copied_to_another_processor(machine_: str, told: bool) -> None:
    given = machine(host=Host(machine=machine_), native=Native(binaries=(TORCH, TORCH)))
    assert len(findings(natives.binary_for_another_processor, given)) == int(told)


@pytest.mark.parametrize(
    ("version", "links", "told"),
    [
        ("2.7.4.post1+cu12torch2.6cxx11abiFALSE", (), "was built for torch 2.6"),
        ("2.8.3+cu12torch2.13cxx11abiTRUE", (), "was built for CUDA 12"),
        ("2.8.3", ("libcudart.so.12",), "was built for CUDA 12"),
        ("2.8.3", ("libcudart.so.13",), ""),
        ("2.8.3+cu13torch2.13", (), ""),
    ],
)
def test_flash_attn_says_which_torch_it_was_built_for(version: str, links: tuple[str, ...], told: str) -> None:
    binary = Binary("flash_attn", "flash_attn_2_cuda.so", "x86_64", {}, links)
    given = machine(versions={"flash-attn": version}, native=Native(binaries=(binary,)))
    check = natives.flash_attn_of_another_torch
    found = findings(check, given, load())
    assert severities(found) == (["warning"] if told else [])
    assert all(told in f.text for f in found)
    if told:
        assert severities(findings(check, given, load(attn_implementation="flash_attention_2"))) == ["error"]


def test_a_flash_attn_that_does_not_say_is_unknown() -> None:
    assert outcome(natives.flash_attn_of_another_torch, machine(versions={"flash-attn": "2.8.3"})) == "unknown"


def test_wheels_of_another_cuda_are_told_unless_something_asks_for_them() -> None:
    check = natives.cuda_wheels_of_another_major
    left = {"nvidia-cublas-cu11": "11.10.3.66", "nvidia-cublas-cu12": "12.6.4.1"}
    given = machine(versions=left, torch=TorchBuild("2.7.0", "12.6"))
    (found,) = findings(check, given)
    assert (found.severity, found.evidence["names"]) == ("info", ["nvidia-cublas-cu11"])
    asking = Distribution("cupy-cuda11x", "13.0", requires=("nvidia-cublas-cu11>=11",))
    packages = Packages((*given.packages.distributions, asking))
    assert findings(check, given.but(packages=packages)) == ()


# ---- QD430 and QD431: other vendors

MI300 = Gpu("AMD Instinct MI300X", None, 192 * GIB, 192 * GIB, vendor="amd")


@pytest.mark.parametrize(
    ("gpu", "torch", "severity"),
    [
        (MI300, TorchBuild("2.13.0", "13.0"), ["error"]),
        (MI300, TorchBuild("2.13.0+rocm7.1", hip="7.1"), []),
        (replace(MI300, name="Intel Arc B580", vendor="intel"), TorchBuild("2.13.0+cpu"), ["error"]),
        (Gpu("Apple M3", vendor="apple"), TorchBuild("2.13.0"), []),
        (A100, TorchBuild("2.13.0+cpu"), []),
    ],
)
def test_a_torch_for_another_vendors_gpu(gpu: Gpu, torch: TorchBuild, severity: list[str]) -> None:
    assert severities(findings(accelerators.torch_of_another_vendor, machine(gpu, torch=torch), *RUN)) == severity


@pytest.mark.parametrize(
    ("torch", "version", "severity"),
    [
        (TorchBuild("2.13.0+rocm7.1", hip="7.1"), "0.48.2", ["error"]),
        (TorchBuild("2.13.0+rocm7.1", hip="7.1"), "0.49.2", ["info"]),
        (TorchBuild("2.13.0+rocm7.1", hip="7.1"), "0.50.2", []),
        (TorchBuild("2.13.0+xpu", xpu="2025.2"), "0.47.0", ["error"]),
        (TorchBuild("2.13.0", "13.0"), "0.43.3", []),
    ],
)
def test_bitsandbytes_serves_other_accelerators_from_a_version_on(
    torch: TorchBuild, version: str, severity: list[str]
) -> None:
    given = machine(MI300, versions={"bitsandbytes": version}, torch=torch)
    check = accelerators.bitsandbytes_too_old_for_this_accelerator
    assert severities(findings(check, given, *RUN)) == severity


def test_apple_is_slow_and_said_so() -> None:
    mac = machine(
        Gpu("Apple M3", vendor="apple"),
        versions={"bitsandbytes": "0.48.2"},
        torch=TorchBuild("2.13.0"),
        host=Host(system="Darwin", machine="arm64"),
    )
    (found,) = findings(accelerators.bitsandbytes_too_old_for_this_accelerator, mac, *RUN)
    assert (found.severity, "Apple" in found.text) == ("error", True)


# ---- all of them

NEW = (*gpus.CHECKS, *features.CHECKS, *natives.CHECKS, *accelerators.CHECKS)
PARTS = ("gpus", "torch", "native", "host", "packages", "driver", "environ")


@pytest.mark.parametrize("check", NEW, ids=lambda c: c.code)
def test_what_could_not_be_read_is_never_ok(check: Any) -> None:
    unread = machine().but(**{part: Unknown("it hangs") for part in PARTS})
    assert outcome(check, unread, load(), train(settings={})) == "unknown"


def test_the_codes_are_those_of_the_table() -> None:
    assert [c.code for c in NEW] == [f"QD{n}" for n in (*range(410, 429), 430, 431)]
