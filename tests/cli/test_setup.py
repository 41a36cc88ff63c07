"""`qlora-doctor setup`: a real pip in real environments, with an index of tiny wheels that carry the stack's names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.setup.make import CONSTRAINTS, MARKER

STACK = {
    "torch": ["2.13.0+cpu", "2.14.0+cu126", "2.14.1"],
    "transformers": ["5.23.0", "5.24.0"],
    "huggingface-hub": ["2.4.0"],
    "peft": ["0.21.2"],
    "accelerate": ["1.15.0"],
    "bitsandbytes": ["0.50.2"],
    "datasets": ["5.2.0"],
    "trl": ["1.16.0"],
}
REQUIRES = {
    "transformers": ["huggingface-hub<3.0,>=1.31.0"],
    "peft": ["torch>=1.13.0", "transformers", "accelerate"],
    "accelerate": ["torch>=2.0.0"],
    "bitsandbytes": ["torch<3,>=2.4"],
    "trl": ["datasets", "transformers"],
}


def wheel(folder: Path, name: str, version: str, *requires: str) -> Path:
    module = name.replace("-", "_")
    file = folder / f"{module}-{version}-py3-none-any.whl"
    info = f"{module}-{version}.dist-info"
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    entries = {
        f"{module}/__init__.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": "\n".join(lines) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{entry},,\n" for entry in (*entries, f"{info}/RECORD"))
    with zipfile.ZipFile(file, "w") as archive:
        for entry, text in {**entries, f"{info}/RECORD": record}.items():
            archive.writestr(entry, text)
    return file


@pytest.fixture
def index(tmp_path: Path) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    for name, versions in STACK.items():
        for version in versions:
            wheel(folder, name, version, *REQUIRES.get(name, ()))
    return folder


Setup = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def setup(tmp_path: Path, index: Path) -> Setup:
    """Runs `setup` in a process of its own, with no index but the tiny one, no uv, and no configuration."""

    def run(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_", "QLORA_"))}
        given = {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(index),
            "PIP_CONFIG_FILE": os.devnull,
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
            "PATH": "/usr/bin:/bin",
            **environ,
        }
        return subprocess.run(
            [sys.executable, "-m", "qlora_doctor", "setup", *map(str, arguments)],
            check=False, capture_output=True, text=True, env={**kept, **given}, stdin=subprocess.DEVNULL, timeout=300,
        )  # fmt: skip

    return run


def versions(folder: Path) -> dict[str, str]:
    command = [str(folder / "bin" / "python"), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {r["name"]: r["version"] for r in rows if r["name"] not in ("pip", "setuptools")}


def test_the_newest_set_that_the_index_has_is_installed_and_held(setup: Setup, tmp_path: Path) -> None:
    folder = tmp_path / "env"
    done = setup(folder, "--gpu", "none", "--with", "trl", "--yes", "--no-live")
    assert done.returncode == 0, done.stderr
    have = versions(folder)
    assert (have["torch"], have["transformers"], have["trl"]) == ("2.13.0+cpu", "5.23.0", "1.16.0")
    assert "the configured index has no torch 2.14 in the cpu build" in done.stdout
    assert "proved: a dry run of pip gives exactly this set" in done.stdout and "check --live --python" in done.stdout
    assert done.stderr.index("installing torch") < done.stderr.index("installing transformers")
    held = (folder / CONSTRAINTS).read_text().splitlines()
    assert {line.split("  #")[0].strip() for line in held if not line.startswith("#")} == {
        f"{name.lower()}=={version}" for name, version in have.items()
    }
    assert not (folder / MARKER).exists()


def test_a_card_that_is_not_here_gets_the_build_for_its_driver(setup: Setup, tmp_path: Path) -> None:
    folder = tmp_path / "env"
    done = setup(folder, "--gpu", "RTX 3060", "--driver", "550.120", "--yes", "--no-live")
    assert done.returncode == 0, done.stderr
    assert versions(folder)["torch"] == "2.14.0+cu126"


def test_a_setup_that_was_killed_is_marked_and_begun_anew_and_one_whose_proof_fails_stays_marked(
    setup: Setup, tmp_path: Path
) -> None:
    folder = tmp_path / "env"
    arguments = (folder, "--gpu", "none", "--yes")
    killed = setup(*arguments, "--no-live", QLORA_DOCTOR_STOP_AT="setup-torch")
    assert killed.returncode == -9
    assert "not carried to its end" in (folder / MARKER).read_text()
    (folder / "left-over").write_text("x")
    again = setup(*arguments)
    assert again.returncode == 1, again.stderr
    assert not (folder / "left-over").exists()
    assert "NOT finished" in again.stdout and "live: import torch ..." in again.stderr
    assert "the live proof failed" in (folder / MARKER).read_text()


def test_an_install_that_fails_says_which_and_leaves_the_marker(setup: Setup, index: Path, tmp_path: Path) -> None:
    # The wheel solves, and then is no wheel: pip fails after its dry run.
    broken = index / "peft-0.21.2-py3-none-any.whl"
    broken.write_bytes(broken.read_bytes().replace(b"peft/__init__.py", b"peft/__xnit__.py", 1))
    folder = tmp_path / "env"
    done = setup(folder, "--gpu", "none", "--yes", "--no-live")
    assert done.returncode == 2
    assert "the packages beside torch could not be installed" in done.stderr
    assert MARKER in done.stderr and (folder / MARKER).exists()


def test_the_build_of_another_kind_is_never_taken_in_its_place(setup: Setup, index: Path, tmp_path: Path) -> None:
    (index / "torch-2.13.0+cpu-py3-none-any.whl").unlink()
    done = setup(tmp_path / "env", "--gpu", "none", "--yes")
    assert done.returncode == 2
    assert "has no torch 2.14 in the cpu build" in done.stderr
    assert not (tmp_path / "env").exists()


def test_a_dry_run_makes_nothing_and_explains_each_pin(setup: Setup, tmp_path: Path) -> None:
    done = setup(tmp_path / "env", "--gpu", "RTX 3060", "--driver", "550.120", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "env").exists()
    assert "CUDA 13.0 needs driver 580 or newer" in " ".join(done.stdout.split())
    assert (
        "proved: " in done.stdout
        and "to download: " in done.stdout
        and "about" not in done.stdout.split("to download")[1]
    )
    assert "--torch-backend=cu126" in done.stdout


def test_an_index_that_cannot_be_reached_makes_nothing_and_is_named(setup: Setup, tmp_path: Path) -> None:
    url = "http://user:secret@127.0.0.1:9/simple"
    done = setup(tmp_path / "env", "--gpu", "none", "--yes", PIP_NO_INDEX="", PIP_FIND_LINKS="", PIP_INDEX_URL=url)
    assert done.returncode == 2
    assert "cannot be reached" in done.stderr and "secret" not in done.stdout + done.stderr
    assert "not proved" in done.stdout and "about" in done.stdout
    assert not (tmp_path / "env").exists()


UV = """#!{python}
# Stands in for uv: takes its words, and lets pip do the work.
import re, subprocess, sys
words = sys.argv[1:]
open({log!r}, "a").write(" ".join(words) + "\\n")
if words[0] == "venv":
    sys.exit(subprocess.run([{python!r}, "-m", "venv", words[-1]]).returncode)
