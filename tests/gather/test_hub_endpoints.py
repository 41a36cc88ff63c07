"""Which address is asked, and which mirrors may be asked after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_doctor.config import Config, nearest_config
from qlora_doctor.errors import UsageError
from qlora_doctor.gather.endpoints import DEFAULT, SUGGESTED, choose

MIRROR = "https://hub.example"


def test_the_argument_comes_before_the_variable_and_that_before_the_default(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert choose(environ, Config()) == (DEFAULT,)
    assert choose({**environ, "HF_ENDPOINT": "https://a.example/"}, Config()) == ("https://a.example",)
    assert choose({**environ, "HF_ENDPOINT": "https://a.example"}, Config(), endpoint="https://b.example/") == (
        "https://b.example",
    )
    assert choose({**environ, "HF_ENDPOINT": ""}, Config(), endpoint="") == (DEFAULT,)


def test_no_mirror_is_taken_unasked(tmp_path: Path) -> None:
    assert SUGGESTED not in choose({"XDG_CONFIG_HOME": str(tmp_path)}, Config())


@pytest.mark.skipif("sys.platform in ('win32', 'darwin')", reason="the folder of the user's settings has another name")
def test_mirrors_come_from_the_variable_else_the_project_else_the_user(tmp_path: Path) -> None:
    (tmp_path / "qlora-doctor").mkdir()
    (tmp_path / "qlora-doctor" / "config.toml").write_text('mirrors = ["https://user.example/"]\n', encoding="utf-8")
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    project = Config(mirrors=("https://project.example",))
    assert choose(environ, Config()) == (DEFAULT, "https://user.example")
    assert choose(environ, project) == (DEFAULT, "https://project.example")
    environ["QLORA_DOCTOR_MIRRORS"] = f"{MIRROR}, {MIRROR} https://second.example/"
    assert choose(environ, project) == (DEFAULT, MIRROR, "https://second.example")
    assert choose({**environ, "QLORA_DOCTOR_MIRRORS": ""}, project) == (DEFAULT,)
    assert choose({**environ, "QLORA_DOCTOR_MIRRORS": DEFAULT}, project) == (DEFAULT,)


def test_the_project_names_its_mirrors(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(f'[tool.qlora-doctor]\nmirrors = ["{MIRROR}/"]\n', encoding="utf-8")
    assert nearest_config(str(tmp_path)).mirrors == (MIRROR,)


@pytest.mark.parametrize("value", ['"https://a.example"', '["a.example"]', "[1]", '["https://"]', '["https://a b"]'])
def test_what_is_no_list_of_addresses_is_refused_with_its_place(tmp_path: Path, value: str) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.qlora-doctor]\nmirrors = {value}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"pyproject\.toml: tool\.qlora-doctor\.mirrors: expected"):
        nearest_config(str(tmp_path))


def test_a_variable_or_a_file_of_the_user_that_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"QLORA_DOCTOR_MIRRORS: .*'a\.example'"):
        choose({"QLORA_DOCTOR_MIRRORS": "a.example"}, Config())


@pytest.mark.skipif("sys.platform in ('win32', 'darwin')", reason="the folder of the user's settings has another name")
@pytest.mark.parametrize("text", ["mirror = []", "mirrors = 'x", "mirrors = 1"])
def test_a_file_of_the_user_that_is_wrong_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "qlora-doctor").mkdir()
    (tmp_path / "qlora-doctor" / "config.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"config\.toml: "):
        choose({"XDG_CONFIG_HOME": str(tmp_path)}, Config())
