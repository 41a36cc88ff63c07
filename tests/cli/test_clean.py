"""`qlora-doctor clean`: what is listed, what is deleted, and what never is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Doctor = Callable[..., Any]
NEW, OLD = "a" * 40, "b" * 40


@pytest.fixture
def disk(doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two revisions of a model that share a file, a broken-off download, and a project with a run."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("QLORA_DOCTOR_CACHE", str(tmp_path / "own"))
    model = tmp_path / "hub" / "models--org--m"
    for name, size in (("shared", 10), ("old", 2000), ("new", 3000), ("x.incomplete", 500)):
        path = model / "blobs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
        os.utime(path, (time.time() - 7200,) * 2)
    for commit, blob in ((NEW, "new"), (OLD, "old")):
        (model / "snapshots" / commit).mkdir(parents=True)
        for name, target in (("config.json", "shared"), ("model.safetensors", blob)):
            (model / "snapshots" / commit / name).symlink_to(f"../../blobs/{target}")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(NEW)
    (tmp_path / "own" / "converted" / "finetune-1").mkdir(parents=True)
    (tmp_path / "own" / "converted" / "finetune-1" / "model.safetensors").write_bytes(b"x" * 400)
    for step, optimizer in ((100, True), (200, True), (300, False)):
        folder = tmp_path / "here" / "out" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(b"x" * 100)
        if optimizer:
            (folder / "optimizer.pt").write_bytes(b"x" * 50)
    return tmp_path


def listed(doctor: Doctor) -> dict[str, Any]:
    return {d["name"]: d for d in doctor("clean", "--format", "json").json["found"]}


def test_everything_is_listed_with_its_size_and_nothing_is_deleted(disk: Path, doctor: Doctor) -> None:
    before = sorted(p for p in disk.rglob("*"))
    found = listed(doctor)
    assert {n: d["size"] for n, d in found.items()} == {
        "model:org/m@aaaaaaaa": 3000,
        "model:org/m@bbbbbbbb": 2000,
        "incomplete:org/m": 500,
        "converted:finetune-1": 400,
        "checkpoint:out/checkpoint-100": 152,
        "checkpoint:out/checkpoint-200": 152,
        "checkpoint:out/checkpoint-300": 102,
    }
    text = doctor("clean").out.splitlines()
    assert "model:org/m@aaaaaaaa  cached revision (main)" in text[0] and "could go" in text[-1]
    assert sorted(p for p in disk.rglob("*")) == before


def test_a_revision_goes_with_its_own_bytes_and_leaves_what_another_one_needs(disk: Path, doctor: Doctor) -> None:
    run = doctor("clean", "--delete", "model:org/m@bbbbbbbb")
    assert run.code == 0 and "model:org/m@bbbbbbbb  deleted" in run.out
    model = disk / "hub" / "models--org--m"
    assert sorted(os.listdir(model / "blobs")) == ["new", "shared", "x.incomplete"]
    assert os.listdir(model / "snapshots") == [NEW] and (model / "refs" / "main").exists()
    assert (model / "snapshots" / NEW / "config.json").read_bytes() == b"x" * 10
    doctor("clean", "--delete", "model:org/m@aaaaaaaa", "--delete", "incomplete:org/m")
    assert os.listdir(model / "blobs") == [] and not (model / "refs" / "main").exists()


def test_the_last_checkpoint_that_a_run_can_go_on_from_is_never_deleted(disk: Path, doctor: Doctor) -> None:
    run = doctor("clean", "--delete", "checkpoint:out/checkpoint-100", "--delete", "checkpoint:out/checkpoint-200")
    assert run.code == 2 and "the last checkpoint that its run can go on from" in run.err
    assert (disk / "here" / "out" / "checkpoint-100").exists(), "one wrong name, and nothing is deleted"
    assert doctor("clean", "--delete", "checkpoint:out/checkpoint-100").code == 0
    assert sorted(os.listdir(disk / "here" / "out")) == ["checkpoint-200", "checkpoint-300"]


def test_of_checkpoints_without_an_optimizer_the_last_is_kept(disk: Path, doctor: Doctor) -> None:
    for step in (100, 200):
        (disk / "here" / "out" / f"checkpoint-{step}" / "optimizer.pt").unlink()
    assert [n for n, d in listed(doctor).items() if d.get("kept")] == ["checkpoint:out/checkpoint-300"]


def test_a_download_that_is_being_written_is_kept(disk: Path, doctor: Doctor) -> None:
    os.utime(disk / "hub" / "models--org--m" / "blobs" / "x.incomplete")
    assert doctor("clean", "--delete", "incomplete:org/m").code == 2


def test_a_dry_run_deletes_nothing(disk: Path, doctor: Doctor) -> None:
    run = doctor("clean", "--dry-run", "--delete", "converted:finetune-1")
    assert "would be deleted" in run.out and (disk / "own" / "converted" / "finetune-1").exists()
    doctor("clean", "--delete", "converted:finetune-1")
    assert not (disk / "own" / "converted" / "finetune-1").exists()


def test_a_wrong_name_is_refused_with_the_nearest(disk: Path, doctor: Doctor) -> None:
    run = doctor("clean", "--delete", "model:org/m@cccc")
    assert run.code == 2 and "did you mean model:org/m@" in run.err


def test_a_link_out_of_the_project_is_not_followed(disk: Path, doctor: Doctor) -> None:
    outside = disk / "outside" / "checkpoint-1"
    outside.mkdir(parents=True)
    (outside / "trainer_state.json").write_text("{}")
    (disk / "here" / "out" / "checkpoint-50").symlink_to(outside)
    assert "checkpoint:out/checkpoint-50" not in listed(doctor)
