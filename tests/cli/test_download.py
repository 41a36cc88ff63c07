"""`qlora-doctor download`: what it prints, where the files are, and its exit codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import hub_server

Doctor = Callable[..., Any]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QLORA_DOCTOR_MIRRORS", "")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "hub" / "org" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"w" * 5000)
    (folder / "README.md").write_text("x")
    with hub_server(tmp_path / "hub") as server:
        yield server


def test_the_last_line_is_the_folder(hub: Any, doctor: Doctor, tmp_path: Path) -> None:
    run = doctor("download", "org/tiny", "--endpoint", hub.address)
    assert run.code == 0 and run.out.splitlines()[0].startswith("2 files, 0.0 MiB from http://127.0.0.1")
    folder = Path(run.out.splitlines()[-1])
    assert folder.is_relative_to(tmp_path / "home") and (folder / "model.safetensors").stat().st_size == 5000
    again = doctor("download", "org/tiny", "--endpoint", hub.address)
    assert again.out.splitlines() == ["org/tiny is here already, whole", str(folder)]


def test_a_folder_to_carry_away_and_patterns(hub: Any, doctor: Doctor, tmp_path: Path) -> None:
    out = tmp_path / "carry"
    options = ("--endpoint", hub.address, "--to", out, "--format", "json", "--quiet")
    run = doctor("download", "org/tiny", *options, "--include", "*.md", "--include", "*.json")
    assert run.json["fetched"] == ["README.md", "config.json"] and run.json["folder"] == str(out)
    assert run.err == "" and not (out / "model.safetensors").exists()
    assert doctor("download", "org/tiny", *options, "--exclude", "*.json").json["fetched"] == ["model.safetensors"]


def test_a_hub_that_fails_is_exit_code_2_and_one_clear_line(hub: Any, doctor: Doctor) -> None:
    hub.misbehave = "html"
    run = doctor("download", "org/tiny", "--endpoint", hub.address)
    assert (run.code, run.out) == (2, "")
    assert "a login page or a wrong address" in run.err and len(run.err.splitlines()) == 1


def test_a_mirror_that_the_settings_name_takes_over_and_the_user_is_told(
    hub: Any, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QLORA_DOCTOR_MIRRORS", hub.address)
    run = doctor("download", "org/tiny", "--endpoint", "http://127.0.0.1:9", "--quiet")
    assert run.code == 0 and "not from http://127.0.0.1:9: nothing listens there" in run.err


def test_a_password_in_an_address_is_not_printed(hub: Any, doctor: Doctor) -> None:
    run = doctor("download", "org/tiny", "--endpoint", "http://me:secret@127.0.0.1:9", "--quiet")
    assert run.code == 2 and "secret" not in run.err + run.out


@pytest.mark.parametrize("options", [("--stall", "0"), ("--attempts", "0")])
def test_no_patience_at_all_is_refused(doctor: Doctor, options: tuple[str, ...]) -> None:
    assert doctor("download", "org/tiny", *options).code == 2
