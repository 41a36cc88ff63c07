"""QD211 to QD214: the folder of the Hub cache."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_checks import hub_cache
from qlora_doctor.facts import Disk, Facts, Hub, HubCache, Snapshot
from qlora_doctor.testing import findings, load

NAME = "Qwen/Qwen3-0.6B"
MODEL = load(NAME)
WRITE = hub_cache.cache_that_cannot_be_written
NETWORK = hub_cache.cache_on_a_network_disk
LINKS = hub_cache.cache_without_links
PARTLY = hub_cache.incomplete_cache_offline


def disk(free: int = 2**40, writable: bool = True, **hub: Any) -> Facts:
    return Facts(hub=Hub(asked=(NAME,), **hub), disks=(Disk("hf-cache", "/data/hub", free, 2**41, writable),))


def cache(filesystem: str, path: str = "/data/hub", symlinks: bool | None = True) -> Facts:
    return Facts(hub=Hub(asked=(NAME,), cache=HubCache(path, filesystem, True, symlinks)))


@pytest.mark.parametrize(
    ("given", "words"), [(disk(writable=False), "cannot be written"), (disk(free=2**20), "is on a disk that is full")]
)
def test_a_cache_that_is_read_only_or_full_stops_a_download(given: Facts, words: str) -> None:
    (one,) = findings(WRITE, given, MODEL)
    assert one.severity == "error" and words in one.text


def test_a_model_of_which_a_part_is_missing_has_to_be_downloaded() -> None:
    partly = disk(writable=False, cached=(NAME,), snapshots=(Snapshot(NAME, missing=("x",)),))
    assert len(findings(WRITE, partly, MODEL)) == 1


@pytest.mark.parametrize(
    ("given", "request_"),
    [
        (disk(), MODEL),
        (disk(writable=False, cached=(NAME,)), MODEL),
        (disk(writable=False), load(NAME, cache_dir="/other")),
        (disk(writable=False), load("./model")),
        (Facts(hub=Hub(asked=(NAME,)), disks=()), MODEL),
    ],
)
def test_a_cache_that_can_be_written_or_need_not_be_is_silent(given: Facts, request_: Any) -> None:
    assert findings(WRITE, given, request_) == ()


@pytest.mark.parametrize("filesystem", ["nfs4", "nfs", "cifs", "lustre", "fuse.sshfs", "fuse.gcsfuse"])
def test_a_network_disk_is_told_for_information(filesystem: str) -> None:
    (one,) = findings(NETWORK, cache(filesystem), MODEL)
    assert one.severity == "info" and filesystem in one.text


def test_a_disk_of_windows_in_wsl_has_its_own_words() -> None:
    (one,) = findings(NETWORK, cache("9p", "/mnt/c/Users/me/hub"), MODEL)
    assert "Linux side" in one.text


@pytest.mark.parametrize("given", [cache("ext4"), cache("overlay"), cache(""), cache("9p"), Facts(hub=Hub())])
def test_a_local_disk_and_an_unknown_one_are_silent(given: Facts) -> None:
    assert findings(NETWORK, given, MODEL) == ()


def test_a_disk_without_links_is_told_for_information() -> None:
    (one,) = findings(LINKS, cache("exfat", symlinks=False), MODEL)
    assert one.severity == "info" and "exfat" in one.text
    assert findings(LINKS, cache("ext4"), MODEL) == findings(LINKS, cache("", symlinks=None), MODEL) == ()
    assert findings(LINKS, cache("exfat", symlinks=False), load("./model")) == ()


def offline(missing: tuple[str, ...] = ("a", "b", "c", "d", "e", "f"), name: str = "HF_HUB_OFFLINE") -> Facts:
    hub = Hub(offline=True, asked=(NAME,), cached=(NAME,), snapshots=(Snapshot(NAME, "f" * 40, missing),))
    return Facts(hub=hub, environ={name: "1"})


def test_offline_an_incomplete_model_is_an_error_that_names_what_is_missing() -> None:
    (one,) = findings(PARTLY, offline(), MODEL)
    assert one.severity == "error" and "a, b, c, d, e and 1 more" in one.text
    (other,) = findings(PARTLY, offline(name="TRANSFORMERS_OFFLINE"), MODEL)
    assert "Unset TRANSFORMERS_OFFLINE" in other.text


@pytest.mark.parametrize(
    ("given", "request_"),
    [
        (offline(()), MODEL),
        (offline(), load("other/model")),
        (offline(), load(NAME, revision="v2")),
        (offline(), load(NAME, cache_dir="/other")),
        (offline().but(hub=Hub(snapshots=(Snapshot(NAME, missing=("a",)),), cached=(NAME,))), MODEL),
    ],
)
def test_a_whole_model_another_place_and_a_network_are_silent(given: Facts, request_: Any) -> None:
    assert findings(PARTLY, given, request_) == ()
