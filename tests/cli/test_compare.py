"""Several machines: `compare`, `facts --save` with fields, `check --ssh`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.facts import Driver, Facts, Gpu, Host, Library, LiveProbe, Native, TorchBuild, Unknown
from qlora_doctor.testing import facts
from tests.cli.conftest import Doctor
from tests.gather.environments import executable

STACK = {"torch": "2.14.1", "transformers": "5.23.0", "tqdm": "4.70.1"}
H100 = Gpu("NVIDIA H100", "9.0", 80 << 30, 79 << 30, uuid="GPU-1")


def machine(versions: dict[str, str] | None = None, **parts: Any) -> Facts:
    given: dict[str, Any] = {
        "torch": TorchBuild("2.14.1", "13.0"),
        "driver": Driver("580.95.05", "13.0"),
        "gpus": (H100,),
        "host": Host(),
        "environ": {"RANK": "0"},
    }
    return facts({**STACK, **(versions or {})}, **{**given, **parts})


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., list[Path]]:
    def write(*machines: Facts) -> list[Path]:
        paths = [tmp_path / f"node{number}.json" for number in range(len(machines))]
        for path, each in zip(paths, machines, strict=True):
            path.write_text(json.dumps(each.to_wire()), encoding="utf-8")
        return paths

    return write


def rows(run: Any) -> list[tuple[str, list[str]]]:
    return [(d["what"], d["values"]) for d in run.json["differences"]]


def test_the_same_machine_twice_has_no_difference(doctor: Doctor, save: Any) -> None:
    other = machine(gpus=(Gpu("NVIDIA H100", "9.0", 80 << 30, 3 << 30, uuid="GPU-2"),), environ={"RANK": "1"})
    run = doctor("compare", *save(machine(), other))
    assert (run.code, run.out.strip()) == (0, "no difference between node0, node1")


def test_what_breaks_runs_comes_before_what_does_not(doctor: Doctor, save: Any) -> None:
    other = machine(
        {"tqdm": "4.0.0", "transformers": "4.44.2", "extra-tool": "1"},
        driver=Driver("550.120", "12.4"),
        host=Host(distribution="Debian"),
    )
    run = doctor("compare", "--format", "json", *save(machine(), other))
    assert run.code == 1
    names = [what for what, _ in rows(run)]
    assert names.index("driver version") < names.index("package transformers") < names.index("package tqdm")
    assert ("driver version", ["580.95.05", "550.120"]) in rows(run)
    assert ("package extra-tool", ["-", "1"]) in rows(run)


def test_of_one_kind_what_is_missing_comes_before_another_major_and_that_before_a_minor(
    doctor: Doctor, save: Any
) -> None:
    here = machine({"aaa": "1.0.0", "bbb": "1.0", "ccc": "1.0"})
    there = machine({"aaa": "1.2.0", "bbb": "2.0"})
    run = doctor("compare", "--format", "json", *save(here, there))
    assert [what for what, _ in rows(run)] == ["package ccc", "package bbb", "package aaa"]


def test_the_node_that_drifted_is_marked(doctor: Doctor, save: Any) -> None:
    paths = save(machine(), machine(), machine({"transformers": "5.20.0"}), machine())
    run = doctor("compare", "--format", "json", *paths)
    assert [(d["what"], d["odd"]) for d in run.json["differences"]] == [("package transformers", str(paths[2]))]
    text = doctor("compare", *paths).out
    assert "* 5.20.0" in text and "* 5.23.0" not in text


def test_what_was_not_read_on_one_machine_is_said_and_not_taken_for_a_difference(doctor: Doctor, save: Any) -> None:
    run = doctor("compare", "--format", "json", *save(machine(), machine(driver=Unknown("nvidia-smi hangs"))))
    assert rows(run) == [("driver unknown", ["-", "nvidia-smi hangs"])]


def test_a_gpu_less_is_one_line(doctor: Doctor, save: Any) -> None:
    run = doctor("compare", "--format", "json", *save(machine(), machine(gpus=(H100, H100))))
    assert rows(run) == [("gpus", ["1", "2"])]


def test_another_copy_of_libcuda_and_a_probe_that_crashed_are_differences(doctor: Doctor, save: Any) -> None:
    here = Native((Library("libcuda.so.1", "/a/libcuda.so.1", "580.95.05", "driver"),))
    there = Native((Library("libcuda.so.1", "/b/libcuda.so.1", "", "stub"),))
    sound, crashed = LiveProbe("import torch", "ok"), LiveProbe("import torch", "died", "SIGSEGV")
    run = doctor(
        "compare",
        "--format",
        "json",
        *save(machine(native=here, live=(sound,)), machine(native=there, live=(crashed,))),
    )
    assert ("cuda libcuda", ["580.95.05 (driver)", "unversioned (stub)"]) in rows(run)
    assert ("live import torch", ["ok", "died"]) in rows(run)


def test_one_file_or_one_that_is_no_facts_is_refused(doctor: Doctor, save: Any, tmp_path: Path) -> None:
    (path,) = save(machine())
    assert doctor("compare", path).code == 2
    (tmp_path / "other.json").write_text("[]")
    run = doctor("compare", path, tmp_path / "other.json")
    assert run.code == 2 and "other.json" in run.err


# ---- facts --save with fields


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"])
def test_each_rank_leaves_a_file_of_its_own(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for rank in ("0", "1"):
        monkeypatch.setenv(variable, rank)
        assert doctor("facts", "--offline", "--save", str(tmp_path / "nodes" / "{rank}.json")).code == 0
    paths = sorted((tmp_path / "nodes").iterdir())
    assert [p.name for p in paths] == ["0.json", "1.json"]
    if variable == "RANK":
        assert doctor("compare", *paths).code == 0


def test_a_rank_that_nobody_names_is_refused(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    run = doctor("facts", "--save", "{rank}.json")
    assert run.code == 2 and "torchrun" in run.err


# ---- check --ssh


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for ssh is a shell script")
def test_another_machine_is_judged_over_ssh(doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(tmp_path / "bin" / "ssh", '#!/bin/sh\nfor last; do :; done\nHF_TOKEN=x exec sh -c "$last"\n')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    run = doctor("check", "--ssh", "gpu-box", "--python", sys.executable, "--format", "json", "-v")
    assert run.code in (0, 1), run.err
    assert run.json["facts"]["environ"]["HF_TOKEN"] == "<redacted>"
    assert "the environment of gpu-box" in doctor("check", "--ssh", "gpu-box", "--python", sys.executable).out


def test_ssh_and_saved_facts_exclude_each_other(doctor: Doctor, save: Any) -> None:
    (path,) = save(machine())
    assert doctor("check", "--ssh", "gpu-box", "--facts", path).code == 2
