"""What a fix makes of the facts, where more than a version or a variable follows from it."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement

from qlora_doctor.facts import BnbBuild, Facts, Hub, Installed, Library, Native, TorchBuild, Unknown
from qlora_doctor.fix import EnvVar, PipRequirement
from qlora_doctor.repair.simulate import facts_after, resulting_version
from qlora_doctor.testing import facts


@pytest.mark.parametrize(
    ("requirement", "installed", "expected"),
    [
        ("peft>=0.20", "0.21.2", "0.21.2"),
        ("peft>=0.20", "0.17.0", "0.20"),
        ("peft<0.20", "0.21.2", "0.19.9999"),
        ("transformers<5", "5.23.0", "4.9999"),
        ("numpy>=1.26.4,<2", None, "1.26.4"),
        ("x==1.2.*", "2.0", "1.2"),
        ("x!=2.0", "2.0", "1.9999"),
        ("x", None, "9999"),
    ],
)
def test_the_version_that_a_requirement_would_bring(requirement: str, installed: str | None, expected: str) -> None:
    assert resulting_version(Requirement(requirement), installed) == expected


def after(given: Facts, *fixes: EnvVar | PipRequirement) -> Facts:
    return facts_after(given, fixes)


def test_what_was_read_in_the_old_packages_is_not_taken_for_the_new_ones() -> None:
    given = facts(
        {"transformers": "4.44.2", "torch": "2.5.0", "bitsandbytes": "0.44.1", "tqdm": "4.0"},
        installed=Installed(),
        torch=TorchBuild("2.5.0"),
        bitsandbytes=BnbBuild("0.44.1"),
    )
    moved = after(given, PipRequirement("bitsandbytes>=0.46.1"))
    assert isinstance(moved.state("installed"), Unknown) and isinstance(moved.state("bitsandbytes"), Unknown)
    assert moved.torch == given.torch
    assert after(given, PipRequirement("tqdm>=5")).installed == given.installed
    assert after(given, PipRequirement("transformers>=4.40")).installed == given.installed


def test_offline_and_another_endpoint_change_what_is_known_of_the_hub() -> None:
    given = facts(
        environ={"HF_ENDPOINT": "http://127.0.0.1:9"}, hub=Hub("http://127.0.0.1:9", "HF_ENDPOINT", False, "refused")
    )
    assert after(given, EnvVar("HF_HUB_OFFLINE", "1")).hub.offline
    other = after(given, EnvVar("HF_ENDPOINT", None)).hub
    assert (other.endpoint, other.source, other.reachable, other.failure) == (Hub().endpoint, "default", None, "")


def test_without_ld_library_path_its_libraries_are_not_taken() -> None:
    given = facts(
        environ={"LD_LIBRARY_PATH": "/x"}, native=Native(on_path=(Library("libnvJitLink", "/x/lib.so", "12.1"),))
    )
    moved = after(given, EnvVar("LD_LIBRARY_PATH", None))
    assert (moved.native.on_path, dict(moved.environ)) == ((), {})
