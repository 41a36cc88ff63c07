"""Repositories of a Hub on loopback: what is read of them, and every way in which a Hub can misbehave."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qlora_checks import hub_models, model_files, model_layout
from qlora_doctor.examine import Examination, Question, examine
from qlora_doctor.facts import Disk, Facts, Hub, ModelFacts, Repository
from qlora_doctor.fix import EnvVar
from qlora_doctor.gather.hub_model import ask_models
from qlora_doctor.testing import facts, findings, load, outcome
from tests.hub_server import HubServer, dead_address
from tests.models.conftest import LLAVA, LLAVA_NAMES, NAME, TEXT_NAMES, Folder

DETAILS = ("QD202", "QD205", "QD310", "QD314", "QD317", "QD321", "QD323")


def asked(hub: HubServer, name: str = NAME, timeout: float = 6.0) -> tuple[Repository, ModelFacts | None]:
    repositories, models = ask_models([name], os.environ, timeout)
    return repositories[0], models[0] if models else None


def check(name: str = NAME) -> Examination:
    return examine(Question(model=name, select=DETAILS))


def outcomes(answer: Examination) -> dict[str, str]:
    return {o.code: o.outcome for o in answer.verdict.outcomes}


def test_a_repository_gives_its_config_and_the_headers_of_its_weights(hub: HubServer) -> None:
    repository, model = asked(hub)
    size = (hub.root / NAME / "model.safetensors").stat().st_size
    assert (repository.status, repository.to_download, repository.token) == ("ok", size, False)
    assert model is not None and model.origin == "hub"
    assert set(model.tensors) == set(TEXT_NAMES) and model.config == {"model_type": "llama"}


def test_nothing_is_written_to_the_cache_and_one_file_is_asked_for_once(hub: HubServer, tmp_path: Path) -> None:
    asked(hub)
    assert not (tmp_path / "home").exists()
    paths = [path for path, _ in hub.asked]
    assert len(paths) == len(set(paths)) == 3


def test_a_sound_repository_is_silent_on_the_command_line(hub: HubServer) -> None:
    assert set(outcomes(check()).values()) == {"ok"}


def test_shards_and_a_header_longer_than_the_first_bytes_are_read_whole(hub: HubServer, tmp_path: Path) -> None:
    many = Folder(tmp_path / "hub" / "tiny" / "many")
    many.json("config.json", LLAVA)
    many.shards(*LLAVA_NAMES)
    many.weights(
        *(f"model.layers.{n}.weight" for n in range(2000)), file="model-00001-of-00005.safetensors", shape=(1,)
    )
    _, model = asked(hub, "tiny/many")
    assert model is not None and model.complete
    assert len(model.tensors) == 2000 + len(LLAVA_NAMES) - 1


def test_a_repository_that_lacks_a_shard_or_is_cut_is_found_before_any_download(hub: HubServer, tmp_path: Path) -> None:
    broken = Folder(tmp_path / "hub" / "tiny" / "broken")
    broken.json("config.json", {"model_type": "llama"})
    files = broken.shards(*TEXT_NAMES)
    broken.remove(files[0])
    broken.write(files[1], (broken.path / files[1]).read_bytes()[:-1])
    answer = outcomes(check("tiny/broken"))
    assert (answer["QD314"], answer["QD317"]) == ("found", "found")


def test_a_fine_tune_in_the_original_layout_is_known_before_any_download(hub: HubServer, tmp_path: Path) -> None:
    tuned = Folder(tmp_path / "hub" / "tiny" / "tuned")
    tuned.json("config.json", {"model_type": "llava", "mm_vision_tower": "openai/clip"})
    tuned.weights(*TEXT_NAMES, "model.mm_projector.0.weight")
    (found,) = [f for f in check("tiny/tuned").verdict.findings if f.code == "QD321"]
    assert "qlora-doctor download tiny/tuned" in found.text


def test_a_path_in_the_answer_that_leaves_the_repository_is_not_asked_for(hub: HubServer, tmp_path: Path) -> None:
    evil = Folder(tmp_path / "hub" / "tiny" / "evil")
    evil.json("config.json", {"model_type": "llama"})
    evil.shards("a")
    evil.change("model.safetensors.index.json", weight_map={"a": "../../../secret"})
    answer = check("tiny/evil")
    assert outcomes(answer)["QD314"] == "found"
    assert not [path for path, _ in hub.asked if "secret" in path]


def test_a_file_name_that_leaves_the_repository_is_not_asked_for(hub: HubServer) -> None:
    hub.also = ["../secret.safetensors", "/secret.safetensors", "a/../../secret.json"]
    _, model = asked(hub)
    assert model is not None and not [f.name for f in model.files if "secret" in f.name]
    assert not [path for path, _ in hub.asked if "secret" in path]


@pytest.mark.parametrize("name", ["../../x", "a/b?x=1", "a b/c", "a/..", "a/b#c", "a/b/c", ""])
def test_a_name_that_is_no_repository_is_not_asked_for(hub: HubServer, name: str) -> None:
    assert ask_models([name], os.environ) == ((), ())
    assert hub.asked == []


def test_gated_missing_and_unnamed_repositories_are_told_apart(hub: HubServer) -> None:
    assert asked(hub, "tiny/none")[0].status == "not found"
    hub.gated.add(NAME)
    assert asked(hub)[0].status == "gated"
    answer = check()
    assert [f.code for f in answer.verdict.findings] == ["QD205"]
    assert "accept its terms" in answer.verdict.findings[0].text


def test_a_token_is_not_sent_to_a_mirror(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert asked(hub)[0].token is False
    check()
    assert {token for _, token in hub.asked} == {False}


@pytest.mark.parametrize(
    ("wrong", "failure"),
    [
        ("refuse", "reset"),
        ("reset", "reset"),
        ("hang", "timeout"),
        ("drip", "timeout"),
        ("html", "not json"),
        ("dead redirect", "refused"),
        ("redirect loop", "redirect loop"),
        ("429", "http 429"),
        ("503", "http 503"),
    ],
)
def test_a_hub_that_misbehaves_is_named_by_its_cause_and_the_model_stays_unknown(
    hub: HubServer, wrong: str, failure: str
) -> None:
    hub.misbehave = wrong
    answer = check()
    assert answer.facts.hub.failure == failure
    assert outcomes(answer)["QD202"] == "found"
    assert {outcomes(answer)[c] for c in DETAILS if c.startswith("QD3")} == {"skipped"}


@pytest.mark.parametrize(
    "wrong",
    ["refuse", "reset", "hang", "drip", "truncate", "wrong length", "dead redirect", "redirect loop", "429", "503"],
)
def test_files_that_cannot_be_fetched_leave_the_model_unknown_and_never_ok(hub: HubServer, wrong: str) -> None:
    hub.misbehave, hub.only = wrong, "/resolve/"
    repository, model = asked(hub, timeout=1.5)
    assert repository.status == "ok" and model is not None
    given = facts({"transformers": "5.23.0"}, models=(model,))
    for one in (model_files.model_folder_without_a_configuration, model_files.truncated_weights):
        assert outcome(one, given, load(NAME)) == "unknown"
    assert outcome(model_layout.weights_of_another_architecture, given, load(NAME)) == "unknown"


def test_a_portal_in_place_of_the_files_is_named(hub: HubServer) -> None:
    hub.misbehave, hub.only = "html", "/resolve/"
    answer = check()
    assert "a web page, not the file" in " ".join(f.text for f in answer.verdict.findings)


@pytest.mark.parametrize("wrong", ["refuse", "hang", "truncate", "wrong length", "html", "429", "503"])
def test_information_that_cannot_be_had_is_unanswered(hub: HubServer, wrong: str) -> None:
    hub.misbehave = wrong
    repository, model = asked(hub, timeout=1.0)
    assert (repository.status, model) == ("unanswered", None)


def repository(status: Any, token: bool = False, to_download: int | None = None) -> Facts:
    one = Repository(NAME, status, token, to_download=to_download)
    return Facts(hub=Hub(reachable=True, asked=(NAME,), repositories=(one,)), disks=(Disk("hf-cache", "/c", 10),))


@pytest.mark.parametrize(
    ("status", "token", "words"),
    [
        ("gated", False, "hf auth login"),
        ("not granted", True, "fine-grained"),
        ("not found", False, "nobody is logged in"),
        ("not found", True, "this token may not read it"),
        ("bad token", True, "unset HF_TOKEN"),
    ],
)
def test_each_refusal_says_what_to_do(status: str, token: bool, words: str) -> None:
    one = hub_models.repository_that_cannot_be_read
    (found,) = findings(one, repository(status, token), load(NAME))
    assert found.severity == "error" and words in found.text
    assert findings(one, repository("ok", token), load(NAME)) == ()
    assert findings(one, repository(status, token), load("other/model")) == ()
    assert outcome(one, repository("unanswered", token), load(NAME)) == "unknown"


def test_a_name_that_is_nearly_right_is_answered_with_the_right_one() -> None:
    wrong = Repository("llava-hf/lava-1.5-7b-hf", "not found")
    given = Facts(hub=Hub(repositories=(wrong,)))
    (found,) = findings(hub_models.repository_that_cannot_be_read, given, load(wrong.name))
    assert "did you mean llava-hf/llava-1.5-7b-hf?" in found.text


def test_a_download_larger_than_the_disk_is_an_error() -> None:
    one = hub_models.no_room_for_the_download
    (found,) = findings(one, repository("ok", to_download=11), load(NAME))
    assert found.severity == "error" and "/c" in found.text
    assert findings(one, repository("ok", to_download=10), load(NAME)) == ()
    assert findings(one, repository("ok"), load(NAME)) == ()
    assert outcome(one, repository("ok", to_download=11).but(disks=(Disk("hf-cache", "/c"),)), load(NAME)) == "unknown"


def test_a_configured_mirror_that_answers_is_what_a_dead_endpoint_is_exchanged_for(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", dead_address())
    monkeypatch.setenv("QLORA_DOCTOR_MIRRORS", f"{dead_address()}, {hub.address}")
    answer = examine(Question(model=NAME, select=("QD202",)))
    assert [m.reachable for m in answer.facts.hub.mirrors] == [False, True]
    (found,) = answer.verdict.findings
    assert found.fixes == (EnvVar("HF_ENDPOINT", hub.address),)


def test_without_a_configured_mirror_no_other_address_is_asked(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", dead_address())
    assert check().facts.hub.mirrors == ()
    assert hub.asked == []


def test_asking_writes_nothing_into_the_users_folder_of_the_hub_and_asks_for_nothing_else(
    hub: HubServer, tmp_path: Path
) -> None:
    check()
    assert not (tmp_path / "home").exists()
    assert not [path for path, _ in hub.asked if NAME not in path]


def test_several_models_of_a_run_are_asked_for_at_once(hub: HubServer, tmp_path: Path) -> None:
    second = Folder(tmp_path / "hub" / "tiny" / "second")
    second.json("config.json", {"model_type": "llama"})
    second.weights(*TEXT_NAMES)
    repositories, models = ask_models([NAME, "tiny/second", "tiny/none"], os.environ)
    assert [r.status for r in repositories] == ["ok", "ok", "not found"]
    assert [m.name for m in models] == [NAME, "tiny/second"]


def test_facts_of_the_hub_are_saved_and_read_again(hub: HubServer) -> None:
    hub.storage = dead_address()
    facts = check().facts
    again = Facts.from_wire(facts.to_wire())
    assert again.hub == facts.hub and facts.hub.routes


def test_an_answer_that_is_packed_unasked_is_read(hub: HubServer) -> None:
    hub.packed = True
    _, model = asked(hub)
    assert model is not None and set(model.tensors) == set(TEXT_NAMES)


def test_an_answer_that_unpacks_to_more_than_is_read_is_refused(hub: HubServer) -> None:
    hub.packed = True
    large = hub.root / NAME / "config.json"
    large.write_bytes(b'{"a": "' + b" " * (4 << 20) + b'"}')
    _, model = asked(hub)
    assert model is not None and model.config is None
    assert [(f.fault, f.detail) for f in model.files if f.name == "config.json"] == [
        ("unreadable", "the answer is larger than is read")
    ]


def test_information_that_is_larger_than_is_read_is_no_dead_hub(hub: HubServer) -> None:
    hub.also = ["x" * 200 + f"{n}.bin" for n in range(40_000)]
    answer = check()
    assert answer.facts.hub.reachable is True
    assert [r.status for r in answer.facts.hub.repositories] == ["unanswered"]
    assert answer.verdict.findings == ()


def test_what_is_no_address_is_not_asked(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "mirror.example")
    assert check().facts.hub.reachable is None
