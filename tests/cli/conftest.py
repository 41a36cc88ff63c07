"""Fixtures of the command line's tests: running it, and environments described by dist-info folders alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.cli import main


@dataclass(frozen=True)
class Run:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def codes(self) -> list[str]:
        return sorted({f["code"] for f in self.json["findings"]})


Doctor = Callable[..., Run]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Doctor:
    """Runs a command in this process, from an empty folder, with caches in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    home = tmp_path / "here"
    home.mkdir()
    monkeypatch.chdir(home)

    def run(*arguments: str | Path) -> Run:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return run


@pytest.fixture
def process(tmp_path: Path) -> Doctor:
    """Runs a command in a process of its own."""

    def run(*arguments: str | Path, cwd: Path | None = None, **environ: str) -> Run:
        done = subprocess.run(
            [sys.executable, "-m", "qlora_doctor", *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            encoding="utf-8",
            cwd=cwd or tmp_path,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), **environ},
            timeout=120,
        )
        return Run(done.returncode, done.stdout, done.stderr)

    return run


@dataclass(frozen=True)
class Environment:
    """A virtual environment without pip, filled by hand."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def site(self) -> Path:
        if os.name == "nt":
            return self.folder / "Lib" / "site-packages"
        return next((self.folder / "lib").glob("python*")) / "site-packages"

    def install(self, name: str, version: str, *requires: str, module: str | None = None) -> Path:
        """A distribution by its metadata; `module` is the source of its package's `__init__`. Returns the dist-info."""
        info = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {r}" for r in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
        if module is not None:
            package = self.site / name.replace("-", "_")
            package.mkdir()
            (package / "__init__.py").write_text(module, encoding="utf-8")
        return info


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """A fresh, empty environment with this Python's version."""
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return Environment(folder)


@pytest.fixture
def facts_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a facts file with these packages and parts."""

    def write(packages: Mapping[str, str] | None = None, **parts: Any) -> Path:
        from qlora_doctor.testing import facts

        path = tmp_path / "facts.json"
        path.write_text(json.dumps(facts(packages, **parts).to_wire()), encoding="utf-8")
        return path

    return write


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Installs a plug-in whose module holds `source`; returns the folder to put on a path."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def install(source: str, distribution: str = "test-plugin") -> str:
        module = distribution.replace("-", "_") + f"_{len(list(folder.iterdir()))}"
        (folder / f"{module}.py").write_text(source, encoding="utf-8")
        info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_text(f"[qlora_doctor.checks]\nx = {module}:CHECKS\n", encoding="utf-8")
        monkeypatch.delitem(sys.modules, module, raising=False)
        return str(folder)

    return install


HEAD = """
from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding
from qlora_doctor.registry import check
from qlora_doctor.request import LoadRequest
from qlora_doctor.fix import PipRequirement
"""


@pytest.fixture
def find(plugin: Callable[..., str]) -> Callable[..., str]:
    """Installs a plug-in of one check, TST001 `always-found`, that finds one thing of this severity."""

    def install(severity: str, message: str = "it is wrong; mend it") -> str:
        return plugin(
            HEAD
            + f"""
@check("TST001", since="1.0")
def always_found(facts: Facts):
    '''A check that always finds something.'''
    yield Finding({message!r}, {{"why": "test"}}, severity={severity!r},
        fixes=(PipRequirement("example>=1", applicability="safe"),))

CHECKS = [always_found]
"""
        )

    return install
