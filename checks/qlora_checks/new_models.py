"""QD1: a model that came with a later transformers."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.common import at_least, installed_version, of_transformers
from qlora_checks.runs import family_of_load, script_of
from qlora_doctor.facts import Facts, Unknown
from qlora_doctor.families import BY_CLASS, Family
from qlora_doctor.finding import Finding
from qlora_doctor.fix import PipRequirement
from qlora_doctor.registry import Check, check
from qlora_doctor.request import LoadRequest


@check("QD108", needs=["packages"], wants=["installed"], since="0.1")
def model_newer_than_transformers(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A model whose architecture the installed transformers does not have yet.

    An Auto class looks the config's `model_type` up in its table: `ValueError: The checkpoint you are trying to load has
    model type 'qwen2_5_vl' but Transformers does not recognize this architecture` (4.44 and newer; before, a KeyError
    with that name). Importing a concrete class is an ImportError. Qwen2-VL came with 4.45, Qwen2.5-VL with 4.49, Qwen3
    with 4.51, Qwen3-VL with 4.57.

    Where the installed source was read, its own list of architectures decides, else the version.

    Judged for the families that the doctor knows, by the class that loads or the repository's name. Where the script
    imports that class, the import fails first, and QD123 says so.

    Fix: a transformers that has it.

    Source: the first release that lists each model type in `models/auto/configuration_auto.py`.
    """
    family = family_of_load(request)
    if family is None or not of_transformers(request) or _known(facts, family):
        return
    script = script_of(facts)
    if script is not None and any(item.name == request.class_name in BY_CLASS for item in script.imports):
        return
    version = installed_version(facts, "transformers")
    wanted = f"transformers>={family.minimum}"
    yield Finding(
        "{model}: {family} came with transformers {minimum}, and {transformers} is installed, which does not know the "
        "architecture ({model_type}): the load fails. Install {wanted}",
        evidence={
            "model": request.model_or,
            "family": family.title,
            "model_type": family.model_type,
            "minimum": family.minimum,
            "transformers": str(version),
            "wanted": wanted,
        },
        severity="error",
        site=request.site,
        fixes=(PipRequirement(wanted),),
    )


def _known(facts: Facts, family: Family) -> bool:
    installed = facts.state("installed")
    if not isinstance(installed, Unknown) and installed.model_types:
        return family.model_type in installed.model_types
    return at_least(installed_version(facts, "transformers"), family.minimum)


CHECKS: tuple[Check, ...] = (model_newer_than_transformers,)
