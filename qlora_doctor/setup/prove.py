"""Whether an index really has a set: pip's or uv's own dry run, and an older torch where the newest is not there."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

from qlora_doctor.facts import canonical
from qlora_doctor.install.builds import Build
from qlora_doctor.install.choose import Choice, Pin
from qlora_doctor.install.commands import index_options, requirements
from qlora_doctor.install.sources import OWN_VARIABLE, Sources
from qlora_doctor.repair.pip import QUIET, Installer, failure_of, run
from qlora_doctor.repair.solve import reported

TRIES = 5
"""Torch versions that are tried when the newest ones are not on the index."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What the dry run of pip or uv (`tool`) said. `failure` is why there is none.

    `sizes` are the bytes to download, None unknown; `notes` what was tried before and is not on the index.
    """

    failure: str = ""
    sizes: dict[str, int | None] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    tool: str = ""
    notes: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        return not self.failure


def installers(python: str, uv: str) -> list[Installer]:
    """How the new environment can be filled: by uv where it is there, and by pip where the interpreter brings it."""
    found = [Installer("uv", (uv, "pip"), python)] if uv else []
    if not run([python, "-c", "import ensurepip, pip, venv"], limit=30).returncode:
        found.append(Installer("pip", (python, "-m", "pip"), python))
    return found


def proved(
    choice: Choice, python: str, sources: Sources, uv: str, older: Callable[[Choice], Choice | None]
) -> tuple[Choice, Proof]:
    """The newest set that an index really has, with its dry run; else the first choice, and why there is none.

    `older` gives the set with the next older torch, which is tried where the newest is not on the index.
    """
    failures = []
    for installer in installers(python, uv):
        settled, proof = _first_that_is_there(choice, installer, sources, older)
        if proof.done:
            return settled, proof
        failures.append(f"{installer.kind}: {proof.failure}")
    none = f"{python} has no pip and no venv of its own, and uv is not on PATH; install one of them"
    return choice, Proof("; ".join(failures) or none)


def _first_that_is_there(
    choice: Choice, installer: Installer, sources: Sources, older: Callable[[Choice], Choice | None]
) -> tuple[Choice, Proof]:
    """The choice, or one with an older torch, that this installer finds; the proof notes what it did not."""
    failure = ""
    notes: list[str] = []
    for _ in range(TRIES):
        settled, missing = _settle(choice, installer, sources)
        proof = Proof(missing) if missing else dry_run(settled, installer, sources)
        failure = failure or proof.failure
        if proof.done:
            return settled, replace(proof, tool=installer.kind, notes=tuple(notes))
        older_one = None if "reached" in proof.failure else older(choice)
        if older_one is None:
            return settled, Proof(failure)
        notes.append(f"{choice.build.text if choice.build else ''}: {proof.failure}")
        choice = older_one
    return choice, Proof(failure)


def _settle(choice: Choice, installer: Installer, sources: Sources) -> tuple[Choice, str]:
    """The choice with the newest patch of its torch that the index has in that very build; or why it has none.

    Only uv is told of a build by a word (`--torch-backend`); pip must find the version with the build in its name.
    """
    build = choice.build
    if installer.kind == "uv" or build is None:
        return choice, ""
    have, failure = listed(installer, tuple(index_options(choice, sources)))
    if failure:
        return choice, failure
    for version in have:
        public, _, local = version.partition("+")
        if not public.startswith(f"{build.torch}.") or not re.fullmatch(r"[\d.]+(\.post\d+)?", public):
            continue
        if local == build.label or (build.plain and not local):
            pins = tuple(Pin(p.name, version, p.why, p.size) if p.name == "torch" else p for p in choice.pins)
            return replace(choice, pins=pins), ""
    missing = f"the configured index has no torch {build.torch} in {_variant(build)}"
    return choice, missing if build.plain or sources.torch_root else f"{missing}; {HOW_TO_NAME_AN_INDEX}"


HOW_TO_NAME_AN_INDEX = (
    f"set {OWN_VARIABLE} to PyTorch's own wheel index (its Get Started page names it) or to a mirror of it, or install uv,"
    " which knows it"
)


@cache
def listed(installer: Installer, options: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """The versions of torch that pip finds, newest first; or why it could not say."""
    done = run([*installer.head, "index", "versions", "torch", *QUIET, *options], limit=60)
    if done.returncode:
        return (), f"pip could not list the versions of torch: {failure_of(done)}"
    match = re.search(r"Available versions:(.*)", done.stdout)
    return tuple(v.strip() for v in match[1].split(",")) if match else (), ""


def _variant(build: Build) -> str:
    return f"the {build.label} build" if build.label else "the plain build"


def dry_run(choice: Choice, installer: Installer, sources: Sources) -> Proof:
    """What the installer would do with the set in an empty environment, and how much it would download."""
    uv = installer.kind == "uv"
    options = index_options(choice, sources, uv=uv)
    wanted = requirements(choice, uv=uv and not sources.torch_root)
    if uv:
        with tempfile.TemporaryDirectory(prefix="qlora-doctor-") as empty:
            where = ["--dry-run", "--only-binary=:all:", "--target", os.path.join(empty, "new")]
            done = run(installer.install(*where, *options, *wanted))
        if done.returncode:
            return Proof(failure_of(done))
        new = dict(re.findall(r"^ \+ ([\w.-]+)==(\S+)", done.stderr + done.stdout, re.MULTILINE))
        return Proof(_another_torch(choice, new), {canonical(n): None for n in new}, new)
    arguments = ["--dry-run", "--ignore-installed", "--only-binary=:all:", "--report", "-", "--quiet", "--retries", "1"]
    done = run([*installer.head, "install", *arguments, *QUIET, *options, *wanted])
    if done.returncode:
        return Proof(failure_of(done))
    found = reported(done.stdout)
    if found is None:
        return Proof("pip printed no report; it may be older than 22.2")
    wrong = _another_torch(choice, {canonical(d.name): d.version for d in found.new})
    return Proof(wrong) if wrong else Proof("", found.sizes(), {canonical(d.name): d.version for d in found.new})


def _another_torch(choice: Choice, versions: dict[str, str]) -> str:
    """Why what pip would bring is not the build that was chosen, or ""."""
    brought = versions.get("torch", "")
    if brought.partition("+")[0] != choice.version("torch").partition("+")[0] or (
        choice.build is not None and not choice.build.plain and brought != choice.version("torch")
    ):
        return f"pip would bring torch {brought or 'nothing'} in the place of {choice.version('torch')}"
    if choice.build is not None and choice.build.kind == "cpu" and any(n.startswith("nvidia-") for n in versions):
        return "pip would bring the CUDA libraries with it"
    return ""
