"""Making the environment: torch first, then the rest, held by a constraints file, then the live proof."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qlora_doctor.errors import RepairError
from qlora_doctor.facts import canonical
from qlora_doctor.finding import Finding
from qlora_doctor.gather import interpreters
from qlora_doctor.install.choose import Pin
from qlora_doctor.install.commands import constraints_text, index_options, requirements
from qlora_doctor.repair import hooks
from qlora_doctor.repair.pip import QUIET, Installer, failure_of, run
from qlora_doctor.setup.prepare import Prepared, proved_live, refuse_taken

MARKER = "UNFINISHED-by-qlora-doctor.txt"
CONSTRAINTS = "constraints.txt"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Made:
    """An environment that was made. `left` are the findings of the live proof; None where it was not asked for."""

    folder: str
    python: str
    constraints: str
    versions: dict[str, str]
    left: tuple[Finding, ...] | None

    @property
    def finished(self) -> bool:
        return not self.left


def make(prepared: Prepared, live: bool, say: Say, progress: Callable[[str, str], None] | None = None) -> Made:
    """Makes the environment of a prepared setup and proves it.

    Until it is proved a marker lies in the folder, which says that it is not finished; a later setup of the same folder
    begins anew. `say` is told each step.

    Raises:
        RepairError: a step failed; says which, and what lies in the folder.
    """
    folder = os.path.abspath(prepared.order.folder)
    refuse_taken(folder, MARKER)
    _begin(folder)
    try:
        say(f"making {folder}")
        installer = _environment(prepared, folder)
        hooks.at("setup-made")
        constraints = os.path.join(folder, CONSTRAINTS)
        _install(prepared, installer, constraints, say)
        versions = _hold(prepared, installer.python, constraints)
        left: tuple[Finding, ...] | None = None
        if live:
            say("proving it: everything is imported and tried, in processes of their own")
            left = tuple(proved_live(installer.python, progress))
    except (RepairError, KeyboardInterrupt) as error:
        why = "stopped by Ctrl-C" if isinstance(error, KeyboardInterrupt) else str(error)
        _mark(folder, why)
        raise RepairError(
            f"{why}. {folder} is not finished ({MARKER} in it says so): run the same setup again, or remove the folder"
        ) from None
    if left:
        _mark(folder, "the live proof failed: " + "; ".join(f"{f.code} {f.text}" for f in left))
    else:
        os.unlink(os.path.join(folder, MARKER))
    return Made(folder, installer.python, constraints, versions, left)


def _begin(folder: str) -> None:
    """An empty folder with the marker in it; what an unfinished setup left goes first."""
    try:
        if os.path.isdir(folder):
            for name in os.listdir(folder):
                path = os.path.join(folder, name)
                # The marker goes last, so that a kill in between leaves no folder that looks like someone's own.
                if name != MARKER:
                    shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
        os.makedirs(folder, exist_ok=True)
        _mark(folder, "it was not carried to its end")
    except OSError as error:
        raise RepairError(f"{folder} cannot be made: {error.strerror or error}; nothing was installed") from None


def _mark(folder: str, why: str) -> None:
    with open(os.path.join(folder, MARKER), "w", encoding="utf-8") as file:
        file.write(
            f"This environment is not finished: {why}.\nRun the same `qlora-doctor setup` again, or remove the folder.\n"
        )


def _environment(prepared: Prepared, folder: str) -> Installer:
    """The empty environment, and how packages get into it."""
    python = os.path.join(folder, *(("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")))
    if prepared.proof.tool == "uv":
        uv = shutil.which("uv") or "uv"
        # The folder exists already: the marker is in it.
        done = run([uv, "venv", "--allow-existing", "--python", prepared.python, folder])
        if done.returncode:
            raise RepairError(f"the environment could not be made: {failure_of(done)}")
        return Installer("uv", (uv, "pip"), python)
    done = run([prepared.python, "-m", "venv", folder])
    if done.returncode or not os.path.exists(python):
        raise RepairError(
            f"the environment could not be made: {failure_of(done)}. On Debian and Ubuntu `apt install python3-venv` is "
            "missing then; or install uv"
        )
    return Installer("pip", (python, "-m", "pip"), python)


def _install(prepared: Prepared, installer: Installer, constraints: str, say: Say) -> None:
    choice, uv = prepared.choice, installer.kind == "uv"
    with open(constraints, "w", encoding="utf-8") as file:
        file.write(constraints_text(choice.pins, choice.machine.text))
    options = index_options(choice, prepared.sources, uv=uv)
    lines = requirements(choice, uv=uv and not prepared.sources.torch_root)
    quiet = () if uv else (*QUIET, "--only-binary=:all:", "--quiet")
    # uv takes a build by its word, so the version with the build in its name would be none for it.
    held: Sequence[str] = () if uv and not prepared.sources.torch_root else ("-c", constraints)
    say(f"installing {choice.pins[0].requirement}")
    _must(installer.install(*quiet, *options, *held, lines[0]), "torch")
    hooks.at("setup-torch")
    say(f"installing {', '.join(p.requirement for p in choice.pins[1:])}")
    _must(installer.install(*quiet, *options, *held, *lines), "the packages beside torch")
    hooks.at("setup-installed")


def _must(command: Sequence[str], what: str) -> None:
    done: subprocess.CompletedProcess[str] = run(command, limit=None)
    if done.returncode:
        raise RepairError(f"{what} could not be installed: {failure_of(done)}")


def _hold(prepared: Prepared, python: str, constraints: str) -> dict[str, str]:
    """The versions that were really installed, also written into the constraints file.

    Raises:
        RepairError: the torch that came is not the one that was chosen.
    """
    packages = interpreters.other(python, ["packages"]).packages
    versions = {canonical(d.name): d.version for d in packages.distributions}
    wanted, got = prepared.choice.version("torch"), versions.get("torch", "none")
    if got.partition("+")[0] != wanted.partition("+")[0]:
        raise RepairError(f"torch {got} was installed in the place of {wanted}")
    pins = [Pin(p.name, versions.get(p.name, p.version), p.why) for p in prepared.choice.pins]
    chosen = {p.name for p in pins}
    others = [Pin(n, v, "came along") for n, v in sorted(versions.items()) if n not in chosen and n not in _TOOLS]
    with open(constraints, "w", encoding="utf-8") as file:
        file.write(constraints_text([*pins, *others], prepared.choice.machine.text))
    return versions


_TOOLS = ("pip", "setuptools", "wheel", "uv")
