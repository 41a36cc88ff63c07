"""The user's Hub cache: what it holds of a model, whether that is whole, and on what kind of disk it lies."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.examine import Question, examine
from qlora_doctor.gather.hub_cache import read_cache, read_snapshots
from tests.models.conftest import TEXT_NAMES, Folder

NAME = "tiny/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODES = ("QD203", "QD214", "QD310", "QD314")


class Cached:
    """A repository in the layout of huggingface_hub: blobs, links to them, and refs/main."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "hub" / "models--tiny--model"
        self.snapshot = self.folder / "snapshots" / COMMIT
        self.snapshot.mkdir(parents=True)
        (self.folder / "refs").mkdir()
        (self.folder / "blobs").mkdir()
        (self.folder / "refs" / "main").write_text(COMMIT, encoding="ascii")

    def add(self, name: str, raw: bytes) -> None:
        blob = self.folder / "blobs" / name.replace(".", "")
        blob.write_bytes(raw)
        os.symlink(os.path.relpath(blob, self.snapshot), self.snapshot / name)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cached:
    """A whole model of two shards in the cache, and a machine that is told to stay offline."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made = Folder(tmp_path / "made")
    made.json("config.json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    made.shards(*TEXT_NAMES)
    cached = Cached(tmp_path / "home")
    for path in sorted(made.path.iterdir()):
        cached.add(path.name, path.read_bytes())
    return cached


def outcomes(**more: Any) -> dict[str, str]:
    answer = examine(Question(model=NAME, select=CODES, **more))
    return {o.code: o.outcome for o in answer.verdict.outcomes}


def test_a_whole_snapshot_is_read_as_the_model_without_a_network(cached: Cached) -> None:
    (snapshot,), (model,) = read_snapshots([NAME], os.environ)
    assert (snapshot.revision, snapshot.missing) == (COMMIT, ())
    assert (model.name, model.origin, set(model.tensors)) == (NAME, "hub", set(TEXT_NAMES))
    assert outcomes() == {"QD203": "ok", "QD214": "ok", "QD310": "ok", "QD314": "ok"}


def test_a_broken_file_of_the_cache_is_found_offline(cached: Cached) -> None:
    (cached.folder / "blobs" / "configjson").write_bytes(b"<html>log in</html>")
    assert "found" in outcomes().values()


def test_a_snapshot_that_lacks_a_shard_is_named_with_it_and_not_judged_as_a_model(cached: Cached) -> None:
    (cached.snapshot / "model-00002-of-00003.safetensors").unlink()
    (cached.folder / "blobs" / "abc.incomplete").write_bytes(bytes(7))
    (snapshot,), models = read_snapshots([NAME], os.environ)
    assert (snapshot.missing, snapshot.incomplete, models) == (("model-00002-of-00003.safetensors",), 7, ())
    answer = examine(Question(model=NAME, select=CODES))
    assert [(f.code, f.severity) for f in answer.verdict.findings] == [("QD214", "error")]
    assert "hf download tiny/model" in answer.verdict.findings[0].text


def test_told_to_stay_offline_by_us_alone_an_incomplete_model_is_for_information(
    cached: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    (cached.snapshot / "model-00002-of-00003.safetensors").unlink()
    answer = examine(Question(model=NAME, select=CODES, offline=True))
    assert [(f.code, f.severity) for f in answer.verdict.findings] == [("QD214", "info")]


@pytest.mark.parametrize("name", ["config.json", "refs"])
def test_without_a_configuration_or_a_ref_nothing_of_it_loads(cached: Cached, name: str) -> None:
    if name == "refs":
        (cached.folder / "refs" / "main").write_text("f" * 40, encoding="ascii")
    else:
        (cached.snapshot / name).unlink()
    (snapshot,), models = read_snapshots([NAME], os.environ)
    assert snapshot.missing in (("config.json",), ("everything",)) and models == ()


def test_an_index_without_any_of_its_files_and_weights_that_are_not_there_are_missing(cached: Cached) -> None:
    for path in cached.snapshot.glob("*.safetensors"):
        path.unlink()
    (snapshot,), _ = read_snapshots([NAME], os.environ)
    assert "model-00001-of-00003.safetensors" in snapshot.missing
    (cached.snapshot / "model.safetensors.index.json").unlink()
    (snapshot,), _ = read_snapshots([NAME], os.environ)
    assert snapshot.missing == ("the weights",)


@pytest.mark.parametrize("name", ["../../etc", "other/model", ""])
def test_what_is_not_in_the_cache_and_what_is_no_name_is_nothing(cached: Cached, name: str) -> None:
    assert read_snapshots([name], os.environ) == ((), ())


def test_a_link_of_the_snapshot_that_leaves_the_cache_is_not_followed(cached: Cached, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({"chat_template": "secret"}), encoding="utf-8")
    os.symlink(secret, cached.snapshot / "tokenizer_config.json")
    _, (model,) = read_snapshots([NAME], os.environ)
    assert model.tokenizer_config is None


def test_a_hub_that_does_not_answer_leaves_the_cached_model_to_be_judged(
    cached: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    answer = examine(Question(model=NAME, select=("QD202", "QD314")))
    assert [m.name for m in answer.facts.models] == [NAME]
    assert [(f.code, f.severity) for f in answer.verdict.findings] == [("QD202", "warning")]
    (cached.snapshot / "model-00002-of-00003.safetensors").unlink()
    answer = examine(Question(model=NAME, select=("QD202", "QD314")))
    assert [(f.code, f.severity) for f in answer.verdict.findings] == [("QD202", "error")]


@pytest.mark.skipif(not os.path.exists("/proc/self/mounts"), reason="no table of mounts to read")
def test_the_cache_knows_its_disk_although_it_does_not_exist_yet(tmp_path: Path) -> None:
    cache = read_cache({"HF_HOME": str(tmp_path / "not" / "yet")})
    assert (cache.path, cache.writable, cache.symlinks) == (str(tmp_path / "not" / "yet" / "hub"), True, True)
    assert cache.filesystem == read_cache({"HF_HUB_CACHE": str(tmp_path)}).filesystem != ""
    assert read_cache({"HF_HUB_CACHE": "/proc"}).filesystem == "proc"
