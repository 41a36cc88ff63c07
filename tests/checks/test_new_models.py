"""A model that came with a later transformers."""

from __future__ import annotations

import pytest

from qlora_checks.new_models import model_newer_than_transformers
from qlora_doctor.facts import Installed
from qlora_doctor.testing import facts, findings, load

OLD = facts({"transformers": "4.44.2"})
VL = "transformers.AutoModelForVision2Seq"


@pytest.mark.parametrize(
    ("model", "cls", "minimum"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", VL, "4.49"),
        ("Qwen/Qwen3-8B", "transformers.AutoModelForCausalLM", "4.51"),
        ("./a-folder", "transformers.Qwen2VLForConditionalGeneration", "4.45"),
    ],
)
def test_an_architecture_that_came_later_is_an_error_with_its_first_version(model: str, cls: str, minimum: str) -> None:
    (finding,) = findings(model_newer_than_transformers, OLD, load(model, cls))
    assert (finding.severity, finding.evidence["minimum"]) == ("error", minimum)
    assert finding.fixes[0].title == f"install transformers>={minimum}"


def test_the_installed_list_of_architectures_comes_before_the_version() -> None:
    request = load("Qwen/Qwen3-8B")
    has = facts({"transformers": "4.50.0"}, installed=Installed(model_types=("llama", "qwen3")))
    lacks = facts({"transformers": "4.52.0"}, installed=Installed(model_types=("llama",)))
    assert not findings(model_newer_than_transformers, has, request)
    assert findings(model_newer_than_transformers, lacks, request)


def test_what_the_installed_version_has_and_what_nobody_knows_is_left_alone() -> None:
    assert not findings(model_newer_than_transformers, OLD, load("Qwen/Qwen2.5-7B"))
    assert not findings(model_newer_than_transformers, OLD, load("someone/some-model"))
    assert not findings(model_newer_than_transformers, OLD, load("Qwen/Qwen3-8B", "modelscope.AutoModelForCausalLM"))
