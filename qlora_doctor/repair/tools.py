"""Projects whose packages uv, poetry, pdm or conda manages: the change goes through that tool, or it is lost again."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from qlora_doctor.facts import Packages, canonical
from qlora_doctor.fix import PipRequirement

LOCKS = (("uv", "uv.lock"), ("poetry", "poetry.lock"), ("pdm", "pdm.lock"))


@dataclass(frozen=True, slots=True)
class Tool:
    """What manages a project. `manifests` are the files that it changes. `at_hand`: it is on PATH."""

    name: str
    project: str
    manifests: tuple[str, ...] = ()
    at_hand: bool = False
    note: str = ""

    def commands(self, fixes: Sequence[PipRequirement]) -> list[list[str]]:
        """The commands that make the change through this tool."""
        gone = [f.requirement for f in fixes if f.remove]
        wanted = [f.requirement for f in fixes if not f.remove]
        return [
            *([[self.name, "remove", *gone]] if gone else []),
            *([[self.name, "add", *wanted]] if wanted else []),
        ]


def tool_of(project: str, prefix: str) -> Tool | None:
    """The tool that manages the environment at `prefix` for `project`; None for plain pip."""
    inside = os.path.realpath(prefix).startswith(os.path.realpath(project) + os.sep)
    for name, lock in LOCKS:
        path = os.path.join(project, lock)
        # uv keeps its environment in the project; another interpreter is not the one that `uv run` takes.
        if os.path.isfile(path) and (inside or name != "uv" or _named(prefix)):
            manifests = (os.path.join(project, "pyproject.toml"), path)
            note = f"this project is managed by {name}: the change goes into its manifest, or the next run undoes it"
            return Tool(name, project, manifests, shutil.which(name) is not None, note)
    return None


def conda_note(prefix: str) -> str:
    """What to say of an environment that conda made; "" for any other."""
    if not os.path.isdir(os.path.join(prefix, "conda-meta")):
        return ""
    return "this is a conda environment: pip installs into it, and `conda install` or `conda update` may undo it later"


_CONDA_NAMES = {"torch": "pytorch", "huggingface-hub": "huggingface_hub"}


def by_conda(packages: Packages | None, fixes: Sequence[PipRequirement]) -> list[PipRequirement]:
    """The fixes that are about packages which conda installed."""
    if packages is None:
        return []
    found = []
    for fix in fixes:
        have = packages.find(_name(fix.requirement))
        if have is not None and have.installer == "conda":
            found.append(fix)
    return found


def conda_commands(prefix: str, fixes: Sequence[PipRequirement]) -> list[list[str]]:
    """The commands by which conda makes the changes, in the environment at `prefix`, from the channels of its settings."""
    gone = [_conda_name(f.requirement) for f in fixes if f.remove]
    wanted = [_conda_name(f.requirement) for f in fixes if not f.remove]
    return [
        *([["conda", "remove", "--prefix", prefix, *gone]] if gone else []),
        *([["conda", "install", "--prefix", prefix, *wanted]] if wanted else []),
    ]


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return match[0] if match else requirement


def _conda_name(requirement: str) -> str:
    """A requirement as conda writes it: its own name of the package, and no extras or local version."""
    name = _name(requirement)
    rest = re.sub(r"\[[^\]]*\]", "", requirement[len(name) :]).partition("+")[0]
    return _CONDA_NAMES.get(canonical(name), name) + rest


def _named(prefix: str) -> bool:
    chosen = os.environ.get("UV_PROJECT_ENVIRONMENT")
    return bool(chosen) and os.path.realpath(chosen or "") == os.path.realpath(prefix)
