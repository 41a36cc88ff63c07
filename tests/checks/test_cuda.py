"""QD4: drivers, CUDA builds, GPUs, and what the CPU can do."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_checks import builds, cuda, library, no_gpu
from qlora_doctor.facts import BnbBuild, Distribution, Driver, Facts, Gpu, Host, Native, Packages, TorchBuild, Unknown
from qlora_doctor.testing import RTX_3060, assert_fixed_by, facts, findings, load, outcome, train

FOUR_BIT = load()
V100 = Gpu("Tesla V100-SXM2-16GB", "7.0")
RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", "12.0")
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9")


def machine(
    torch: str = "2.13.0+cu130",
    cuda_version: str | None = "13.0",
    driver: str | None = "580.95.05",
    gpus: tuple[Gpu, ...] = (RTX_3060,),
    versions: dict[str, str] | None = None,
    **parts: Any,
) -> Facts:
    packages = {"torch": torch, "transformers": "5.23.0", "bitsandbytes": "0.50.2", "accelerate": "1.15.0"}
    given: dict[str, Any] = {
        "torch": TorchBuild(torch, cuda_version),
        "driver": None if driver is None else Driver(driver),
        "gpus": gpus,
        "bitsandbytes": BnbBuild("0.50.2", ("cpu", "cuda118", "cuda126", "cuda128", "cuda130")),
        "environ": {},
        "host": Host(),
        "native": Native(),
    }
    return facts({**packages, **(versions or {})}, **{**given, **parts})


@pytest.mark.parametrize("check", cuda.CHECKS, ids=lambda c: c.code)
def test_a_sound_machine_is_silent(check: Any) -> None:
    assert findings(check, machine(), FOUR_BIT, train(settings={})) == ()


@pytest.mark.parametrize("check", cuda.CHECKS, ids=lambda c: c.code)
def test_what_could_not_be_read_is_unknown(check: Any) -> None:
    unread = Unknown("nvidia-smi timed out")
    given = Facts(
        **{
            part: unread
            for part in ("torch", "driver", "gpus", "environ", "packages", "bitsandbytes", "host", "native")
        }
    )  # type: ignore[arg-type]
    assert outcome(check, given, FOUR_BIT, train(settings={})) == "unknown"


# ---- QD401


@pytest.mark.parametrize(
    ("driver", "cuda_version", "host"),
    [
        (Driver("550.120", "12.4"), "13.0", Host()),
        (Driver("570.172.08"), "13.2", Host()),
        (Driver("515.65.01"), "12.1", Host()),
        (Driver("526.86"), "12.1", Host(system="Windows")),
        (Driver("526.86"), "12.1", Host(wsl=2)),
        (Driver("390.157"), "11.8", Host()),
    ],
)
def test_a_driver_that_cannot_run_the_cuda_of_torch(driver: Driver, cuda_version: str, host: Host) -> None:
    given = machine("2.4.0", cuda_version, driver=None, host=host).but(driver=driver)
    assert [f.severity for f in findings(cuda.driver_older_than_the_cuda_of_torch, given, FOUR_BIT)] == ["error"]
    assert [f.severity for f in findings(cuda.driver_older_than_the_cuda_of_torch, given)] == ["warning"]


@pytest.mark.parametrize(
    ("driver", "cuda_version", "gpu"),
    [
        (Driver("550.120", "12.4"), "12.8", RTX_3060),
        (Driver("525.60.13"), "12.9", RTX_3060),
        (Driver("580"), "13.2", RTX_3060),
        (Driver("535.183.01", "13.0"), "13.0", Gpu("NVIDIA H100 80GB HBM3", "9.0")),
        (Driver("540.4.0"), "13.0", Gpu("Orin", "8.7")),
        (Driver("550.120"), None, RTX_3060),
    ],
)
def test_a_driver_of_the_same_cuda_major_or_with_its_own_newer_cuda(
    driver: Driver, cuda_version: str | None, gpu: Gpu
) -> None:
    given = machine("2.13.0", cuda_version, gpus=(gpu,)).but(driver=driver)
    assert findings(cuda.driver_older_than_the_cuda_of_torch, given, FOUR_BIT) == ()


def test_the_build_that_the_driver_runs_is_named() -> None:
    (found,) = findings(cuda.driver_older_than_the_cuda_of_torch, machine("2.14.1+cu130", "13.0", "550.120"), FOUR_BIT)
    assert found.evidence["build"] == "the cu126 build of torch 2.14"


def test_a_cuda_newer_than_the_table_is_unknown_and_no_guess() -> None:
    assert outcome(cuda.driver_older_than_the_cuda_of_torch, machine("3.0.0", "15.0"), FOUR_BIT) == "unknown"


# ---- QD402


@pytest.mark.parametrize(
    ("torch", "cuda_version", "gpu", "better"),
    [
        ("2.14.1", "13.0", V100, "the cu126 build of torch 2.14"),
        ("2.5.1+cu121", "12.1", RTX_5090, "the cu128 build of torch 2.7"),
        ("2.7.0+cu128", "12.8", V100, "the cu126 build of torch 2.7"),
    ],
)
def test_a_gpu_that_the_torch_build_has_no_code_for(torch: str, cuda_version: str, gpu: Gpu, better: str) -> None:
    (found,) = findings(cuda.gpu_without_code_in_torch, machine(torch, cuda_version, gpus=(gpu,)), FOUR_BIT)
    assert (found.severity, found.evidence["build"]) == ("error", better)


@pytest.mark.parametrize(
    ("torch", "cuda_version", "gpu"),
    [
        ("2.3.1+cu121", "12.1", RTX_4090),
        ("2.8.0+cu128", "12.8", V100),
        ("2.13.0", "13.0", RTX_5090),
        ("2.13.0", "13.0", Gpu("NVIDIA GB10", "12.1")),
        ("2.13.0", "13.0", Gpu("NVIDIA B300", "10.3")),
        ("2.13.0", "13.0", Gpu("unknown card", None)),
    ],
)
def test_code_of_the_same_major_capability_serves(torch: str, cuda_version: str, gpu: Gpu) -> None:
    assert findings(cuda.gpu_without_code_in_torch, machine(torch, cuda_version, gpus=(gpu,)), FOUR_BIT) == ()


@pytest.mark.parametrize("torch", ["2.5.0a0+872d972e41.nv24.08", "2.6.0+gitabcdef", "2.16.0"])
def test_a_build_whose_list_nobody_knows_is_unknown(torch: str) -> None:
    assert outcome(cuda.gpu_without_code_in_torch, machine(torch, "13.0", gpus=(V100,)), FOUR_BIT) == "unknown"


def test_a_build_of_conda_has_a_list_of_its_own() -> None:
    conda = Packages((Distribution("torch", "2.14.1", installer="conda"),))
    given = machine("2.14.1", "13.0", gpus=(V100,)).but(packages=conda)
    assert outcome(cuda.gpu_without_code_in_torch, given, FOUR_BIT) == "unknown"


def test_a_list_that_was_not_verified_only_warns() -> None:
    found = findings(cuda.gpu_without_code_in_torch, machine("2.15.0", "13.0", gpus=(V100,)), FOUR_BIT)
    assert [f.severity for f in found] == ["warning"]


@pytest.mark.parametrize(
    ("codes", "device", "cuda_version", "answer"),
    [
        (("8.0", "8.6"), (8, 7), "12.6", False),
        (("8.0",), (8, 7), "13.2", True),
        (("6.0",), (6, 2), "12.6", False),
        (("6.1",), (6, 0), "12.6", False),
        (("9.0",), (10, 0), "12.8", False),
        (("9.0+",), (10, 0), "12.8", True),
        (("10.0",), (11, 0), "13.0", False),
        (("7.5",), (7, 0), "13.0", False),
    ],
)
def test_which_code_runs_on_which_device(
    codes: tuple[str, ...], device: tuple[int, int], cuda_version: str, answer: bool
) -> None:
    assert builds.serves(codes, device, cuda_version) is answer


# ---- QD403 and QD404


def with_bnb(version: str, libraries: tuple[str, ...], **more: Any) -> Facts:
    return machine(versions={"bitsandbytes": version}, bitsandbytes=BnbBuild(version, libraries), **more)


@pytest.mark.parametrize(
    ("version", "libraries", "cuda_version"),
    [
        ("0.47.0", ("cpu", "cuda126", "cuda128", "cuda129"), "13.0"),
        ("0.49.2", ("cpu", "cuda130"), "13.2"),
        ("0.50.2", ("cpu", "cuda118", "cuda126"), "13.0"),
        ("0.42.0", ("cpu", "cuda121", "cuda121_nocublaslt"), "12.4"),
    ],
)
def test_no_library_for_the_cuda_of_torch(version: str, libraries: tuple[str, ...], cuda_version: str) -> None:
    given = with_bnb(version, libraries, torch="2.13.0", cuda_version=cuda_version)
    found = findings(library.bitsandbytes_without_the_cuda_of_torch, given, FOUR_BIT)
    assert [f.severity for f in found] == ["error"]
    plain = findings(library.bitsandbytes_without_the_cuda_of_torch, given, load(quantization_config=None))
    assert [f.severity for f in plain] == ["warning"]


def test_the_first_bitsandbytes_with_the_library_ends_it() -> None:
    given = with_bnb("0.47.0", ("cpu", "cuda128"), torch="2.11.0", cuda_version="13.0")
    assert (
        findings(library.bitsandbytes_without_the_cuda_of_torch, given)[0].evidence["requirement"]
        == "bitsandbytes>=0.48.2"
    )
    assert_fixed_by(library.bitsandbytes_without_the_cuda_of_torch, given, FOUR_BIT)


@pytest.mark.parametrize(
    ("version", "libraries", "cuda_version", "more"),
    [
        ("0.50.2", ("cuda128",), "12.9", {}),
        ("0.50.2", ("cuda128",), "12.1", {}),
        ("0.49.2", ("cuda130",), "13.0", {}),
        ("0.47.0", ("cuda128",), "13.0", {"gpus": ()}),
        ("0.47.0", ("cuda128",), None, {}),
        ("0.47.0", ("cuda128", "cuda130x"), "12.8", {"environ": {"BNB_CUDA_VERSION": ""}}),
    ],
)
def test_a_library_that_serves_or_a_machine_that_needs_none(
    version: str, libraries: tuple[str, ...], cuda_version: str | None, more: Any
) -> None:
    given = with_bnb(version, libraries, torch="2.13.0", cuda_version=cuda_version, **more)
    assert findings(library.bitsandbytes_without_the_cuda_of_torch, given, FOUR_BIT) == ()


@pytest.mark.parametrize(
    ("version", "value"), [("0.50.2", "124"), ("0.50.2", ""), ("0.50.2", "12.6"), ("0.47.0", "999")]
)
def test_an_override_that_names_no_library(version: str, value: str) -> None:
    given = with_bnb(
        version, ("cpu", "cuda126"), torch="2.13.0", cuda_version="12.6", environ={"BNB_CUDA_VERSION": value}
    )
    (found,) = findings(library.bitsandbytes_without_the_cuda_of_torch, given, FOUR_BIT)
    assert found.text.startswith("BNB_CUDA_VERSION=")
    assert_fixed_by(library.bitsandbytes_without_the_cuda_of_torch, given, FOUR_BIT)


def test_an_old_bitsandbytes_needs_its_other_library_for_a_gpu_before_turing() -> None:
    with_both = ("cpu", "cuda121", "cuda124_nocublaslt")
    old = with_bnb("0.43.3", with_both, torch="2.4.0", cuda_version="12.1", gpus=(V100,))
    assert len(findings(library.bitsandbytes_without_the_cuda_of_torch, old, FOUR_BIT)) == 1
    new = with_bnb("0.43.3", with_both, torch="2.4.0", cuda_version="12.1")
    assert findings(library.bitsandbytes_without_the_cuda_of_torch, new, FOUR_BIT) == ()


def test_a_bitsandbytes_folder_without_any_library_is_unknown() -> None:
    assert outcome(library.bitsandbytes_without_the_cuda_of_torch, with_bnb("0.50.2", ()), FOUR_BIT) == "unknown"


@pytest.mark.parametrize(
    ("version", "cuda_version", "gpu", "count"),
    [
        ("0.46.1", "12.8", V100, 1),
        ("0.47.0", "12.8", V100, 0),
        ("0.49.2", "12.6", Gpu("GTX 980", "5.2"), 1),
        ("0.45.5", "12.6", RTX_5090, 1),
        ("0.45.5", "12.8", RTX_5090, 0),
        ("0.99.0", "12.6", V100, 0),
    ],
)
def test_a_gpu_that_the_bitsandbytes_library_has_no_code_for(
    version: str, cuda_version: str, gpu: Gpu, count: int
) -> None:
    given = machine("2.8.0", cuda_version, gpus=(gpu,), versions={"bitsandbytes": version})
    assert len(findings(library.gpu_without_code_in_bitsandbytes, given, FOUR_BIT)) == count


def test_the_fix_for_a_volta_is_the_next_bitsandbytes() -> None:
    given = machine("2.8.0", "12.8", gpus=(V100,), versions={"bitsandbytes": "0.46.1"})
    assert_fixed_by(library.gpu_without_code_in_bitsandbytes, given, FOUR_BIT)


# ---- QD405: the CPU


def without_gpu(transformers: str, bitsandbytes: str, **more: Any) -> Facts:
    versions = {"transformers": transformers, "bitsandbytes": bitsandbytes}
    return machine("2.13.0+cpu", None, driver=None, gpus=(), versions=versions, **more)


@pytest.mark.parametrize(
    ("transformers", "bitsandbytes", "severity"),
    [
        ("5.23.0", "0.50.2", "info"),
        ("5.24.0.dev0", "0.50.0.dev0", "info"),
        ("4.57.6", "0.48.2", "info"),
        ("4.53.3", "0.46.1", "info"),
        ("4.52.4", "0.46.1", "error"),
        ("4.57.6", "0.45.5", "error"),
        ("4.44.2", "0.43.3", "error"),
    ],
)
def test_what_a_quantised_load_does_without_a_gpu(transformers: str, bitsandbytes: str, severity: str) -> None:
    found = findings(no_gpu.no_gpu, without_gpu(transformers, bitsandbytes), FOUR_BIT)
    assert [f.severity for f in found] == [severity]


@pytest.mark.parametrize(
    ("transformers", "bitsandbytes", "words"),
    [
        ("5.23.0", "0.50.2", ["With bitsandbytes 0.50.2 a 4-bit load and QLoRA training work on the CPU, slowly."]),
        ("5.23.0", "0.48.2", ["work on the CPU", "without its 8-bit optimizers"]),
        ("5.23.0", "0.46.1", ["in part", "without its 8-bit optimizers"]),
        ("5.23.0", "0.45.0", ["Unquantised models work"]),
    ],
)
def test_what_works_on_the_cpu_is_told_by_version(transformers: str, bitsandbytes: str, words: list[str]) -> None:
    (found,) = findings(no_gpu.no_gpu, without_gpu(transformers, bitsandbytes))
    assert all(word in found.text for word in words), found.text


def test_without_bitsandbytes_no_4_bit_load_is_promised() -> None:
    (found,) = findings(no_gpu.no_gpu, facts({"transformers": "5.23.0"}, gpus=()))
    assert "Checks, data preparation and unquantised models" in found.text


def test_a_load_that_is_not_quantised_is_told_and_not_failed() -> None:
    found = findings(no_gpu.no_gpu, without_gpu("4.44.2", "0.43.3"), load(quantization_config=None))
    assert [f.severity for f in found] == ["info"]


def test_an_8_bit_optimizer_on_the_cpu_needs_bitsandbytes_0_50() -> None:
    run = train(settings={"optim": "paged_adamw_8bit"})
    assert [f.severity for f in findings(no_gpu.no_gpu, without_gpu("5.23.0", "0.48.2"), run)] == ["error", "info"]
    assert [f.severity for f in findings(no_gpu.no_gpu, without_gpu("5.23.0", "0.50.2"), run)] == ["info"]
    assert [f.severity for f in findings(no_gpu.no_gpu, without_gpu("5.23.0", "0.50.0.dev0"), run)] == ["info"]


@pytest.mark.parametrize(
    "more",
    [{"torch": TorchBuild("2.13.0", hip="6.4")}, {"torch": TorchBuild("2.13.0", xpu="2025")}, {"host": Host("Darwin")}],
)
def test_other_makers_hardware_is_no_missing_gpu(more: dict[str, Any]) -> None:
    assert findings(no_gpu.no_gpu, without_gpu("4.44.2", "0.43.3").but(**more), FOUR_BIT) == ()


# ---- QD406 and QD407


def test_a_cpu_build_beside_a_gpu_warns_and_fails_where_the_load_is_refused() -> None:
    new = machine("2.13.0+cpu", None, driver="550.120")
    (found,) = findings(cuda.cpu_build_of_torch_beside_a_gpu, new, FOUR_BIT)
    assert (found.severity, found.evidence["build"]) == ("warning", "the cu129 build of torch 2.13")
    old = machine("2.3.1+cpu", None, versions={"transformers": "4.44.2", "bitsandbytes": "0.43.3"})
    assert [f.severity for f in findings(cuda.cpu_build_of_torch_beside_a_gpu, old, FOUR_BIT)] == ["error"]


@pytest.mark.parametrize(("value", "count"), [("", 1), ("-1", 1), ("3", 1), ("0", 0), ("1,0", 1), ("GPU-5f3", 0)])
def test_cuda_visible_devices_that_hides_every_gpu(value: str, count: int) -> None:
    given = machine(environ={"CUDA_VISIBLE_DEVICES": value})
    assert len(findings(cuda.every_gpu_hidden, given)) == count
    if count:
        assert_fixed_by(cuda.every_gpu_hidden, given)


def test_nothing_is_hidden_where_there_is_nothing_or_no_variable() -> None:
    assert findings(cuda.every_gpu_hidden, machine()) == ()
    assert findings(cuda.every_gpu_hidden, machine(gpus=(), environ={"CUDA_VISIBLE_DEVICES": ""})) == ()


def test_training_in_4_bit_on_a_cpu_that_repacks_weights_is_told() -> None:
    flags = {"host": Host(cpu_flags=("avx2", "avx512_bf16"))}
    run = (FOUR_BIT, train(load=FOUR_BIT))
    assert [
        f.severity
        for f in findings(no_gpu.cpu_that_repacks_4_bit_weights, without_gpu("5.23.0", "0.50.2", **flags), *run)
    ] == ["info"]
    assert findings(no_gpu.cpu_that_repacks_4_bit_weights, without_gpu("5.23.0", "0.50.2"), *run) == ()
    assert findings(no_gpu.cpu_that_repacks_4_bit_weights, without_gpu("4.57.6", "0.48.2", **flags), *run) == ()
    assert findings(no_gpu.cpu_that_repacks_4_bit_weights, without_gpu("5.23.0", "0.50.2", **flags), FOUR_BIT) == ()
    assert findings(no_gpu.cpu_that_repacks_4_bit_weights, machine(**flags), *run) == ()


@pytest.mark.parametrize("check", cuda.CHECKS, ids=lambda c: c.code)
def test_an_environment_without_torch_and_bitsandbytes_is_no_crash(check: Any) -> None:
    nothing = facts({}, torch=None, bitsandbytes=None, driver=None, gpus=(RTX_3060,), environ={}, host=Host()).but(
        native=Native()
    )
    assert outcome(check, nothing, FOUR_BIT, train(settings={})) == "ok"


def test_a_build_is_named_also_where_there_is_no_driver_yet() -> None:
    (found,) = findings(cuda.gpu_without_code_in_torch, machine("2.14.1", "13.0", driver=None, gpus=(V100,)))
    assert found.evidence["build"] == "the cu126 build of torch 2.14"


def test_no_build_is_named_where_the_driver_runs_none_that_has_the_gpu() -> None:
    (found,) = findings(cuda.gpu_without_code_in_torch, machine("2.5.1", "12.1", driver="470.256", gpus=(RTX_5090,)))
    assert found.evidence["build"].startswith("another GPU")


def test_the_libraries_of_another_version_than_the_folder_holds_come_from_the_table() -> None:
    stale = machine(
        "2.11.0", "13.0", versions={"bitsandbytes": "0.47.0"}, bitsandbytes=BnbBuild("0.50.2", ("cuda130",))
    )
    assert len(findings(library.bitsandbytes_without_the_cuda_of_torch, stale, FOUR_BIT)) == 1
    absent = machine("2.11.0", "13.0", versions={"bitsandbytes": "0.47.0"}, bitsandbytes=None)
    assert len(findings(library.bitsandbytes_without_the_cuda_of_torch, absent, FOUR_BIT)) == 1


def test_a_planned_bitsandbytes_is_judged_by_the_table() -> None:
    planned = machine("2.11.0", "13.0", bitsandbytes=Unknown("known only after the installation", skipped=True))
    assert outcome(library.bitsandbytes_without_the_cuda_of_torch, planned, FOUR_BIT) == "ok"


def test_the_libraries_of_a_version_older_than_the_table_are_unknown() -> None:
    old = machine("2.1.0", "12.1", versions={"bitsandbytes": "0.37.0"}, bitsandbytes=None)
    assert outcome(library.bitsandbytes_without_the_cuda_of_torch, old, FOUR_BIT) == "unknown"


def test_the_proposed_bitsandbytes_is_newer_than_the_installed_one() -> None:
    torch = TorchBuild("2.8.0", "12.8")
    assert builds.bitsandbytes_for(torch, newer_than="0.46.1") == "0.47.0"
    assert builds.bitsandbytes_for(torch, newer_than="0.50.2") == ""
    assert builds.bitsandbytes_for(TorchBuild("2.2.0", "12.1"), newer_than="0.47.0") == ""


OTHER_SYSTEM = library.bitsandbytes_of_another_system


@pytest.mark.parametrize(
    ("host", "requirement"),
    [
        (Host("Windows", "AMD64"), "bitsandbytes>=0.46.1"),
        (Host("Linux", "aarch64"), "bitsandbytes>=0.46.1"),
        (Host("Darwin", "arm64"), "bitsandbytes>=0.49.2"),
    ],
)
def test_an_old_bitsandbytes_outside_linux_on_x86_64(host: Host, requirement: str) -> None:
    given = machine(versions={"bitsandbytes": "0.42.0"}, host=host)
    (found,) = findings(OTHER_SYSTEM, given, FOUR_BIT)
    assert (found.severity, found.evidence["requirement"]) == ("error", requirement)
    assert_fixed_by(OTHER_SYSTEM, given, FOUR_BIT)


@pytest.mark.parametrize(
    ("host", "version"),
    [
        (Host("Linux", "x86_64"), "0.42.0"),
        (Host("Windows", "AMD64"), "0.43.0"),
        (Host("Linux", "aarch64"), "0.44.1"),
        (Host("FreeBSD", "amd64"), "0.42.0"),
    ],
)
def test_a_bitsandbytes_with_a_wheel_for_the_system_or_built_there(host: Host, version: str) -> None:
    assert findings(OTHER_SYSTEM, machine(versions={"bitsandbytes": version}, host=host), FOUR_BIT) == ()
