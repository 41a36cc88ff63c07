"""Packages: one install in the interpreter that is judged, and the way back."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from qlora_doctor.errors import RepairError
from qlora_doctor.facts import Distribution, Packages, canonical
from qlora_doctor.fix import PipRequirement
from qlora_doctor.install.commands import UNKNOWN_INDEX
from qlora_doctor.install.sources import Sources, read_sources
from qlora_doctor.repair import hooks, pips

SOLVE_LIMIT = 300.0
"""Seconds that the solver may take: it may have to download metadata of large wheels."""


@dataclass(frozen=True, slots=True)
class Installer:
    """How packages of one interpreter are changed. `head` is `python -m pip`, or `uv pip` with `--python`."""

    kind: str
    head: tuple[str, ...]
    python: str

    def install(self, *arguments: str) -> list[str]:
        """The command of one install."""
        return self._command("install", *arguments)

    def uninstall(self, names: Sequence[str]) -> list[str]:
        """The command that takes packages out."""
        yes = ["-y"] if self.kind == "pip" else []
        return self._command("uninstall", *yes, *names)

    def _command(self, verb: str, *arguments: str) -> list[str]:
        where = ["--python", self.python] if self.kind == "uv" else []
        return [*self.head, verb, *where, *arguments]


def installer_of(python: str) -> Installer:
    """The interpreter's own pip; `uv pip` where it has none and uv is on PATH.

    Raises:
        RepairError: neither is there; says what to do.
    """
    try:
        probe = subprocess.run([python, "-c", "import pip"], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RepairError(f"{python} cannot be run: {error}") from None
    if probe.returncode == 0:
        return Installer("pip", (python, "-m", "pip"), python)
    uv = shutil.which("uv")
    if uv is not None:
        return Installer("uv", (uv, "pip"), python)
    raise RepairError(f"{python} has no pip, and uv is not on PATH; give it one with: {python} -m ensurepip --upgrade")


def pin_lines(distributions: Sequence[Distribution]) -> list[str]:
    """`name==version` for each, as a constraint file takes them."""
    return [f"{d.name}=={d.version}" for d in distributions if pips.version_of(d.version) is not None]


@contextmanager
def constraint_file(pins: Sequence[str]) -> Iterator[list[str]]:
    """The arguments that hold an install to `pins`."""
    if not pins:
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="qlora-doctor-") as folder:
        path = os.path.join(folder, "constraints.txt")
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join([*pins, ""]))
        yield ["-c", path]


def build_options(wanted: Sequence[str], uv: bool, sources: Sources, unknown: str = "") -> tuple[list[str], list[str]]:
    """The options that lead to the torch build which a requirement such as `torch==2.14.1+cu126` names, and the
    requirements as this installer takes them.

    `unknown` stands for PyTorch's wheel index where nothing configures one; without it pip's own indexes must have the build.
    """
    label = next((w.partition("+")[2] for w in wanted if w.startswith("torch==") and "+" in w), "")
    if not label:
        return [], list(wanted)
    if sources.torch_root:
        root = f"{sources.torch_root}/{label}"
        return (
            ["--index", root, "--index-strategy", "unsafe-best-match"] if uv else ["--extra-index-url", root]
        ), list(wanted)
    if uv:
        return [f"--torch-backend={label}"], [w.partition("+")[0] if w.startswith("torch==") else w for w in wanted]
    return (["--extra-index-url", f"{unknown}/{label}"] if unknown else []), list(wanted)


QUIET = ("--disable-pip-version-check", "--no-input")


def install(installer: Installer, fixes: Sequence[PipRequirement], before: Packages, solved: Packages) -> None:
    """Makes the package changes of a plan: what goes first, then one install of all requirements, to the letter solved.

    Raises:
        RepairError: the installer failed; its last words are in the message.
    """
    gone = [f.requirement for f in fixes if f.remove]
    if gone:
        _must(installer.uninstall(gone), "uninstalling")
    hooks.at("packages-removed")
    wanted = [f.requirement for f in fixes if not f.remove]
    if wanted:
        # What the user saw is what is installed, whatever the index has learned in between.
        uv = installer.kind == "uv"
        options, wanted = build_options(wanted, uv, read_sources())
        with constraint_file(pin_lines(solved.distributions)) as constraints:
            quiet = () if uv else QUIET
            _must(installer.install(*quiet, *constraints, *options, *wanted), "installing")
    hooks.at("packages-installed")


def shown_commands(python: str, fixes: Sequence[PipRequirement], kind: str = "pip") -> list[list[str]]:
    """The commands of a plan as a person would type them."""
    gone = [f.requirement for f in fixes if f.remove]
    wanted = [f.requirement for f in fixes if not f.remove]
    head = [python, "-m", "pip"]
    options, wanted = build_options(wanted, kind == "uv", read_sources(), UNKNOWN_INDEX)
    wanted = [*options, *wanted]
    if kind == "uv":
        return [
            *([["uv", "pip", "uninstall", "--python", python, *gone]] if gone else []),
            *([["uv", "pip", "install", "--python", python, *wanted]] if wanted else []),
        ]
    return [
        *([[*head, "uninstall", "-y", *gone]] if gone else []),
        *([[*head, "install", *wanted]] if wanted else []),
    ]


def restore(
    installer: Installer, before: Mapping[str, str], touched: Sequence[str], now: Packages, force: bool
) -> list[list[str]]:
    """Brings the touched packages back to what they were; the commands that ran.

    `before` maps canonical names to `name==version`. `force`: install again even what has the right version, for an
    install that was cut off may have left half of it.

    Raises:
        RepairError: the installer failed.
    """
    have = {canonical(d.name): d for d in reversed(now.distributions)}
    gone = [have[n].name for n in touched if n in have and n not in before]
    back = [
        before[n]
        for n in touched
        if n in before and (force or n not in have or have[n].version != before[n].partition("==")[2])
    ]
    commands = []
    if back:
        quiet = QUIET if installer.kind == "pip" else ()
        again = ["--force-reinstall"] if force and installer.kind == "pip" else ["--reinstall"] if force else []
        commands.append(installer.install("--no-deps", *again, *quiet, *back))
    if gone:
        commands.append(installer.uninstall(gone))
    for command in commands:
        _must(command, "restoring")
        hooks.at("packages-restored")
    return commands


def run_tool(command: Sequence[str], folder: str) -> None:
    """Runs uv, poetry or pdm in the project's folder. Raises RepairError where it fails."""
    done = run(command, limit=None, folder=folder)
    if done.returncode:
        raise RepairError(f"`{' '.join(command)}` failed: {failure_of(done)}")


