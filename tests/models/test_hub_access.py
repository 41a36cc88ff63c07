"""What 401, 403 and 404 mean, with a token and without one: asked of a Hub on loopback, and said in words."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_checks import hub_models
from qlora_doctor.facts import Facts, Hub, Repository
from qlora_doctor.gather.hub_client import Client
from qlora_doctor.gather.hub_kept import Shelf
from qlora_doctor.gather.hub_model import Asked, ask_models, ask_repository
from qlora_doctor.testing import findings, load
from tests.hub_server import HubServer, hub_server
from tests.models.conftest import NAME, TEXT_NAMES, Folder


def ask(hub: HubServer, name: str = NAME, token: str = "") -> Asked:
    """As the Hub's own endpoint is asked: with the token."""
    from huggingface_hub import get_session

    headers = {"authorization": f"Bearer {token}"} if token else {}
    client = Client(get_session(), hub.address, headers, time.monotonic() + 6)
    return ask_repository(client, Shelf(hub.address, token), name, os.environ)


def said(repository: Repository, cached: bool = False) -> tuple[str, str]:
    """Severity and text of what the check finds."""
    given = Facts(hub=Hub(repositories=(repository,), cached=(repository.name,) if cached else ()))
    (found,) = findings(hub_models.repository_that_cannot_be_read, given, load(repository.name))
    return found.severity, found.text


def test_a_token_that_is_unknown_or_expired_is_told_apart_and_whether_the_model_needs_one(hub: HubServer) -> None:
    hub.expired.add("hf_old")
    bad, old = ask(hub, token="hf_wrong").repository, ask(hub, token="hf_old").repository
    assert (bad.status, bad.public) == ("bad token", True)
    assert (old.status, old.public) == ("expired token", True)
    assert "everybody may read this model" in said(bad)[1] and "has expired" in said(old)[1]
    hub.private.add(NAME)
    assert ask(hub, token="hf_wrong").repository.public is False


def test_a_gated_repository_without_a_token_with_one_and_with_one_that_lacks_the_right(hub: HubServer) -> None:
    hub.gated.add(NAME)
    hub.fine_grained.add("hf_fine")
    statuses = [ask(hub, token=token).repository.status for token in ("", "hf_good", "hf_fine")]
    assert statuses == ["gated", "not granted", "fine-grained"]


def test_a_private_repository_looks_like_none_at_all_without_its_token(hub: HubServer) -> None:
    hub.private.add(NAME)
    assert ask(hub).repository.status == "not found"
    assert "or it is private" in said(ask(hub).repository)[1]
    assert ask(hub, token="hf_good").repository.status == "ok"


@pytest.mark.parametrize("wrong", ["tiny/modle", "tiny/Model", "tyni/model"])
def test_a_wrong_name_or_case_is_answered_with_the_id_that_the_hub_lists(hub: HubServer, wrong: str) -> None:
    repository = ask(hub, wrong).repository
    assert (repository.status, repository.near) == ("not found", (NAME,))
    assert f"did you mean {NAME}?" in said(repository)[1]


def test_a_name_unlike_all_others_gets_no_suggestion(hub: HubServer) -> None:
    assert ask(hub, "someone/something-else").repository.near == ()


def test_a_private_name_is_not_suggested(hub: HubServer) -> None:
    hub.private.add(NAME)
    assert ask(hub, "tiny/modle").repository.near == ()


def test_a_repository_that_was_renamed_is_read_and_its_new_name_said(hub: HubServer) -> None:
    hub.renamed["old/model"] = NAME
    asked = ask(hub, "old/model")
    assert (asked.repository.status, asked.repository.canonical) == ("ok", NAME)
    assert asked.model is not None and set(asked.model.tensors) == set(TEXT_NAMES)
    given = Facts(hub=Hub(repositories=(asked.repository,)))
    check = hub_models.repository_under_another_name
    (found,) = findings(check, given, load("old/model"))
    assert (found.severity, found.evidence["canonical"]) == ("info", NAME)
    assert findings(check, Facts(hub=Hub(repositories=(ask(hub).repository,))), load(NAME)) == ()


