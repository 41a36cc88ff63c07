"""The table of interface changes against the source of what is installed beside the tests."""

from __future__ import annotations

import pytest

from qlora_checks.api import Change, changes
from qlora_checks.common import at_least
from qlora_doctor.facts import Facts, Installed
from qlora_doctor.gather.installed import read_installed
from qlora_doctor.gather.interpreters import here

HOMES = {"Accelerator": "accelerate"} | dict.fromkeys(
    ("TrainingArguments", "Seq2SeqTrainingArguments", "Trainer", "Seq2SeqTrainer"), "transformers"
)


def path_of(function: str) -> str:
    return (
        "transformers.PreTrainedModel.from_pretrained"
        if function == "load"
        else f"{HOMES.get(function, 'trl')}.{function}"
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_DOCTOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        facts = here(("packages",))
        if any(facts.packages.find(name) is None for name in ("transformers", "trl", "accelerate")):
            pytest.skip("transformers, trl and accelerate are not installed beside the tests")
        paths = sorted({path_of(f) for c in changes("argument") for f in c.calls})
        return facts.but(installed=read_installed(facts.packages, paths))


def newer(facts: Facts, change: Change, version: str) -> bool:
    installed = facts.version(change.package)
    return installed is not None and bool(version) and at_least(installed, version)


@pytest.mark.torch
def test_what_the_table_calls_removed_is_not_in_the_installed_source(world: Facts) -> None:
    installed: Installed = world.installed
    for change in changes("argument"):
        for function in change.calls:
            signature = installed.signatures.get(path_of(function))
            if signature is not None and newer(world, change, change.removed):
                assert change.name not in signature.parameters, f"{function}({change.name}=) is still there"


@pytest.mark.torch
def test_what_the_table_names_as_successor_is_in_the_installed_source(world: Facts) -> None:
    installed: Installed = world.installed
    for change in changes("argument"):
        for function in change.calls:
            owner = function.removesuffix("Trainer") + "Config" if change.moved else function
            signature = installed.signatures.get(path_of(owner))
            new = change.new or (change.name if change.moved else "")
            if signature is not None and new and newer(world, change, change.since or change.removed):
                assert new in signature.parameters, f"{owner}({new}=) is not there"


@pytest.mark.torch
def test_the_names_that_the_table_calls_removed_are_not_exported(world: Facts) -> None:
    for change in changes("name"):
        if change.package == "transformers" and not change.module_of and newer(world, change, change.removed):
            assert change.name not in world.installed.classes, f"{change.name} is still exported"
            if change.new and not change.module:
                assert change.new in world.installed.classes, f"{change.new} is not exported"
