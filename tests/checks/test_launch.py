"""QD613-QD618: several processes, seen in the launcher's variables or in the script; silence for one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from qlora_checks import launch
from qlora_doctor.facts import Facts, Gpu, TorchBuild
from qlora_doctor.source import Call, Dotted, Script
from qlora_doctor.testing import assert_fixed_by, bnb, facts, findings, load, outcome, train

CHECKS = {check.code: check for check in launch.CHECKS}
NEW = {"transformers": "5.23.0", "bitsandbytes": "0.50.2", "peft": "0.21.2"}
OLD = {**NEW, "transformers": "4.57.6"}
TWO = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0"}
A100, RTX = "NVIDIA A100-SXM4-80GB", "NVIDIA GeForce RTX 4090"


def cards(count: int, name: str = A100) -> tuple[Gpu, ...]:
    return tuple(Gpu(name, "8.0", 80 * 2**30, 80 * 2**30, index=n) for n in range(count))


def world(
    packages: Mapping[str, str] = NEW, environ: Mapping[str, str] = TWO, gpus: int = 2, name: str = A100
) -> Facts:
    return facts(packages, environ=environ, gpus=cards(gpus, name), torch=TorchBuild("2.13.0", "12.8"))


def ddp(**settings: Any) -> Any:
    return train(settings={"gradient_checkpointing": True, **settings}, lora={"r": 8}, peft=True)


def fsdp(optim: str = "adamw_torch", **settings: Any) -> Any:
    return train(settings={"fsdp": "full_shard", "optim": optim, **settings}, lora={"r": 8}, load=load(), peft=True)


# ------------------------------------------------------------------------------------------------ QD613


def test_ddp_with_reentrant_checkpointing_is_found_and_fixed() -> None:
    assert_fixed_by(CHECKS["QD613"], world(OLD), ddp())
    assert_fixed_by(CHECKS["QD613"], world(), ddp(gradient_checkpointing_kwargs={"use_reentrant": True}))


@pytest.mark.parametrize(
    ("packages", "environ", "request_"),
    [
        (NEW, TWO, ddp()),
        (OLD, {}, ddp()),
        (OLD, TWO, ddp(ddp_find_unused_parameters=False)),
        (OLD, TWO, ddp(gradient_checkpointing=False)),
        (OLD, TWO, ddp(gradient_checkpointing_kwargs={"use_reentrant": False})),
        (OLD, TWO, ddp(fsdp="full_shard")),
        (OLD, TWO, train(settings={"gradient_checkpointing": True}, peft=False)),
        (OLD, TWO, train("trl.SFTTrainer", {"gradient_checkpointing": True}, lora={"r": 8}, peft=True)),
        (OLD, TWO, train("loop", {"gradient_checkpointing": True}, lora={"r": 8}, peft=True)),
    ],
    ids=["not-reentrant", "one-process", "told-not-to", "off", "said-not", "fsdp", "no-adapter", "trl", "loop"],
)
def test_checkpointing_that_works_is_silent(packages: Any, environ: Any, request_: Any) -> None:
    assert findings(CHECKS["QD613"], world(packages, environ), request_) == ()


def test_a_script_that_may_be_launched_is_warned() -> None:
    script = Script("train.py", distributed="reads LOCAL_RANK")
    (finding,) = findings(CHECKS["QD613"], world(OLD, {}), ddp(), script=script)
    assert finding.severity == "warning"


def test_checkpointing_that_cannot_be_known_is_unknown() -> None:
    request = train(settings={}, lora={"r": 8}, peft=True)
    assert request.settings is not None
    hidden = replace(request, settings=replace(request.settings, open="**options"))
    assert outcome(CHECKS["QD613"], world(OLD), hidden) == "unknown"


# ------------------------------------------------------------------------------------------------ QD614


def test_more_processes_than_visible_gpus_is_found() -> None:
    (finding,) = findings(CHECKS["QD614"], world(gpus=1))
    assert "--nproc-per-node 1" in finding.text
    hidden = world(environ={**TWO, "CUDA_VISIBLE_DEVICES": "0"})
    assert len(findings(CHECKS["QD614"], hidden)) == 1


@pytest.mark.parametrize(
    "known", [world(), world(environ={}, gpus=1), world(gpus=0), world(environ={"LOCAL_WORLD_SIZE": "x"}, gpus=1)]
)
def test_as_many_gpus_as_processes_one_process_and_a_cpu_are_silent(known: Facts) -> None:
    assert findings(CHECKS["QD614"], known) == ()


def test_a_cpu_build_of_torch_starts_as_many_as_it_likes() -> None:
    assert findings(CHECKS["QD614"], world(gpus=1).but(torch=TorchBuild("2.13.0"))) == ()


# ------------------------------------------------------------------------------------------------ QD615


def test_loopback_between_machines_is_an_error_and_on_one_machine_nothing() -> None:
    two_machines = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "NCCL_SOCKET_IFNAME": "lo"}
    (finding,) = findings(CHECKS["QD615"], world(environ=two_machines))
    assert finding.severity == "error" and finding.fixes[0].name == "NCCL_SOCKET_IFNAME"  # type: ignore[union-attr]
    assert findings(CHECKS["QD615"], world(environ={**two_machines, "WORLD_SIZE": "2"})) == ()
    assert findings(CHECKS["QD615"], world(environ={**two_machines, "NCCL_SOCKET_IFNAME": "eth0"})) == ()


@pytest.mark.parametrize(
    ("name", "more", "severity"),
    [
        (A100, {}, "info"),
        (RTX, {}, None),
        (RTX, {"NCCL_SHM_DISABLE": "1"}, "warning"),
        (A100, {"WORLD_SIZE": "1"}, None),
    ],
    ids=["data-centre", "consumer", "sockets", "one-process"],
)
def test_what_disables_the_way_between_gpus_is_judged_by_the_card(
    name: str, more: Mapping[str, str], severity: str | None
) -> None:
    found = findings(CHECKS["QD615"], world(environ={**TWO, "NCCL_P2P_DISABLE": "1", **more}, name=name))
    assert [f.severity for f in found] == ([severity] if severity else [])


# ------------------------------------------------------------------------------------------------ QD616


def test_other_batch_sizes_in_the_deepspeed_configuration_are_found() -> None:
    config: Any = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": "auto",
        "zero_optimization": {"stage": 2},
    }
    (finding,) = findings(CHECKS["QD616"], world(), train(settings={"deepspeed": config}))
    assert "per_device_train_batch_size=8" in finding.text
    assert (
        findings(CHECKS["QD616"], world(), train(settings={"deepspeed": config, "per_device_train_batch_size": 4}))
        == ()
    )


def test_a_deepspeed_file_and_auto_are_silent() -> None:
    for config in ("ds.json", {"train_micro_batch_size_per_gpu": "auto"}, None, Dotted("CONFIG")):
        assert findings(CHECKS["QD616"], world(), train(settings={"deepspeed": config})) == ()


# ------------------------------------------------------------------------------------------------ QD617, QD618


def test_a_bitsandbytes_optimizer_under_fsdp2_is_found_and_fixed() -> None:
    assert_fixed_by(CHECKS["QD617"], world(), fsdp("paged_adamw_8bit"))
    launched = {**TWO, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    assert_fixed_by(CHECKS["QD617"], world(environ=launched), train(settings={"optim": "adamw_bnb_8bit"}))


@pytest.mark.parametrize(
    ("packages", "request_"),
    [
        (NEW, fsdp("adamw_torch")),
        (NEW, fsdp("paged_adamw_8bit", fsdp_config={"version": 1})),
        (OLD, fsdp("paged_adamw_8bit")),
        (NEW, fsdp("paged_adamw_8bit", fsdp="")),
        (NEW, train("loop", {"optim": "paged_adamw_8bit", "fsdp": True})),
    ],
    ids=["torch", "fsdp1", "older", "no-fsdp", "loop"],
)
def test_other_optimizers_and_unsharded_runs_are_silent(packages: Any, request_: Any) -> None:
    assert findings(CHECKS["QD617"], world(packages), request_) == ()


def test_packed_weights_in_uint8_under_fsdp_are_found_and_stored_in_the_models_dtype() -> None:
    config = bnb()
    request = train(
        settings={"fsdp": True}, lora={"r": 8}, load=load(quantization_config=config, dtype=Dotted("torch.float16"))
    )
    (finding,) = findings(CHECKS["QD618"], world(), request)
    assert finding.fixes[0].value == Dotted("torch.float16")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "request_",
    [
        train(settings={"fsdp": True}, load=load(quantization_config=bnb(bnb_4bit_quant_storage=Dotted("torch.bfloat16")))),
        train(settings={"fsdp": True}, load=load(quantization_config=None)),
        train(settings={}, load=load()),
        train(settings={"fsdp": True}, load=load(quantization_config=Call("transformers.BitsAndBytesConfig", arguments={"load_in_8bit": True}))),
    ],
    ids=["given", "not-quantised", "no-fsdp", "8-bit"],
)  # fmt: skip
def test_runs_that_shard_what_they_have_are_silent(request_: Any) -> None:
    assert findings(CHECKS["QD618"], world(), request_) == ()
