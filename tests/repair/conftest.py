"""Fixtures of repair: running the command line in a project, and a real environment with tiny packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import pytest

from qlora_doctor.cli import main
from qlora_doctor.registry import installed_checks
from tests.cli.conftest import Run


@dataclass(frozen=True)
class Project:
    """A project of its own, and the doctor run inside it as a process."""

    path: Path
    environ: dict[str, str] = field(default_factory=dict)

    def child(self, *arguments: str, **environ: str) -> Run:
        return forked(self, *arguments, **environ) if hasattr(os, "fork") else self.run(*arguments, **environ)

    def run(self, *arguments: str | Path, **environ: str) -> Run:
        done = subprocess.run(
            [sys.executable, "-m", "qlora_doctor", *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            encoding="utf-8",
            cwd=self.path,
            env={**os.environ, **self.environ, **environ},
            stdin=subprocess.DEVNULL,
            timeout=300,
        )
        return Run(done.returncode, done.stdout, done.stderr)


def _warm() -> None:
    """Imports once what every child would import."""
    for name in ("repair.rewrite", "repair.session", "report.plan", "gather.targets", "gather.installed", "cli.fix"):
        import_module(f"qlora_doctor.{name}")
    installed_checks()


def forked(project: Project, *arguments: str, **environ: str) -> Run:
    """The doctor run in a child of this process, which may be killed: as `Project.run`, without starting a Python."""
    _warm()
    folder = project.path.parent
    out, err = folder / "out", folder / "err"
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            for number, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            os.chdir(project.path)
            os.environ.update({**project.environ, **environ})
            code = main(list(arguments))
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return Run(os.waitstatus_to_exitcode(status), out.read_text(), err.read_text())


@pytest.fixture
def here(project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """The doctor run in this process, from the project's folder: quicker, where nothing is killed."""
    for name, value in project.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(project.path)

    def run(*arguments: str | Path, **environ: str) -> Run:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return run


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project folder with caches, state and journal of the test's own."""
    path = tmp_path / "project"
    path.mkdir()
    (path / "pyproject.toml").write_text('[project]\nname = "p"\n')
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_STATE_HOME": str(tmp_path / "state")}
    return Project(path, environ)


@dataclass(frozen=True)
class Index:
    """A folder of wheels, the only index there is."""

    path: Path

    def wheel(self, name: str, version: str, *requires: str, body: str = "") -> Path:
        """Makes a wheel of a package that holds nothing but its version."""
        module = name.replace("-", "_")
        file = self.path / f"{module}-{version}-py3-none-any.whl"
        info = f"{module}-{version}.dist-info"
        metadata = [
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
            *(f"Requires-Dist: {r}" for r in requires),
        ]
        entries = {
            f"{module}/__init__.py": f"__version__ = {version!r}\n{body}",
            f"{info}/METADATA": "\n".join(metadata) + "\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{entry},,\n" for entry in (*entries, f"{info}/RECORD"))
        with zipfile.ZipFile(file, "w") as archive:
            for entry, text in {**entries, f"{info}/RECORD": record}.items():
                archive.writestr(entry, text)
        return file


@dataclass(frozen=True)
class Environment:
    """A virtual environment with pip."""

    path: Path
    index: Index

    @property
    def python(self) -> str:
        return str(self.path / "bin" / "python")

    def pip(self, *arguments: str) -> str:
        done = subprocess.run(
            [self.python, "-m", "pip", "--disable-pip-version-check", *arguments],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **offline(self.index)},
        )
        return done.stdout

    def versions(self) -> dict[str, str]:
        """What is installed, but pip itself."""
        rows = json.loads(self.pip("list", "--format=json"))
        return {r["name"]: r["version"] for r in rows if r["name"] not in ("pip", "setuptools")}

    def reset(self, packages: Sequence[str]) -> None:
        """Puts exactly these packages in place, without a look at what they ask for."""
        have = [f"{name}=={version}" for name, version in self.versions().items()]
        if sorted(have) == sorted(packages):
            return
        if have:
            self.pip("uninstall", "-y", *(h.partition("==")[0] for h in have))
        if packages:
            self.pip("install", "--no-deps", *packages)


def offline(index: Index) -> dict[str, str]:
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index.path), "PIP_CONFIG_FILE": os.devnull}


OTHERS = {
    "packaging": "26.3",
    "huggingface-hub": "2.4.0",
    "numpy": "2.4.0",
    "regex": "2026.1.1",
    "safetensors": "0.9.0",
    "tqdm": "4.70.1",
    "tokenizers": "0.23.2",
    "pyyaml": "6.0.3",
}


@pytest.fixture(scope="session")
def made_environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A virtual environment and an index with the stack's names, made once."""
    folder = tmp_path_factory.mktemp("environment")
    index = Index(folder / "index")
    index.path.mkdir()
    index.wheel("torch", "2.13.0+cpu")
    index.wheel("torch", "2.14.0")
    index.wheel("transformers", "5.23.0", *OTHERS)
    index.wheel("accelerate", "1.15.0", "torch>=2.0")
    for version in ("0.17.0", "0.21.2"):
        index.wheel("peft", version, "torch>=1.13.0", "transformers", "accelerate")
    for version in ("0.42.0", "0.46.1", "0.50.2"):
        index.wheel("bitsandbytes", version, *(["torch<3,>=2.3"] if version > "0.45" else []))
    for name, version in OTHERS.items():
        index.wheel(name, version)
    venv.create(folder / "venv", with_pip=True)
    return Environment(folder / "venv", index)


OLD_STACK = (
    "torch==2.13.0+cpu",
    "transformers==5.23.0",
    "accelerate==1.15.0",
    *(f"{n}=={v}" for n, v in OTHERS.items()),
)


@pytest.fixture
def environment(made_environment: Environment, project: Project) -> Iterator[Environment]:
    """The environment with transformers 5.23 beside a peft and a bitsandbytes that it refuses."""
    made_environment.reset([*OLD_STACK, "peft==0.17.0", "bitsandbytes==0.42.0"])
    project.environ.update(offline(made_environment.index))
    yield made_environment
