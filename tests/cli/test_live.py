"""`check --live`, end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Doctor, Environment
from tests.gather.environments import executable

pytestmark = pytest.mark.skipif(os.name == "nt", reason="ends processes by signals")


def test_a_crash_is_a_finding_and_not_the_end_of_the_doctor(doctor: Doctor, environment: Environment) -> None:
    environment.install("torch", "2.13.0", module="import os\nos.kill(os.getpid(), 11)\n")
    run = doctor("check", "--live", "--python", environment.python, "--select", "QD9", "--format", "json")
    assert (run.code, run.codes) == (1, ["QD901"])
    assert run.json["findings"][0]["evidence"]["signal"] == "SIGSEGV"
    assert "live: import torch ... died" in run.err


def test_without_live_nothing_is_imported(doctor: Doctor, environment: Environment) -> None:
    environment.install("torch", "2.13.0", module="raise SystemExit('IMPORTED')\n")
    run = doctor("check", "--python", environment.python, "--select", "QD9", "--format", "json")
    assert (run.code, run.err) == (0, "")
    assert {o["outcome"] for o in run.json["outcomes"]} == {"skipped"}


def test_what_was_tried_can_be_saved_and_judged_elsewhere(
    doctor: Doctor, environment: Environment, tmp_path: Path
) -> None:
    environment.install("torch", "2.13.0", module="import os\nos.kill(os.getpid(), 11)\n")
    path = tmp_path / "tried.json"
    assert doctor("facts", "--offline", "--live", "--python", environment.python, "--save", path).code == 0
    assert doctor("check", "--facts", path, "--select", "QD9", "--format", "json").codes == ["QD901"]
    assert doctor("facts", "--live", "--ssh", "host").code == 2


@pytest.mark.parametrize("other", [("--facts", "x.json"), ("--ssh", "host"), ("--gpu", "RTX 4060")])
def test_live_is_about_this_machine(doctor: Doctor, other: tuple[str, str]) -> None:
    run = doctor("check", "--live", *other)
    assert run.code == 2 and "--live" in run.err


@pytest.mark.torch
def test_every_probe_passes_where_the_stack_is_sound(doctor: Doctor) -> None:
    run = doctor("check", "--live", "--python", sys.executable, "--select", "QD9", "--format", "json", "-v")
    assert run.codes == [], run.out
    outcomes = {p["name"]: p["outcome"] for p in run.json["facts"]["live"]}
    assert {o for name, o in outcomes.items() if name != "import flash_attn"} == {"ok"}


# ---- --gpu and --driver


def test_a_card_that_is_not_here_is_judged(doctor: Doctor) -> None:
    machine = Path(__file__).parents[1] / "machines" / "healthy-h100.json"
    assert doctor("check", "--facts", machine, "--select", "QD4").code == 0
    run = doctor("check", "--facts", machine, "--select", "QD4", "--gpu", "v100", "--format", "json")
    assert run.codes == ["QD402"]
    run = doctor("check", "--facts", machine, "--select", "QD4", "--driver", "550.120", "--format", "json", "-v")
    assert run.codes == ["QD401"]
    assert run.json["facts"]["driver"]["version"] == "550.120"


def test_two_cards_are_two_gpus_and_hidden_ones_do_not_matter(doctor: Doctor) -> None:
    machine = Path(__file__).parents[1] / "machines" / "hidden-gpu.json"
    run = doctor("check", "--facts", machine, "--gpu", "2x RTX 4090", "--format", "json", "-v", "--select", "QD4")
    gpus = run.json["facts"]["gpus"]
    assert [(g["capability"], g["memory_total"], g.get("index", 0)) for g in gpus] == [
        ("8.9", 24 << 30, 0),
        ("8.9", 24 << 30, 1),
    ]
    assert "QD407" not in run.codes


@pytest.mark.parametrize("card", ["mi300x", "Radeon RX 7900 XTX", "Arc B580", "M3 Max"])
def test_a_card_of_another_maker_is_refused_with_the_way_round_it(doctor: Doctor, card: str) -> None:
    machine = Path(__file__).parents[1] / "machines" / "healthy-h100.json"
    run = doctor("check", "--facts", machine, "--gpu", card)
    assert run.code == 2 and "give its size" in run.err


@pytest.mark.parametrize("words", [("--gpu", "RTX 9999"), ("--gpu", "0x a100"), ("--driver", "new")])
def test_hardware_that_nobody_knows_is_refused(doctor: Doctor, words: tuple[str, str]) -> None:
    machine = Path(__file__).parents[1] / "machines" / "healthy-h100.json"
    run = doctor("check", "--facts", machine, *words)
    assert run.code == 2 and words[0] in run.err


def test_a_plan_for_hardware_that_is_not_here_is_shown_and_never_applied(doctor: Doctor) -> None:
    machine = Path(__file__).parents[1] / "machines" / "healthy-h100.json"
    run = doctor("fix", "--offline", "--facts", machine, "--gpu", "v100", "--select", "QD402")
    assert (run.code, "QD402" in run.out) == (1, True)
    for words in (("--gpu", "v100"), ("--driver", "550.120"), ("--ssh", "gpu-box")):
        run = doctor("fix", "--offline", *words, "--apply")
        assert run.code == 2 and words[0] in run.err and "leave" in run.err


def test_a_plan_can_rest_on_what_was_tried(doctor: Doctor, environment: Environment) -> None:
    environment.install("torch", "2.13.0", module="import os\nos.kill(os.getpid(), 11)\n")
    run = doctor("fix", "--offline", "--live", "--python", environment.python, "--select", "QD9")
    assert (run.code, "QD901" in run.out) == (1, True)
    assert "up to two minutes" in run.err


def test_a_plan_for_another_machine_is_shown_over_ssh(
    doctor: Doctor, environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.install("transformers", "5.23.0")
    environment.install("bitsandbytes", "0.44.1")
    executable(tmp_path / "bin" / "ssh", '#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    run = doctor(
        "fix", "--offline", "--ssh", "gpu-box", "--python", environment.python, "--select", "QD002", "--unsafe"
    )
    assert run.code == 1 and "bitsandbytes>=0.46.1" in run.out


def test_gpus_of_one_name_are_counted_in_the_report(doctor: Doctor) -> None:
    machine = Path(__file__).parents[1] / "machines" / "a100-taken-by-a-notebook.json"
    run = doctor("check", "--facts", machine, "--gpu", "8x v100", "--select", "QD402")
    assert "8 x " in run.out and run.out.count("V100") < 4


# ---- ranks


@pytest.mark.torch
def test_the_ranks_of_torchrun_leave_a_file_each(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    save = str(tmp_path / "nodes" / "{rank}.json")
    script.write_text(f"from qlora_doctor.cli import main\nmain(['facts', '--offline', '--save', {save!r}])\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(script)]
    subprocess.run(command, check=True, capture_output=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    ranks = [json.loads((tmp_path / "nodes" / f"{n}.json").read_text())["environ"]["RANK"] for n in (0, 1)]
    assert ranks == ["0", "1"]
