"""What is kept between runs: a commit is read once, and never for another token."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from pathlib import Path

import pytest

from qlora_doctor.gather.hub_client import Client
from qlora_doctor.gather.hub_kept import MOST_ENTRIES, Kept, Shelf
from qlora_doctor.gather.hub_model import Asked, ask_repository
from tests.hub_server import HubServer
from tests.models.conftest import NAME, TEXT_NAMES, Folder


def ask(hub: HubServer, token: str = "") -> tuple[Asked, list[str]]:
    """The answer, and the paths that were asked for."""
    from huggingface_hub import get_session

    hub.asked.clear()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    client = Client(get_session(), hub.address, headers, time.monotonic() + 6)
    asked = ask_repository(client, Shelf(hub.address, token), NAME, os.environ)
    return asked, [path for path, _ in hub.asked]


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "kept" / "hub").glob("*"))


def test_a_second_run_asks_one_conditional_question_and_knows_the_same(hub: HubServer) -> None:
    first, _ = ask(hub)
    second, paths = ask(hub)
    assert second.model == first.model and second.repository == first.repository
    assert (paths, second.first.status) == ([f"/api/models/{NAME}"], 304)


def test_a_new_commit_is_read_anew(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(hub)
    folder = hub.root / NAME
    (folder / "config.json").write_text('{"model_type": "qwen3"}', encoding="utf-8")
    monkeypatch.setattr("tests.hub_server.SHA", "f" * 40)
    found, _ = ask(hub)
    assert found.model is not None and found.model.config == {"model_type": "qwen3"}


def test_an_answer_that_was_given_to_a_token_is_for_no_other(hub: HubServer) -> None:
    hub.private.add(NAME)
    hub.tokens.add("hf_second")
    assert ask(hub, "hf_good")[0].model is not None
    nobody, _ = ask(hub)
    assert (nobody.repository.status, nobody.model) == ("not found", None)
    _, paths = ask(hub, "hf_second")
    assert f"/{NAME}/resolve/0123456789abcdef0123456789abcdef01234567/config.json" in paths


def test_no_token_is_written_and_nobody_else_may_read_the_entry(hub: HubServer, tmp_path: Path) -> None:
    ask(hub, "hf_good")
    (entry,) = entries(tmp_path)
    assert "hf_good" not in entry.read_text(encoding="utf-8") and "hf_good" not in entry.name
    if sys.platform != "win32":
        assert stat.S_IMODE(entry.stat().st_mode) == 0o600


def test_a_gated_repository_is_asked_for_its_files_each_time(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(hub)
    hub.gated.add(NAME)
    found, _ = ask(hub)
    assert (found.repository.status, found.model) == ("gated", None)


@pytest.mark.parametrize("wrong", ["truncate", "html", "503", "reset midway", "wrong length"])
def test_files_that_came_badly_are_not_kept(hub: HubServer, tmp_path: Path, wrong: str) -> None:
    hub.misbehave, hub.only = wrong, "/resolve/"
    ask(hub)
    assert entries(tmp_path) == []
    hub.misbehave = ""
    found, _ = ask(hub)
    assert found.model is not None and found.model.complete and set(found.model.tensors) == set(TEXT_NAMES)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "another"}', "[" * 100_000])
def test_an_entry_that_is_damaged_costs_nothing_but_time(hub: HubServer, tmp_path: Path, text: str) -> None:
    first, _ = ask(hub)
    entries(tmp_path)[0].write_text(text, encoding="utf-8")
    assert ask(hub)[0].model == first.model


def test_an_entry_of_another_shape_is_not_believed(hub: HubServer, tmp_path: Path) -> None:
    first, _ = ask(hub)
    (entry,) = entries(tmp_path)
    data = json.loads(entry.read_text(encoding="utf-8"))
    data["model"]["files"] = "all"
    entry.write_text(json.dumps(data), encoding="utf-8")
    assert ask(hub)[0].model == first.model


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file", encoding="utf-8")
    assert ask(hub)[0].model is not None


def test_the_oldest_entries_go(hub: HubServer, tmp_path: Path) -> None:
    first, _ = ask(hub)
    assert first.model is not None
    shelf = Shelf(hub.address, "")
    (entry,) = entries(tmp_path)
    os.utime(entry, (1, 1))
    for n in range(MOST_ENTRIES):
        shelf.store(f"a/b{n}", Kept("", "0" * 40, {}, first.model))
    assert len(entries(tmp_path)) == MOST_ENTRIES and not entry.exists()


def test_a_way_to_the_weights_that_failed_is_tried_again(hub: HubServer, tmp_path: Path) -> None:
    from tests.hub_server import dead_address, hub_server

    with hub_server(hub.root) as storage:
        hub.storage, hub.xet = storage.address, dead_address()
        assert [r.failure for r in ask(hub)[0].routes] == ["", "refused"]
        hub.xet = storage.address
        assert [r.failure for r in ask(hub)[0].routes] == ["", ""]
        _, paths = ask(hub)
        assert paths == [f"/api/models/{NAME}"]


def test_a_folder_of_the_user_of_many_tensors_is_small_on_disk(hub: HubServer, tmp_path: Path) -> None:
    many = Folder(hub.root / "tiny" / "many")
    many.json("config.json", {"model_type": "llama"})
    many.weights(*(f"model.layers.{n}.weight" for n in range(3000)), shape=(1,))
    from huggingface_hub import get_session

    client = Client(get_session(), hub.address, {}, time.monotonic() + 6)
    ask_repository(client, Shelf(hub.address, ""), "tiny/many", os.environ)
    assert entries(tmp_path)[0].stat().st_size < 2**20
