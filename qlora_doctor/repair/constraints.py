"""The constraints file that an apply leaves in the project: the stack as it is now, with the reason for each version."""

from __future__ import annotations

import os

from qlora_doctor.facts import Distribution, Facts, Packages, Unknown, canonical
from qlora_doctor.fix import PipRequirement
from qlora_doctor.install.choose import Pin
from qlora_doctor.install.commands import constraints_text
from qlora_doctor.repair import files, pips
from qlora_doctor.repair.folders import OWN
from qlora_doctor.repair.plan import FileChange, Plan

NAME = "constraints.txt"
STACK = (
    "torch", "torchvision", "torchaudio", "triton", "transformers", "huggingface-hub", "tokenizers", "safetensors", "peft",
    "accelerate", "bitsandbytes", "trl", "datasets", "numpy",
)  # fmt: skip


def path_of(project: str) -> str:
    return os.path.join(project, OWN, NAME)


def changes(project: str, plan: Plan, facts: Facts) -> list[FileChange]:
    """The file as it should be after the package step of `plan`, from what is really installed in `facts`."""
    if not plan.pip or isinstance(facts.state("packages"), Unknown):
        return []
    path = path_of(project)
    before = files.read(path)
    after = constraints_text(pins(plan, facts.packages), "the packages after qlora-doctor fix").encode()
    return [] if before == after else [FileChange(path, before, after)]


def pins(plan: Plan, packages: Packages) -> list[Pin]:
    """The stack, and what the plan changed beside it, each with who asked for it."""
    asked = {
        pips.name_of(step.fix): f"{step.fix.requirement} for {', '.join(step.codes)}"
        for step in plan.steps
        if isinstance(step.fix, PipRequirement) and not step.fix.remove
    }
    moved = set(pips.changed(plan.before, packages)) if plan.before is not None else set()
    found = []
    for distribution in packages.distributions:
        name = canonical(distribution.name)
        if name not in (*STACK, *asked, *moved) or not _holdable(distribution):
            continue
        why = asked.get(name) or ("came along" if name in moved else "as it was")
        found.append(Pin(name, distribution.version, why))
    return sorted(found, key=lambda p: (p.name not in asked, p.name))


def _holdable(distribution: Distribution) -> bool:
    """Whether an index could give this version again; a pin on a local file would stop every later install."""
    return pips.version_of(distribution.version) is not None and not distribution.origin
