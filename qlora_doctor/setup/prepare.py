"""What a setup would do: the machine, the set, the index's word on it, and the judgement of the checks. Nothing is made."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qlora_doctor.errors import UsageError
from qlora_doctor.examine import Question, examine
from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding
from qlora_doctor.gather import interpreters
from qlora_doctor.gather.what_if import imagined
from qlora_doctor.install.choose import Choice, newest
from qlora_doctor.install.machine import machine_of
from qlora_doctor.install.sources import Sources, read_sources
from qlora_doctor.install.world import facts_with
from qlora_doctor.judge import judge
from qlora_doctor.registry import installed_checks
from qlora_doctor.setup.prove import Proof, proved
from qlora_doctor.stage import stage
from qlora_doctor.tables.versions import leading

PARTS = ("interpreter", "host", "gpus", "driver", "environ", "native")
NO_GPU = "none"


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for. `gpu` is a card that is not here, or `none` for the set of the CPU.

    `python` is the interpreter that the environment is made from; "" for our own.
    """

    folder: str
    gpu: str = ""
    driver: str = ""
    python: str = ""
    extras: tuple[str, ...] = ()
    torch: str = ""
    offline: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """A setup that could be made. `python` makes the environment; `judged` is what the checks say of the set."""

    order: Order
    python: str
    facts: Facts
    choice: Choice
    sources: Sources
    proof: Proof
    judged: tuple[Finding, ...]


def prepare(order: Order) -> Prepared:
    """Looks at the machine and chooses; asks the index what it has, unless offline.

    Raises:
        UsageError: a card, driver or extra that is not known; or no set fits, with the reasons.
        ProbeError: `order.python` is no interpreter that can be asked.
    """
    python = interpreters.find_executable(order.python) if order.python else sys.executable
    facts = interpreters.other(python, PARTS) if order.python else interpreters.here(PARTS)
    if order.gpu.strip().lower() == NO_GPU:
        facts = facts.but(gpus=(), driver=None)
    else:
        facts = imagined(facts, order.gpu, order.driver)
    sources = read_sources(prefix=facts.interpreter.base_prefix)
    choice = newest(machine_of(facts), order.extras, order.torch)
    if choice.build is None:
        raise UsageError(f"nothing fits {choice.machine.text}: {choice.refusal}")
    proof = Proof("the index was not asked (--offline)")
    if not order.offline:
        uv = shutil.which("uv") or ""
        with stage("asking the package index"):
            choice, proof = proved(choice, python, sources, uv, lambda newer: _older(newer, order))
    return Prepared(order, python, facts, choice, sources, proof, _judged(facts, choice))


def _judged(facts: Facts, choice: Choice) -> tuple[Finding, ...]:
    """What the checks of versions and of the GPU say of the set on this machine, above an info."""
    checks = [c for c in installed_checks().checks if c.code.startswith(("QD0", "QD4"))]
    return tuple(f for f in judge(checks, facts_with(facts, choice)).findings if f.severity != "info")


def _older(choice: Choice, order: Order) -> Choice | None:
    """The set with the next older torch, where none was asked for by name."""
    if choice.build is None or order.torch:
        return None
    major, number = leading(choice.build.torch)[:2]
    for minor in range(number - 1, 0, -1):
        found = newest(choice.machine, order.extras, f"{major}.{minor}")
        if found.build is not None:
            return found
    return None


def refuse_taken(folder: str, marker: str) -> None:
    """Raises UsageError where the folder holds something that a setup did not leave there unfinished."""
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise UsageError(f"{folder} is a file; name a folder that is to be made")
    if os.path.isdir(folder) and os.listdir(folder) and not os.path.exists(os.path.join(folder, marker)):
        raise UsageError(
            f"{folder} is not empty, and nothing is overwritten; name a new folder (or `qlora-doctor fix --python {folder}` "
            "to repair what is there)"
        )


def proved_live(python: str, progress: Callable[[str, str], None] | None = None) -> Sequence[Finding]:
    """What the checks find in a finished environment when everything is imported and tried, above an info."""
    examination = examine(Question(python=python, live=True, offline=True), progress)
    return [f for f in examination.verdict.findings if f.severity != "info"]
