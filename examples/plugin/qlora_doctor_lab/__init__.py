"""The rules of one lab's GPU cluster, as checks of QLoRA Doctor: copy this folder and write your own."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding
from qlora_doctor.fix import PipRequirement, TrainSetting
from qlora_doctor.registry import check
from qlora_doctor.request import TrainRequest

KEPT = 2
TOOLS = "labtools"


@check("LAB001", since="1.0")
def checkpoints_without_a_limit(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """A training run that keeps every checkpoint on the lab's shared disk.

    The disk is shared by forty people, and a run of a thousand steps that saves every ten leaves a hundred
    checkpoints. Silent where `save_total_limit` is given, whatever it is, and where nothing is saved.

    Fix: `save_total_limit=2`, which keeps the last two.

    Source: the lab's rules, section 3.
    """
    if request.settings is None or request.setting("save_strategy", "steps") == "no":
        return
    if request.setting("save_total_limit") is None:
        yield Finding(
            "every checkpoint is kept, on a disk that is shared; pass save_total_limit={kept}",
            {"kept": KEPT},
            severity="warning",
            site=request.settings.site,
            fixes=(TrainSetting("save_total_limit", KEPT, site=request.settings.site),),
        )


@check("LAB002", needs=["packages"], since="1.0")
def lab_tools_that_cannot_resume(facts: Facts) -> Iterator[Finding]:
    """A labtools older than 2.0, whose jobs cannot be resumed after an eviction.

    Silent where labtools is not installed: outside the cluster nobody needs it.

    Fix: `labtools>=2.0`.

    Source: the release notes of labtools 2.0.
    """
    version = facts.version(TOOLS)
    if version is not None and version.major < 2:
        yield Finding(
            "labtools {version} cannot resume an evicted job; install labtools>=2.0",
            {"version": str(version)},
            severity="warning",
            fixes=(PipRequirement(f"{TOOLS}>=2.0", applicability="unsafe"),),
        )


CHECKS = (checkpoints_without_a_limit, lab_tools_that_cannot_resume)
