"""QD336 to QD338: LoRA targets held against the checkpoint, the room for a conversion, the terms of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_checks import checkpoint_targets, licence, room
from qlora_doctor.facts import Disk, Hub, Repository
from qlora_doctor.finding import Finding
from qlora_doctor.gather.model_files import read_model
from qlora_doctor.testing import assert_fixed_by, facts, findings, load, outcome, train
from tests.models.conftest import END, Folder

QD336 = checkpoint_targets.lora_targets_absent_from_the_checkpoint
QD337 = room.no_room_for_the_download_and_its_conversion
QD338 = licence.terms_of_the_model
GIB = 2**30


def judged(folder: Folder, targets: Any, **lora: Any) -> tuple[Finding, ...]:
    world = facts({"peft": "0.21.2"}, models=(read_model(str(folder)),))
    settings = {"r": 8, **({} if targets is None else {"target_modules": targets}), **lora}
    return findings(QD336, world, train(lora=settings, load=load(str(folder))))


@pytest.mark.parametrize("targets", [("query_key_value",), ("attn.q_proj",), "q_proj", r"model\.decoder\..*q_proj"])
def test_targets_that_match_nothing_are_an_error_with_the_names_that_exist(llama: Folder, targets: Any) -> None:
    (one,) = judged(llama, targets)
    assert one.severity == "error" and "Its linears end in q_proj" in one.text


@pytest.mark.parametrize(
    "targets",
    [
        ("q_proj",), ("nothing", "q_proj"), ("self_attn.q_proj",), ("model.layers.0.self_attn.q_proj",), "all-linear", None,
        r".*\.q_proj", r"model\.layers\.\d+\.self_attn\.(q|k)_proj", ("lm_head",), "(unclosed", ("embed_tokens",),
    ],
)  # fmt: skip
def test_targets_that_match_something_are_right(llama: Folder, targets: Any) -> None:
    assert judged(llama, targets) == ()


@pytest.mark.parametrize(
    "targets",
    [
        r"model\.language_model\.layers\.\d+\.self_attn\.q_proj",
        r"language_model\.model\.layers\.\d+\.self_attn\.q_proj",
        r"model\.language_model\.model\.layers\..*q_proj",
        r"model\.vision_tower\..*\.q_proj",
        r"(model\.)?multi_modal_projector\.linear_1",
        ("linear_1",),
    ],
)
def test_a_pattern_for_either_layout_of_a_vision_model_is_right(llava: Folder, targets: Any) -> None:
    assert judged(llava, targets) == ()


def test_a_pattern_of_another_familys_layout_is_found(llava: Folder) -> None:
    (one,) = judged(llava, r"model\.visual\.blocks\..*qkv")
    assert "model.visual" in one.text.replace("\\", "")


def test_the_families_own_pattern_matches_its_own_checkpoint(llama: Folder, llava: Folder) -> None:
    from qlora_doctor.families import BY_TYPE

    assert judged(llama, BY_TYPE["llama"].lora_targets) == () and judged(llava, BY_TYPE["llava"].lora_targets) == ()


def test_what_transformers_renames_while_it_loads_is_not_judged(llama: Folder) -> None:
    llama.change("config.json", model_type="mixtral")
    assert judged(llama, ("nothing",)) == ()


def test_target_parameters_and_pickles_are_not_judged(llama: Folder) -> None:
    assert judged(llama, ("nothing",), target_parameters=("experts",)) == ()
    llama.remove("model.safetensors")
    llama.write("pytorch_model.bin", b"PK\x03\x04" + END)
    assert judged(llama, ("nothing",)) == ()


def test_a_mistral_is_judged_and_the_fix_names_its_linears(llama: Folder) -> None:
    llama.change("config.json", model_type="mistral")
    (one,) = judged(llama, ("Wqkv",))
    assert one.fixes[0].value == ("q_proj",)  # type: ignore[union-attr]


def test_the_fix_ends_the_finding(llama: Folder) -> None:
    world = facts({"peft": "0.21.2"}, models=(read_model(str(llama)),))
    assert_fixed_by(QD336, world, train(lora={"target_modules": ("Wqkv",)}, load=load(str(llama))))


def test_a_model_that_nobody_looked_at_is_not_judged() -> None:
    request = train(lora={"target_modules": ("nothing",)}, load=load("org/model"))
    assert outcome(QD336, facts({"peft": "0.21.2"}, models=()), request) == "skipped"
    unread = facts({"peft": "0.21.2"}, models=(read_model("nowhere"),))
    assert outcome(QD336, unread, train(lora={}, load=load("nowhere"))) == "ok"


def hub_world(original: Folder, free: int | None, to_download: int | None = 14 * GIB) -> Any:
    import dataclasses

    model = dataclasses.replace(read_model(str(original)), name="some/finetune", origin="hub")
    hub = Hub(asked=("some/finetune",), repositories=(Repository("some/finetune", "ok", to_download=to_download),))
    return facts(models=(model,), hub=hub, disks=(Disk("hf-cache", "/cache", free=free),))


@pytest.mark.parametrize(("free", "expected"), [(15 * GIB, 1), (17 * GIB, 0)])
def test_a_download_that_fits_and_a_conversion_that_does_not(original: Folder, free: int, expected: int) -> None:
    found = findings(QD337, hub_world(original, free), load("some/finetune"))
    assert len(found) == expected
    if found:
        assert found[0].severity == "warning" and "qlora-doctor clean" in found[0].text


def test_room_that_is_not_known_is_unknown_and_a_sound_model_is_left_alone(original: Folder, llava: Folder) -> None:
    assert outcome(QD337, hub_world(original, None), load("some/finetune")) == "unknown"
    assert outcome(QD337, hub_world(original, GIB, None), load("some/finetune")) == "unknown"
    assert findings(QD337, hub_world(llava, GIB), load("some/finetune")) == ()
    assert findings(QD337, hub_world(original, GIB), load("some/finetune", cls="llava.model.LlavaLlama")) == ()


@pytest.mark.parametrize(
    ("repository", "said"),
    [
        (Repository("org/m", "ok", licence="llama3.1"), "has the licence llama3.1"),
        (Repository("org/m", "ok", licence="gemma", terms="manual"), "is gated, and its licence is gemma"),
        (Repository("org/m", "ok", licence="mit", terms="auto"), "is gated: the terms"),
        (Repository("org/m", "ok", licence="apache-2.0"), ""),
        (Repository("org/m", "ok"), ""),
        (Repository("org/other", "ok", licence="llama3.1"), ""),
        (Repository("org/m", "gated", licence="llama3.1"), ""),
    ],
)
def test_terms_are_named_where_they_bind(repository: Repository, said: str) -> None:
    found = findings(QD338, facts(hub=Hub(repositories=(repository,))), load("org/m"))
    assert [f.severity for f in found] == (["info"] if said else [])
    assert said in (found[0].text if found else "")


@pytest.mark.parametrize(
    ("info", "licence"),
    [
        ({"cardData": {"license": "mit"}}, "mit"),
        ({"cardData": {"license": "other", "license_name": "qwen-research"}}, "qwen-research"),
        ({"tags": ["x", "license:gemma"]}, "gemma"),
        ({"cardData": [], "tags": None}, ""),
        ({"cardData": {"license": ["mit"]}}, ""),
    ],
)
def test_the_licence_is_read_from_the_card_or_the_tags(info: Any, licence: str, tmp_path: Path) -> None:
    from qlora_doctor.gather.hub_model import licence_of

    assert licence_of(info) == licence