def _must(command: Sequence[str], what: str) -> None:
    done = run(command, limit=None)
    if done.returncode:
        raise RepairError(f"{what} failed: {failure_of(done)}")


def run(
    command: Sequence[str], limit: float | None = SOLVE_LIMIT, folder: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PIP_NO_COLOR": "1", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    try:
        return subprocess.run(
            list(command),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=limit,
            env=environment,
            cwd=folder,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(list(command), 1, "", f"gave no answer in {limit:.0f} s")
    except OSError as error:
        return subprocess.CompletedProcess(list(command), 1, "", str(error))


_UNREACHABLE = (
    "Failed to establish a new connection",
    "Connection refused",
    "Name or service not known",
    "Max retries",
    "ConnectionError",
    "Could not connect",
    "getaddrinfo",
    "Temporary failure in name resolution",
    "ConnectTimeout",
    "ReadTimeout",
    "error sending request",
    "Network is unreachable",
    "ProxyError",
    "SSLError",
)


def failure_of(done: subprocess.CompletedProcess[str]) -> str:
    """The installer's error in one or two lines, without passwords."""
    text = without_secrets(done.stderr or done.stdout)
    if any(word in text for word in _UNREACHABLE):
        return "the package index cannot be reached; check the network, the proxy, or PIP_INDEX_URL"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith(("ERROR", "error", "×"))]
    return "; ".join(dict.fromkeys(errors))[:800] or (lines[-1] if lines else f"exit code {done.returncode}")


def without_secrets(text: str) -> str:
    """URLs without the name and password in them."""
    import re

    return re.sub(r"(\w+://)[^/\s@]+@", r"\1***@", text)
