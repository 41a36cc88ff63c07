"""Mirrors: what pip, uv and conda are told of on this machine, and the commands that follow from it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qlora_doctor.facts import Driver, Gpu
from qlora_doctor.install.choose import Choice, Pin, newest
from qlora_doctor.install.commands import UNKNOWN_INDEX, constraints_text, pip_command, uv_command
from qlora_doctor.install.machine import Machine
from qlora_doctor.install.sources import Sources, read_sources

OLD_DRIVER = newest(Machine("3.11.7", libc="glibc 2.36", driver=Driver("550.120"), gpus=(Gpu("RTX 3060", "8.6"),)))
CURRENT = newest(Machine("3.11.7", libc="glibc 2.36", driver=Driver("580.95"), gpus=(Gpu("RTX 4090", "8.9"),)))
CPU = newest(Machine("3.11.7", libc="glibc 2.36", gpus=()))


def read(home: Path, **environ: str) -> Sources:
    given = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), "XDG_CONFIG_DIRS": str(home / "none")}
    return read_sources({**given, **environ}, prefix=str(home / "env"), project=str(home / "project"))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    # An empty file of the same name as a system's pip.conf would be read before it: all that counts lies nearer.
    write(tmp_path / "config" / "pip" / "pip.conf", "[global]\nindex-url = \nextra-index-url = \nfind-links = \n")
    return tmp_path


def test_pips_user_file_names_the_mirror_and_the_environments_own_file_counts_more(home: Path) -> None:
    write(home / "config" / "pip" / "pip.conf", "[global]\nindex-url = https://mirror.test/simple\n")
    assert read(home).pip_index == "https://mirror.test/simple"
    write(home / "env" / "pip.conf", "[install]\nindex-url = https://nearer.test/simple\n")
    found = read(home)
    assert (found.pip_index, found.said["pip index-url"]) == (
        "https://nearer.test/simple",
        str(home / "env" / "pip.conf"),
    )


def test_a_variable_counts_more_than_a_file_and_a_null_file_leaves_no_file(home: Path) -> None:
    write(home / "config" / "pip" / "pip.conf", "[global]\nindex-url = https://mirror.test/simple\n")
    assert read(home, PIP_INDEX_URL="https://variable.test/simple").pip_index == "https://variable.test/simple"
    assert read(home, PIP_CONFIG_FILE=os.devnull).pip_index == ""


def test_uv_is_read_from_its_user_file_the_project_and_variables(home: Path) -> None:
    write(home / "config" / "uv" / "uv.toml", 'index-url = "https://user.test/simple"\n')
    assert read(home).uv_index == "https://user.test/simple"
    project = '[[tool.uv.index]]\nurl = "https://project.test/simple"\ndefault = true\n[[tool.uv.index]]\nurl = "https://more.test"\n'
    write(home / "project" / "pyproject.toml", project)
    found = read(home)
    assert (found.uv_index, found.uv_extra) == ("https://project.test/simple", ("https://more.test",))
    assert read(home, UV_DEFAULT_INDEX="https://variable.test/simple").uv_index == "https://variable.test/simple"


def test_conda_channels_are_read_from_condarc(home: Path) -> None:
    write(
        home / ".condarc",
        "ssl_verify: true\nchannels:\n  - https://mirror.test/conda-forge\n  - 'defaults'\nshow_channel_urls: true\n",
    )
    assert read(home).conda_channels == ("https://mirror.test/conda-forge", "defaults")


def test_a_file_that_is_none_says_nothing(home: Path) -> None:
    before = read(home)
    write(home / "config" / "pip" / "pip.conf", "not an ini file\n")
    write(home / "config" / "uv" / "uv.toml", "= broken")
    assert read(home) == before


@pytest.mark.parametrize(
    "environ",
    [
        {"PIP_EXTRA_INDEX_URL": "https://mirror.test/pytorch-wheels/cu121"},
        {"PIP_FIND_LINKS": "https://mirror.test/pytorch-wheels/cu118/"},
        {"UV_INDEX": "https://mirror.test/pytorch-wheels/cpu"},
        {"QLORA_DOCTOR_TORCH_INDEX": "https://mirror.test/pytorch-wheels"},
        {"QLORA_DOCTOR_TORCH_INDEX": "https://mirror.test/pytorch-wheels/rocm7.2"},
    ],
)
def test_a_mirror_of_torch_builds_serves_every_build(home: Path, environ: dict[str, str]) -> None:
    sources = read(home, **environ)
    assert sources.torch_root == "https://mirror.test/pytorch-wheels"
    command = pip_command(OLD_DRIVER, "python", sources)
    assert command[command.index("--extra-index-url") + 1] == "https://mirror.test/pytorch-wheels/cu126"
    assert "torch==2.14.1+cu126" in command


def test_one_pip_command_with_exact_versions() -> None:
    command = pip_command(CURRENT, "python", Sources())
    assert command[:5] == ["python", "-m", "pip", "install", "torch==2.14.1"]
    assert "--extra-index-url" not in command


def test_where_no_index_of_builds_is_known_the_command_says_where_one_goes() -> None:
    assert f"{UNKNOWN_INDEX}/cu126" in pip_command(OLD_DRIVER, "python", Sources())
    assert not [w for w in pip_command(OLD_DRIVER, "python", Sources(), placeholder=False) if UNKNOWN_INDEX in w]


def test_uv_is_told_of_the_build_by_its_label() -> None:
    command = uv_command(OLD_DRIVER, "/env/bin/python", Sources())
    assert {"--torch-backend=cu126", "torch==2.14.1", "/env/bin/python"} <= set(command)
    assert "--torch-backend=cpu" in uv_command(CPU, "", Sources())
    assert not [w for w in uv_command(CURRENT, "", Sources()) if w.startswith("--torch-backend")]


def test_a_mirror_that_only_the_other_tool_is_told_of_is_passed_on() -> None:
    only_pip, only_uv = Sources(pip_index="https://mirror.test/simple"), Sources(uv_index="https://mirror.test/simple")
    assert ["--default-index", "https://mirror.test/simple"] == uv_command(CURRENT, "", only_pip)[3:5]
    assert ["--index-url", "https://mirror.test/simple"] == pip_command(CURRENT, "python", only_uv)[4:6]
    assert "--index-url" not in pip_command(CURRENT, "python", only_pip)


def test_a_constraints_file_holds_each_version_with_its_reason_on_one_line() -> None:
    text = constraints_text(
        [Pin("torch", "2.14.1+cu126", "the newest\nthat fits"), Pin("peft", "0.21.2", "")], "a test"
    )
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        "torch==2.14.1+cu126  # the newest that fits",
        "peft==0.21.2",
    ]


def test_a_choice_without_a_build_has_no_requirements() -> None:
    assert pip_command(Choice(CPU.machine, None), "python", Sources()) == ["python", "-m", "pip", "install"]