def test_another_case_is_said_to_be_another_case() -> None:
    given = Facts(hub=Hub(repositories=(Repository("Tiny/Model", "ok", canonical=NAME),)))
    (found,) = findings(hub_models.repository_under_another_name, given, load("Tiny/Model"))
    assert "is written tiny/model" in found.text


def test_a_mirror_is_asked_without_the_token_and_its_refusal_is_no_certainty(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    hub.gated.add(NAME)
    ((repository,), models) = ask_models([NAME], os.environ)
    assert (repository.status, repository.token, repository.withheld, models) == ("gated", False, True, ())
    severity, text = said(repository)
    assert severity == "warning" and "asked without your token" in text
    assert {token for _, token in hub.asked} == {False}


@pytest.mark.parametrize(
    ("status", "token", "words"),
    [
        ("fine-grained", True, "tick that right"),
        ("pending", True, "not yet answered"),
        ("rejected", True, "take another model"),
        ("disabled", False, "was disabled"),
        ("expired token", True, "make a new one"),
    ],
)
def test_each_refusal_says_what_to_do_and_only_warns_where_the_cache_has_the_model(
    status: Any, token: bool, words: str
) -> None:
    repository = Repository(NAME, status, token)
    severity, text = said(repository)
    assert severity == "error" and words in text
    assert said(repository, cached=True)[0] == "warning"


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("Your request to access model a/b is awaiting a review from the repo authors.", "pending"),
        ("Your request to access model a/b has been rejected by the repo's authors.", "rejected"),
        ("Access to this resource is disabled.", "disabled"),
        ("Access to model a/b is restricted and you are not in the authorized list.", "not granted"),
    ],
)
def test_the_words_of_the_hub_are_understood(message: str, status: str) -> None:
    from qlora_doctor.gather.hub_access import status_of
    from qlora_doctor.gather.hub_client import Answer

    assert status_of(Answer(403, error=f"GatedRepo {message}"), token=True) == status


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[HubServer]:
    """A second Hub, to which a redirect may lead."""
    folder = Folder(tmp_path / "elsewhere" / "tiny" / "model")
    folder.json("config.json", {"model_type": "llama"})
    folder.weights(*TEXT_NAMES)
    with hub_server(tmp_path / "elsewhere") as server:
        yield server


def test_a_token_stays_with_its_endpoint_across_a_redirect(hub: HubServer, elsewhere: HubServer) -> None:
    hub.storage = elsewhere.address
    asked = ask(hub, token="hf_good")
    assert asked.model is not None and set(asked.model.tensors) == set(TEXT_NAMES)
    assert {token for _, token in hub.asked} == {True}
    assert elsewhere.asked and {token for _, token in elsewhere.asked} == {False}


def test_a_token_does_not_go_to_the_storage_of_xet(hub: HubServer, elsewhere: HubServer) -> None:
    hub.storage, hub.xet = elsewhere.address, elsewhere.address
    assert [r.failure for r in ask(hub, token="hf_good").routes] == ["", ""]
    assert ("/api/models/tiny/model/xet-read-token/0123456789abcdef0123456789abcdef01234567", True) in hub.asked
    assert {token for _, token in elsewhere.asked} == {False}


def plain_http(endpoint: str, withheld: bool = True) -> tuple[Any, ...]:
    given = Facts(hub=Hub(endpoint=endpoint, repositories=(Repository(NAME, "ok", withheld=withheld),)))
    return findings(hub_models.token_over_plain_http, given, load(NAME))


def test_a_token_over_plain_http_is_a_warning() -> None:
    (found,) = plain_http("http://mirror.example:8080")
    assert found.severity == "warning" and "http://mirror.example:8080" in found.text


@pytest.mark.parametrize(
    ("endpoint", "withheld"),
    [
        ("https://mirror.example", True),
        ("http://127.0.0.1:8080", True),
        ("http://localhost", True),
        ("http://mirror.example", False),
    ],
)
def test_https_this_machine_and_no_token_are_silent(endpoint: str, withheld: bool) -> None:
    assert plain_http(endpoint, withheld) == ()
