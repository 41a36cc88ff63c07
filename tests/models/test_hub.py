"""Repositories of a Hub on loopback: what is read of them, and every way in which a Hub can misbehave."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_checks import hub_models, model_files, model_layout
from qlora_doctor.examine import Examination, Question, examine
from qlora_doctor.facts import Disk, Facts, Hub, ModelFacts, Repository
from qlora_doctor.gather.hub_model import ask_models
from qlora_doctor.testing import facts, findings, load, outcome
from tests.hub_server import HubServer, hub_server
from tests.models.conftest import LLAVA, LLAVA_NAMES, TEXT_NAMES, Folder

NAME = "tiny/model"
DETAILS = ("QD202", "QD205", "QD310", "QD314", "QD317", "QD321", "QD323")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with one sound model, an empty cache, and an environment that points to both."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = Folder(tmp_path / "hub" / "tiny" / "model")
    folder.json("config.json", {"model_type": "llama"})
    folder.weights(*TEXT_NAMES)
    with hub_server(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


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
    assert "hf download tiny/tuned" in found.text


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
        ("redirect loop", "http 302"),
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
