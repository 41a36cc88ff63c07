"""What is advised to be installed: builds of torch, and what goes with them."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_checks import builds, cuda, install
from qlora_doctor.facts import Driver, Facts, Gpu, Host, Native, TorchBuild
from qlora_doctor.testing import facts, findings

V100 = Gpu("Tesla V100-SXM2-16GB", "7.0")
RTX_3060 = Gpu("NVIDIA GeForce RTX 3060", "8.6")
RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", "12.0")


def machine(driver: str = "580.95.05", *cards: Gpu, python: str = "3.11.7", **parts: Any) -> Facts:
    given: dict[str, Any] = {"driver": Driver(driver), "gpus": cards or (RTX_3060,), "host": Host(), "native": Native()}
    return facts({"torch": "2.14.1"}, python=python, **{**given, **parts})


def newest(given: Facts, *, windows: bool = False) -> tuple[str, str]:
    build = next(install.fitting(given, windows=windows))
    return build.torch, build.cuda


@pytest.mark.parametrize(
    ("given", "build"),
    [
        (machine(), ("2.14", "13.0")),
        (machine("550.120"), ("2.14", "12.6")),
        (machine("580.95.05", V100), ("2.14", "12.6")),
        (machine("570.172.08", RTX_5090), ("2.13", "12.9")),
        (machine("580.95.05", V100, RTX_5090), ("2.10", "12.8")),
        (machine(python="3.9.18"), ("2.8", "12.8")),
        (machine(python="3.8.18"), ("2.4", "12.1")),
        (machine("515.65.01", V100), ("2.7", "11.8")),
        (machine(host=Host(machine="aarch64")), ("2.14", "13.0")),
        (facts({}), ("2.14", "13.0")),
    ],
    ids=["current", "old driver", "V100", "5090 on R570", "V100 and 5090", "3.9", "3.8", "CUDA 11", "ARM", "nothing known"],
)  # fmt: skip
def test_the_newest_build_that_fits_driver_gpu_and_python(given: Facts, build: tuple[str, str]) -> None:
    assert newest(given) == build


def test_no_build_is_offered_that_the_driver_or_the_gpu_cannot_run() -> None:
    for given in (machine("550.120"), machine("580.95.05", V100), machine("570.172.08", RTX_5090)):
        driver, (gpu,) = given.driver, given.gpus
        assert driver is not None and gpu.sm is not None
        for build in install.fitting(given, windows=False):
            assert not builds.too_old(driver, build.cuda, windows=False)
            assert builds.serves(builds.codes_of(build.torch, build.cuda, "x86_64"), gpu.sm, build.cuda)


def test_nothing_fits_an_ancient_driver() -> None:
    assert list(install.fitting(machine("390.157"), windows=False)) == []
    given = machine("390.157", torch=TorchBuild("2.14.1", "13.0"))
    (found,) = findings(cuda.driver_older_than_the_cuda_of_torch, given)
    assert found.evidence["build"].startswith("a newer driver") and len(found.fixes) == 1


@pytest.mark.parametrize(
    ("build", "windows", "words"),
    [
        (install.Build("2.14", "13.0", True), False, "pip install 'torch==2.14.*'"),
        (install.Build("2.14", "12.6", False), False, "uv pip install 'torch==2.14.*' --torch-backend=cu126"),
    ],
)
def test_one_command_installs_it(build: install.Build, windows: bool, words: str) -> None:
    assert install.command(build) == words


def test_on_windows_pip_brings_a_cpu_build_so_the_command_names_the_cuda() -> None:
    build = next(install.fitting(machine(), windows=True))
    assert "--torch-backend=cu130" in install.command(build)


@pytest.mark.parametrize(
    ("python", "expected"),
    [
        ("3.11.7", ["torch==2.14.1", "transformers==5.23.0", "huggingface-hub==2.4.0", "peft==0.21.2", "accelerate==1.15.0", "bitsandbytes==0.50.2"]),
        ("3.10.1", ["torch==2.14.1", "transformers==5.20.2", "huggingface-hub==2.4.0", "peft==0.21.2", "accelerate==1.15.0", "bitsandbytes==0.50.2"]),
        ("3.9.18", ["torch==2.8.0", "transformers==4.57.6", "huggingface-hub==0.36.0", "peft==0.17.1", "accelerate==1.10.1", "bitsandbytes==0.48.2"]),
    ],
)  # fmt: skip
def test_the_newest_set_follows_python(python: str, expected: list[str]) -> None:
    assert install.companions(machine(python=python)) == expected


def test_the_nearest_build_keeps_the_torch_and_the_newest_set_is_offered_beside_it() -> None:
    given = machine("550.120", torch=TorchBuild("2.9.0", "13.0"))
    (found,) = findings(cuda.driver_older_than_the_cuda_of_torch, given)
    assert found.evidence["build"] == "the cu128 build of torch 2.9"
    assert [getattr(fix, "command", "") for fix in found.fixes] == [
        "",
        "pip install 'torch==2.9.*'",
        (
            "uv pip install torch==2.14.1 transformers==5.23.0 huggingface-hub==2.4.0 peft==0.21.2 accelerate==1.15.0"
            " bitsandbytes==0.50.2 --torch-backend=cu126"
        ),
    ]
    assert {fix.applicability for fix in found.fixes} == {"display-only"}
