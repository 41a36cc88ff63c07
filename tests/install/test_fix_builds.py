"""What `fix` asks of torch and of conda: the build that runs here, and conda's own command for what conda installed."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_doctor.facts import Distribution, Driver, Facts, Gpu, Host, Packages, Unknown
from qlora_doctor.fix import PipRequirement
from qlora_doctor.install.sources import Sources
from qlora_doctor.repair import packages, pip, pips, sizes
from qlora_doctor.repair.plan import Plan, Solution
from qlora_doctor.repair.tools import conda_commands
from qlora_doctor.testing import facts

RTX_3060 = Gpu("NVIDIA GeForce RTX 3060", "8.6")
RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", "12.0")


def machine(driver: str = "", *gpus: Gpu, **parts: Any) -> Facts:
    given: dict[str, Any] = {
        "gpus": gpus,
        "driver": Driver(driver) if driver else None,
        "host": Host(libc="glibc 2.36"),
    }
    return facts({"torch": "2.5.1"}, **{**given, **parts})


@pytest.mark.parametrize(
    ("given", "asked", "narrowed"),
    [
        (machine("550.120", RTX_3060), "torch>=2.6", "torch>=2.6,<2.7"),
        (machine("550.120", RTX_3060), "torch>=2.11", "torch==2.11.0+cu128"),
        (machine("580.95.05", RTX_3060), "torch>=2.11", "torch>=2.11,<2.12"),
        (machine("570.172.08", RTX_5090), "torch>=2.6", "torch==2.7.1+cu128"),
        (machine(), "torch>=2.6", "torch==2.6.0+cpu"),
        (machine("390.157", RTX_3060), "torch>=2.6", "torch>=2.6"),
        (machine("550.120", RTX_3060), "torch==2.9.0", "torch==2.9.0"),
        (machine("550.120", RTX_3060), "peft>=0.20", "peft>=0.20"),
        (machine(gpus=Unknown("nvidia-smi hangs")), "torch>=2.6", "torch>=2.6"),
    ],
)
def test_torch_is_asked_for_in_the_nearest_build_that_runs_here(given: Facts, asked: str, narrowed: str) -> None:
    fix = pips.with_fitting_build(PipRequirement(asked), given)
    assert fix == PipRequirement(narrowed)


def test_where_there_is_no_torch_yet_the_newest_that_runs_is_taken() -> None:
    empty = facts({}, gpus=(RTX_3060,), driver=Driver("580.95.05"), host=Host(libc="glibc 2.36"))
    assert pips.with_fitting_build(PipRequirement("torch"), empty).requirement == "torch>=2.14,<2.15"
    old = facts({}, gpus=(RTX_3060,), driver=Driver("550.120"), host=Host(libc="glibc 2.36"))
    assert pips.with_fitting_build(PipRequirement("torch"), old).requirement == "torch==2.14.1+cu126"


def test_an_upper_bound_takes_the_nearest_below() -> None:
    state = facts({"torch": "2.8.0"}, gpus=(RTX_3060,), driver=Driver("580.95.05"), host=Host(libc="glibc 2.36"))
    assert pips.with_fitting_build(PipRequirement("torch<2.7"), state).requirement == "torch>=2.6,<2.7"


def test_a_removal_of_torch_stays_a_removal() -> None:
    fix = PipRequirement("torch", remove=True)
    assert pips.with_fitting_build(fix, machine()) is fix


def test_the_requirements_of_a_plan_name_the_build() -> None:
    merged = pips.Merged()
    merged.add(PipRequirement("torch>=2.6"), "QD006")
    merged.add(PipRequirement("torch>=2.11"), "QD006")
    assert merged.requirements(machine("550.120", RTX_3060)) == (PipRequirement("torch==2.11.0+cu128"),)


def test_a_package_that_nobody_asked_for_does_not_go_back_unseen() -> None:
    before = facts({"peft": "0.17.0", "tqdm": "4.70", "numpy": "2.0"})
    after = facts({"peft": "0.20.0", "tqdm": "4.60", "numpy": "2.1"})
    assert pips.downgraded(before.packages, after.packages, ["peft"]) == [("tqdm", "4.70", "4.60")]
    asked = PipRequirement("peft>=0.20")
    assert "take tqdm back from 4.70 to 4.60" in pips.risk([asked], before, after)["peft"]
    upward = facts({"peft": "0.20.0", "tqdm": "4.71", "numpy": "2.0"})
    assert pips.risk([asked], before, upward) == {}


WANTED = ("torch==2.11.0+cu128", "peft>=0.20")


def test_pip_and_uv_are_led_to_the_build() -> None:
    mirror = Sources(torch_root="https://mirror.test/whl")
    assert pip.build_options(WANTED, False, mirror)[0] == ["--extra-index-url", "https://mirror.test/whl/cu128"]
    assert pip.build_options(WANTED, True, mirror)[0][:2] == ["--index", "https://mirror.test/whl/cu128"]
    assert pip.build_options(WANTED, True, Sources()) == (["--torch-backend=cu128"], ["torch==2.11.0", "peft>=0.20"])
    assert pip.build_options(WANTED, False, Sources()) == ([], list(WANTED))
    assert pip.build_options(("peft>=0.20",), True, mirror) == ([], ["peft>=0.20"])


def plan_with(*distributions: Distribution, fix: PipRequirement) -> Plan:
    before = Packages(distributions)
    return Plan((), (), (), (), (), (), (fix,), (), Solution(packages=before), before=before)


def test_what_conda_installed_is_left_to_conda_and_its_command_is_named() -> None:
    fix = PipRequirement("huggingface-hub>=1.31,<3")
    plan = plan_with(Distribution("huggingface_hub", "0.36.0", installer="conda"), fix=fix)
    target = packages.Target("/opt/conda/envs/llm/bin/python", "/opt/conda/envs/llm")
    assert "conda installed huggingface-hub" in packages.refusal(plan, target)
    assert packages.commands_of(target, plan.pip, plan.before) == [
        ["conda", "install", "--prefix", "/opt/conda/envs/llm", "huggingface_hub>=1.31,<3"]
    ]


def test_what_pip_installed_in_a_conda_environment_is_changed_by_pip() -> None:
    plan = plan_with(Distribution("peft", "0.17.0", installer="pip"), fix=PipRequirement("peft>=0.20"))
    target = packages.Target("python", "/opt/conda/envs/llm")
    assert packages.refusal(plan, target) == ""
    assert packages.commands_of(target, plan.pip, plan.before) == [["python", "-m", "pip", "install", "peft>=0.20"]]


def test_conda_has_its_own_names_and_knows_no_local_versions() -> None:
    fixes = [PipRequirement("torch==2.11.0+cu128"), PipRequirement("triton", remove=True)]
    assert conda_commands("/env", fixes) == [
        ["conda", "remove", "--prefix", "/env", "triton"],
        ["conda", "install", "--prefix", "/env", "pytorch==2.11.0"],
    ]


def test_a_size_that_no_server_says_is_taken_from_the_table_where_it_has_one() -> None:
    assert sizes.about("torch") == 3_000_000_000
    assert sizes.about("no-such-package") is None
