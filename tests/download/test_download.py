"""A download: what is taken, how it goes on, what is verified, and where the token goes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.download import Downloaded, NotDownloaded, get
from qlora_doctor.download.problem import Trouble
from qlora_doctor.download.wanted import wanted
from tests import hub_server as server
from tests.download.conftest import MODEL, QUICK
from tests.hub_server import HubServer

Fetch = Callable[..., Downloaded]
SHARD = "model-00001-of-00002.safetensors"
NEEDED = {"config.json", "model.safetensors.index.json", SHARD, "model-00002-of-00002.safetensors"}


def files_of(hub: HubServer) -> Path:
    folder: Path = hub.root / MODEL
    return folder


def asked_for(hub: HubServer, name: str) -> int:
    return sum(path.endswith(f"/{name}") and "/resolve/" in path for path, _ in hub.asked)


def test_only_what_a_load_reads_is_downloaded_and_lies_where_huggingface_hub_looks(
    hub: HubServer, fetch: Fetch, tmp_path: Path
) -> None:
    import huggingface_hub

    done = fetch()
    assert set(done.fetched) == NEEDED == set(os.listdir(done.folder))
    for name in NEEDED:
        assert (Path(done.folder) / name).read_bytes() == (files_of(hub) / name).read_bytes()
    found = huggingface_hub.snapshot_download(MODEL, cache_dir=tmp_path / "cache", local_files_only=True)
    assert Path(found) == Path(done.folder)


def test_a_second_download_asks_for_the_listing_alone(hub: HubServer, fetch: Fetch) -> None:
    first = fetch()
    hub.asked.clear()
    again = fetch()
    assert again.folder == first.folder and again.fetched == () and len(hub.asked) == 1


def test_a_broken_off_file_goes_on_where_it_stopped(hub: HubServer, fetch: Fetch) -> None:
    hub.misbehave, hub.only, hub.after = "reset midway", SHARD, 8_000
    done = fetch()
    assert (Path(done.folder) / SHARD).read_bytes() == (files_of(hub) / SHARD).read_bytes()
    assert asked_for(hub, SHARD) >= 3  # no answer brings more than 8,000 of the 20,000 bytes


def test_a_server_without_ranges_gives_the_whole_file_again_and_it_is_right(hub: HubServer, fetch: Fetch) -> None:
    hub.misbehave, hub.only = "truncate", SHARD
    with pytest.raises(NotDownloaded):
        fetch()
    hub.misbehave, hub.ranges = "", False
    done = fetch()
    assert (Path(done.folder) / SHARD).read_bytes() == (files_of(hub) / SHARD).read_bytes()


def test_what_a_failed_download_left_is_no_model_and_the_next_one_uses_it(
    hub: HubServer, fetch: Fetch, tmp_path: Path
) -> None:
    import huggingface_hub

    hub.misbehave, hub.only = "truncate", SHARD
    with pytest.raises(NotDownloaded) as caught:
        fetch()
    assert caught.value.cause == "truncated"
    assert not list((tmp_path / "cache").glob("models--*/refs/*"))
    assert not list((tmp_path / "cache").glob(f"models--*/snapshots/*/{SHARD}"))
    with pytest.raises(OSError):
        huggingface_hub.snapshot_download(MODEL, cache_dir=tmp_path / "cache", local_files_only=True)
    hub.misbehave = ""
    hub.asked.clear()
    done = fetch()
    assert (Path(done.folder) / SHARD).read_bytes() == (files_of(hub) / SHARD).read_bytes()
    assert asked_for(hub, "config.json") == 0 and asked_for(hub, SHARD) == 1


def test_a_file_with_the_wrong_hash_is_thrown_away_and_asked_for_once_more(
    hub: HubServer, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = server._sha256
    monkeypatch.setattr(server, "_sha256", lambda file: "0" * 64 if file.name == SHARD else right(file))
    with pytest.raises(NotDownloaded, match="hash") as caught:
        fetch()
    assert caught.value.cause == "hash" and asked_for(hub, SHARD) == 2
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.name.startswith("0" * 64)]


def test_a_part_that_somebody_spoilt_is_found_by_its_hash_and_fetched_anew(
    hub: HubServer, fetch: Fetch, tmp_path: Path
) -> None:
    hub.misbehave, hub.only = "truncate", SHARD
    with pytest.raises(NotDownloaded):
        fetch()
    (part,) = (p for p in (tmp_path / "cache").rglob("*.incomplete") if p.stat().st_size)
    part.write_bytes(b"?" * part.stat().st_size)
    hub.misbehave = ""
    done = fetch()
    assert (Path(done.folder) / SHARD).read_bytes() == (files_of(hub) / SHARD).read_bytes()


def test_a_second_mirror_takes_over_and_what_went_wrong_before_is_told(
    hub: HubServer, fetch: Fetch, tmp_path: Path
) -> None:
    done = fetch(server.dead_address(), hub.address)
    assert done.endpoint == hub.address and len(done.troubles) == 1 and "nothing listens there" in done.troubles[0]


def test_no_other_address_is_asked_than_those_that_are_named(hub: HubServer, fetch: Fetch) -> None:
    hub.misbehave = "503"
    with pytest.raises(NotDownloaded) as caught:
        fetch()
    assert caught.value.causes == ("http 503",)


def test_without_any_answer_a_model_that_lies_whole_in_the_cache_is_taken(hub: HubServer, fetch: Fetch) -> None:
    first = fetch()
    hub.misbehave = "reset"
    again = fetch()
    assert again.folder == first.folder and again.endpoint == "" and len(again.troubles) == 1


def test_a_snapshot_with_a_missing_shard_is_not_taken_for_the_model(hub: HubServer, fetch: Fetch) -> None:
    first = fetch()
    (Path(first.folder) / SHARD).unlink()
    with pytest.raises(NotDownloaded, match="not whole"):
        fetch(offline=True)
    assert fetch().fetched == ()  # its bytes were still there
    assert (Path(first.folder) / SHARD).exists()


def test_a_folder_of_the_users_gets_the_files_by_their_names_and_nothing_else(
    hub: HubServer, fetch: Fetch, tmp_path: Path
) -> None:
    out = tmp_path / "carry"
    done = fetch(to=str(out))
    assert set(os.listdir(out)) - {".qlora-doctor.lock"} == NEEDED and done.folder == str(out)
    (out / SHARD).write_bytes(b"!" * 20_000)
    assert fetch(to=str(out)).fetched == (SHARD,)
    assert (out / SHARD).read_bytes() == (files_of(hub) / SHARD).read_bytes()


def test_a_given_token_goes_to_the_first_address_and_never_to_a_mirror_or_a_storage(
    hub: HubServer, fetch: Fetch, tmp_path: Path
) -> None:
    with server.hub_server(hub.root) as storage, server.hub_server(hub.root) as mirror:
        hub.storage = storage.address
        fetch(token="hf_good")
        assert [t for p, t in hub.asked] == [True] * len(hub.asked)
        assert storage.asked and not any(t for _, t in storage.asked)
        fetch(server.dead_address(), mirror.address, token="hf_good", cache=str(tmp_path / "other"))
        assert mirror.asked and not any(t for _, t in mirror.asked)


def test_a_token_that_is_kept_here_goes_to_no_address_but_the_hubs_own(
    hub: HubServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    hub.gated.add(MODEL)
    with pytest.raises(NotDownloaded, match="was not sent") as caught:
        fetch()
    assert caught.value.cause == "gated" and not any(t for _, t in hub.asked)
    assert "hf_good" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "cause", "said"),
    [
        ({"name": "org/none"}, "not found", "no such repository as org/none"),
        ({"revision": "v9"}, "no revision", "no revision 'v9'"),
        ({"token": "hf_wrong_and_long"}, "bad token", "the token is not accepted"),
    ],
)
def test_an_answer_that_says_no_is_told_at_once(
    hub: HubServer, fetch: Fetch, given: dict[str, Any], cause: str, said: str
) -> None:
    with pytest.raises(NotDownloaded, match=said) as caught:
        fetch(**given)
    assert caught.value.cause == cause and len(hub.asked) == 1
    assert "hf_wrong_and_long" not in str(caught.value)


def test_a_gated_repository_says_whether_the_token_or_the_terms_are_missing(hub: HubServer, fetch: Fetch) -> None:
    hub.gated.add(MODEL)
    with pytest.raises(NotDownloaded, match="no token was sent"):
        fetch()
    with pytest.raises(NotDownloaded, match="has no right to it"):
        fetch(token="hf_good")


def test_too_small_a_disk_is_named_before_the_first_byte(
    hub: HubServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 9, 1000))
    with pytest.raises(NotDownloaded, match=r"still to be downloaded .* free") as caught:
        fetch()
    assert caught.value.cause == "no room" and asked_for(hub, "config.json") == 0


def test_two_downloads_at_once_fetch_each_file_once(hub: HubServer, fetch: Fetch) -> None:
    hub.latency = 0.05
    results: list[Downloaded] = []
    threads = [threading.Thread(target=lambda: results.append(fetch())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2 and asked_for(hub, SHARD) == 1


def test_the_addresses_are_those_of_the_settings(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.dead_address())
    monkeypatch.setenv("QLORA_DOCTOR_MIRRORS", hub.address)
    assert get(MODEL, patience=QUICK).endpoint == hub.address
    assert (tmp_path / "home" / "hub" / "models--org--tiny" / "refs" / "main").exists()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.asked.clear()
    assert get(MODEL).endpoint == "" and hub.asked == []


def test_modelscope_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(NotDownloaded, match=r"pip install .*modelscope"):
        get("modelscope:org/tiny")


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["model.safetensors", "pytorch_model.bin"], {"model.safetensors"}),
        (["pytorch_model-00001-of-00002.bin", "optimizer.bin"], {"pytorch_model-00001-of-00002.bin"}),
        (["model.safetensors", "model-00001-of-00002.safetensors"], {"model.safetensors"}),
        (["model.safetensors", "original/consolidated.safetensors", "onnx/model.json"], {"model.safetensors"}),
        (["model.safetensors", "chat_template.jinja", "x.py"], {"model.safetensors", "chat_template.jinja"}),
        (["adapter_model.safetensors", "adapter_config.json"], {"adapter_model.safetensors", "adapter_config.json"}),
    ],
)
def test_the_choice_of_files(names: list[str], taken: set[str]) -> None:
    assert set(wanted(names)) == taken


@pytest.mark.parametrize("names", [["model.Q4.gguf"], ["adapter_config.json"], ["README.md"]])
def test_a_repository_without_weights_that_load_is_refused(names: list[str]) -> None:
    with pytest.raises(Trouble, match="no weights"):
        wanted(names)


def test_patterns_take_the_place_of_the_choice() -> None:
    names = ["model.safetensors", "a.gguf", "config.json"]
    assert wanted(names, include=["*.gguf"]) == ["a.gguf"]
    assert wanted(names, exclude=["*.json"]) == ["model.safetensors"]


def test_a_stalled_transfer_is_started_again(hub: HubServer, fetch: Fetch) -> None:
    hub.misbehave, hub.only = "hang", SHARD
    threading.Timer(0.4, lambda: setattr(hub, "misbehave", "")).start()
    done = fetch()
    assert (Path(done.folder) / SHARD).read_bytes() == (files_of(hub) / SHARD).read_bytes()
    assert asked_for(hub, SHARD) >= 2 and hub.outlasted == 0


def test_a_slow_transfer_that_keeps_the_floor_is_left_alone(hub: HubServer, fetch: Fetch) -> None:
    from dataclasses import replace

    (hub.root / "org" / "short").mkdir()
    (hub.root / "org" / "short" / "config.json").write_text("{}")
    hub.misbehave, hub.only = "drip", "config.json"
    done = fetch(patience=replace(QUICK, floor=0.1, stall=1.2, connect=60), include=["config.json"], name="org/short")
    assert done.fetched == ("config.json",) and asked_for(hub, "config.json") == 1


def test_the_progress_goes_up_to_all_the_bytes(hub: HubServer, fetch: Fetch) -> None:
    hub.latency = 0.15
    seen: list[tuple[int, int]] = []
    done = fetch(progress=lambda had, total: seen.append((had, total)))
    assert seen == sorted(seen) and seen[-1] == (done.bytes, done.bytes)


def test_a_commit_is_downloaded_under_its_own_name_and_no_branch_is_said_to_be_it(
    hub: HubServer, fetch: Fetch, tmp_path: Path
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert fetch(revision=commit).folder.endswith(commit)
    assert not list((tmp_path / "cache").glob("models--*/refs/*"))


def test_a_path_that_leaves_the_folder_is_never_written(hub: HubServer, fetch: Fetch, tmp_path: Path) -> None:
    hub.also = ["../../evil.json", "/tmp/evil.json", "..\\evil.json"]
    assert not [name for name in fetch(to=str(tmp_path / "a" / "b")).fetched if "evil" in name]
    assert not list(tmp_path.rglob("evil.json"))


def test_a_process_that_is_killed_in_the_middle_leaves_a_beginning_that_the_next_one_goes_on_from(
    hub: HubServer, fetch: Fetch, tmp_path: Path
) -> None:
    import subprocess
    import sys
    import time

    hub.misbehave, hub.only, hub.after = "reset midway", SHARD, 5_000
    program = (
        "import sys; from qlora_doctor.download import Patience, download\n"
        "download('org/tiny', [sys.argv[1]], cache=sys.argv[2], patience=Patience(first=60))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, hub.address, str(tmp_path / "cache")])
    try:
        for _ in range(600):
            if asked_for(hub, SHARD) and len(list((tmp_path / "cache").rglob("*.incomplete"))) == 1:
                break
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert not list((tmp_path / "cache").glob("models--*/refs/*"))
    hub.misbehave = ""
    done = fetch()
    assert SHARD in done.fetched
    assert (Path(done.folder) / SHARD).read_bytes() == (files_of(hub) / SHARD).read_bytes()
