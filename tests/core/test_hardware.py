"""The dtype comes from the card, the device from what is there."""

from __future__ import annotations

import pytest

from qlora_core import hardware
from qlora_doctor.errors import UsageError
from qlora_doctor.facts import TorchBuild
from qlora_doctor.families import BY_TYPE
from qlora_doctor.testing import RTX_3060, T4, facts

CUDA, CPU = TorchBuild("2.13.0", "13.0"), TorchBuild("2.13.0+cpu")


@pytest.mark.parametrize(
    ("capability", "text", "expected"),
    [
        ((8, 6), "llama", "bfloat16"),
        ((8, 6), "t5", "bfloat16"),
        ((7, 5), "llama", "float16"),
        ((7, 5), "t5", "float32"),
    ],
)
def test_the_dtype_is_what_the_card_computes_in_and_never_float16_for_t5(
    capability: tuple[int, int], text: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    chosen, why = hardware.choose_dtype(torch.device("cuda", 0), BY_TYPE["llava"], text)
    assert chosen == expected and f"{capability[0]}.{capability[1]}" in why


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_a_cpu_that_only_emulates_bfloat16_gets_float32(
    native: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert hardware.choose_dtype(torch.device("cpu"), None, "")[0] == expected


@pytest.mark.parametrize(
    ("gpus", "build", "device", "expected"),
    [
        ((RTX_3060,), CUDA, None, "bfloat16"),
        ((T4,), CUDA, None, "float16"),
        ((RTX_3060, T4), CUDA, None, "float16"),
        ((T4,), CUDA, "cpu", "bfloat16"),
        ((T4,), CPU, None, "bfloat16"),
        ((), CUDA, None, "bfloat16"),
    ],
)
def test_the_checks_are_shown_the_dtype_that_will_be_chosen(
    gpus: tuple[object, ...], build: TorchBuild, device: str | None, expected: str
) -> None:
    assert hardware.expected_dtype(facts(gpus=gpus, torch=build), BY_TYPE["qwen3"], device) == expected


def test_a_rank_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "zero")
    with pytest.raises(UsageError, match="LOCAL_RANK"):
        hardware.local_rank()


def test_free_memory_of_the_cpu_is_what_the_system_says_is_available() -> None:
    import torch

    free = hardware.free_memory(torch.device("cpu"))
    if free is None:
        pytest.skip("this system does not say")
    assert 2**20 < free < 2**50
