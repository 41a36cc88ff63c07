"""A set as facts, so that the checks can judge it before anything is downloaded."""

from __future__ import annotations

from qlora_doctor.facts import BnbBuild, Distribution, Facts, Native, Packages, Unknown, canonical
from qlora_doctor.install.choose import Choice, torch_build
from qlora_doctor.install.rules import libraries_of, transformers_row, triton_of
from qlora_doctor.tables.versions import lower_bound, older

NOT_YET = Unknown("known only after the installation", skipped=True)
_COMES_ALONG = ("tokenizers", "safetensors", "regex", "tqdm")


def facts_with(facts: Facts, choice: Choice) -> Facts:
    """The machine of `facts` with nothing but the set of `choice` installed. Pure."""
    build = choice.build
    if build is None:
        return facts
    versions = {p.name: p.version for p in choice.pins}
    versions |= triton_of(choice.machine, build)
    known = transformers_row(versions["transformers"])
    versions |= {name: lower_bound(known[name]) or "1.0" for name in _COMES_ALONG if name in known}
    # What pip takes: numpy 2, but for a torch that was built for numpy 1 and says nothing of it.
    versions["numpy"] = "1.26.4" if older(versions["torch"].partition("+")[0], "2.3") else "2.0.0"
    native = facts.state("native")
    parts: dict[str, object] = {
        "packages": Packages(tuple(Distribution(canonical(n), v) for n, v in versions.items())),
        "torch": torch_build(choice),
        "bitsandbytes": BnbBuild(versions["bitsandbytes"], libraries_of(versions["bitsandbytes"])),
        "installed": NOT_YET,
        "live": NOT_YET,
        "shadows": (),
    }
    if isinstance(native, Native):
        # The compiled files of the packages that are gone; libcuda and the system's libraries stay.
        parts["native"] = Native(native.libcuda, native.toolkits, native.nvcc, native.on_path, (), native.provided)
    return facts.but(**parts)