backend = next((w.partition("=")[2] for w in words if w.startswith("--torch-backend=")), "")
python = words[words.index("--python") + 1]
taken, rest = [], iter(words[1:])
for word in rest:
    if word in ("--python", "--find-links", "--index"):
        next(rest)
    elif not word.startswith("--torch-backend="):
        taken.append(word + "+" + backend if backend and re.match(r"torch==[0-9.]+$", word) else word)
done = subprocess.run([python, "-m", "pip", *taken, "--quiet"])
if "--dry-run" in words and not done.returncode:
    print(" + torch==2.14.0+cu126")
sys.exit(done.returncode)
"""


def test_uv_proves_and_makes_the_environment_where_it_is_there(setup: Setup, index: Path, tmp_path: Path) -> None:
    wheel(index, "torch", "2.14.1+cu126")
    tools, log, folder = tmp_path / "tools", tmp_path / "log", tmp_path / "env"
    tools.mkdir()
    python = str(Path(sys.executable).resolve())
    (tools / "uv").write_text(UV.format(python=python, log=str(log)).replace("2.14.0+cu126", "2.14.1+cu126"))
    (tools / "uv").chmod(0o755)
    arguments = (folder, "--gpu", "RTX 3060", "--driver", "550.120", "--yes", "--no-live", "--python", python)
    done = setup(*arguments, PATH=f"{tools}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert "proved: a dry run of uv" in done.stdout
    assert versions(folder)["torch"] == "2.14.1+cu126"
    said = log.read_text().splitlines()
    assert said[0].startswith("pip install") and "--dry-run" in said[0] and "--torch-backend=cu126" in said[0]
    assert [line.split()[0] for line in said[1:]] == ["venv", "pip", "pip"]


def test_offline_shows_the_set_of_the_tables_with_a_rough_size(setup: Setup, tmp_path: Path) -> None:
    done = setup(tmp_path / "env", "--gpu", "RTX 4090", "--driver", "580.95", "--dry-run", "--offline")
    assert done.returncode == 0
    assert "not proved: the index was not asked" in done.stdout and "by the table of this doctor" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu", "none"], "nobody to ask"),
        (["--gpu", "none", "--offline", "--yes"], "--dry-run only"),
        (["--gpu", "RTX 9999", "--yes"], "no such card"),
        (["--gpu", "none", "--with", "deepspeed", "--yes"], "datasets and trl"),
        (["--gpu", "RTX 4090", "--driver", "390.157", "--yes"], "needs driver"),
        (["--python", "/nowhere/python", "--yes"], "no interpreter"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_made(
    setup: Setup, tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = setup(tmp_path / "env", *arguments)
    assert done.returncode == 2
    assert words in done.stderr, done.stderr
    assert not (tmp_path / "env").exists()


def test_a_folder_that_holds_something_is_left_alone(setup: Setup, tmp_path: Path) -> None:
    folder = tmp_path / "env"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    done = setup(folder, "--gpu", "none", "--yes")
    assert done.returncode == 2 and "not empty" in done.stderr
    assert [p.name for p in folder.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_the_cpu_set_of_a_configured_index_really_works(tmp_path: Path) -> None:
    # With the user's own pip configuration; a download of some 450 MB where the index is not near.
    folder = tmp_path / "env"
    command: list[Any] = [sys.executable, "-m", "qlora_doctor", "setup", folder, "--gpu", "none", "--yes"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if "has no torch" in done.stderr or "cannot be reached" in done.stderr:
        pytest.skip(f"the configured index has no CPU build of torch: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "proved: everything was imported" in done.stdout
    assert not (folder / MARKER).exists()
