"""QD0: versions that do not go together. What is broken in the installation itself is in `environment`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from qlora_checks import beside_torch, environment, missing, stack
from qlora_checks.requirements import environment as marker_environment
from qlora_checks.requirements import needs, older, satisfies
from qlora_doctor.facts import Facts, Unknown, canonical
from qlora_doctor.finding import Finding, Severity
from qlora_doctor.fix import Advice, PipRequirement
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests


@check("QD002", needs=["packages"], wants=["installed"], since="0.1")
def version_below_the_floor_of_transformers(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """A package is older than the installed transformers accepts.

    transformers compares the versions of bitsandbytes, accelerate and peft when they are used, and then treats "too
    old" like "absent": the message says *install bitsandbytes* although it is installed. pip knows nothing of these
    floors, because they are in no package's requirements.

    It is an error where the run takes the path that is refused: a quantised load for bitsandbytes, a quantised load
    or the Trainer for accelerate. The peft floor is looked at by `add_adapter` and `load_adapter` of transformers
    alone; `get_peft_model` works below it (seen with peft 0.11.1 and transformers 5.23), so it is a warning.

    Fix: raise the package to the floor.

    Source: the constants in the installed transformers (`utils/import_utils.py`, `integrations/peft.py`), else the
    table, whose rows were read from the wheels.
    """
    transformers = stack.installed(facts, "transformers")
    for floor in stack.floors(facts).values():
        have = stack.installed(facts, floor.package)
        if floor.package == "torch" or have is None or not older(have, floor.version):
            continue
        if any(
            pair.row["left"] == floor.package and pair.row["right"] == "transformers" for pair in stack.bad_pairs(facts)
        ):
            continue
        wanted = stack.requirement(facts, floor.package)
        yield Finding(
            "transformers {transformers} does not work with {package} {version}: it asks for {floor} or newer"
            " {where}. Install {requirement}.",
            {
                "transformers": transformers,
                "package": floor.package,
                "version": have,
                "floor": floor.version,
                "where": _WHERE[floor.package],
                "requirement": wanted,
                "source": floor.source,
            },
            severity=stack.severity(requests, floor.breaks),
            fixes=(PipRequirement(wanted),),
        )


_WHERE = {
    "bitsandbytes": "in a 4-bit or 8-bit load, and takes an older one for absent",
    "accelerate": "in a quantised load and in the Trainer, and takes an older one for absent",
    "peft": "in add_adapter and load_adapter; get_peft_model alone works",
}


@check("QD003", needs=["packages"], wants=["installed"], since="0.1")
def transformers_that_refuses_to_be_imported(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """A library that transformers compares when it is imported is absent or outside its range.

    transformers looks at the versions of huggingface_hub, tokenizers, numpy, safetensors and some more in its own
    `__init__`, and ends the import with an ImportError. The usual causes: transformers 4 beside huggingface_hub 1 or
    newer, or an upgrade of one of them alone.

    An error where the run imports transformers in any way; a warning where only the environment is judged.

    Fix: install the range that transformers asks for.

    Source: `dependency_versions_table.py` of the installed transformers, else the table.
    """
    ranges, source = stack.import_ranges(facts)
    for name, specifier in ranges.items():
        if name in ("python", "accelerate"):
            continue
        have = stack.installed(facts, name)
        if have is None and name == "tokenizers":
            continue
        if have is not None and satisfies(have, specifier) is not False:
            continue
        yield Finding(
            "transformers {transformers} cannot be imported: it asks for {requirement}, and {found}. Install {requirement}.",
            {
                "transformers": stack.installed(facts, "transformers"),
                "requirement": name + specifier,
                "found": "it is not installed" if have is None else f"{have} is installed",
                "source": source,
            },
            severity=stack.severity(requests, ("import:transformers",)),
            fixes=(PipRequirement(name + specifier, applicability="safe" if have is None else "unsafe"),),
        )


@check("QD004", needs=["packages"], wants=["installed"], since="0.1")
def known_bad_pair(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """Two installed packages that are known not to work together, although both are allowed by their metadata.

    peft imports names that some transformers does not have; bitsandbytes below 0.45.1 imports a part of triton that
    triton 3.2 removed; the Trainer of an old transformers passes an argument that accelerate 1.0 dropped. Each row of
    the table says which path it breaks: the finding is an error where the run takes that path, and else a warning, or
    an info where the pair is harmless outside that path. A row that was not verified never makes an error.

    Fix: the nearest version that ends it.

    Source: the issue or pull request of the row, shown with --verbose.
    """
    for pair in stack.bad_pairs(facts):
        row = pair.row
        otherwise: Severity = row.get("otherwise", "warning")
        severity = stack.severity(requests, tuple(row["breaks"]), otherwise) if row["verified"] else otherwise
        wanted = _remedy(facts, row["install"])
        yield Finding(
            "{left} {left_version} and {right}: {effect}. Install {requirement}.",
            {
                "left": row["left"],
                "left_version": pair.left_version,
                "right": row["right"]
                + (" (not installed)" if pair.right_version is None else f" {pair.right_version}"),
                "effect": row["effect"],
                "requirement": wanted,
                "source": row["source"],
                "verified": row["verified"],
            },
            severity=severity,
            fixes=(PipRequirement(wanted, applicability="safe" if pair.right_version is None else "unsafe"),),
        )


def _remedy(facts: Facts, install: str) -> str:
    """What a row proposes; raised to the floor of the installed transformers where it only names a lower bound."""
    package, _, specifier = install.partition(">=")
    return install if "," in specifier else stack.requirement(facts, package, specifier)


@check("QD005", needs=["packages", "interpreter"], since="0.1")
def python_older_than_a_package_needs(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """An installed package asks for a newer (or older) Python than the one that runs it.

    pip would not have installed it; it happens after a folder was copied, with PYTHONPATH, with conda, or with
    `--ignore-requires-python`. The first import then ends in a SyntaxError or an ImportError far from the cause.

    An error where the run imports such a package of the stack, a warning where another one of the stack is concerned,
    an info for the rest.

    Fix: a new environment with the Python that is asked for; nothing that pip could install repairs it.

    Source: Requires-Python in the metadata of the installed packages.
    """
    python = facts.interpreter.version
    taken = stack.paths(requests)
    for specifier, names in _by_requires_python(facts).items():
        if satisfies(python, specifier) is not False:
            continue
        concerned = [n for n in names if n in stack.STACK]
        severity: Severity = "warning" if concerned else "info"
        if any(f"import:{n.replace('-', '_')}" in taken for n in names):
            severity = "error"
        yield Finding(
            "Python {python} does not suit {packages}: asked for is {specifier}. Make a new environment with such a Python.",
            {"python": python, "packages": concerned or names[:5], "specifier": specifier, "all": names},
            severity=severity,
            fixes=(Advice(f"make a new environment with Python {specifier}"),),
        )


def _by_requires_python(facts: Facts) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, distribution in stack.by_name(facts.packages).items():
        specifier = distribution.requires_python
        if not specifier and name == "transformers" and not stack.newer_than_table(facts, name):
            specifier = ">=" + stack.table_row(distribution.version).get("python", "3.7")
        if specifier:
            found.setdefault(specifier, []).append(name)
    return found


@check("QD006", needs=["packages"], wants=["installed"], since="0.1")
def torch_below_the_floor_of_transformers(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """torch is older than the installed transformers works with, so transformers behaves as if it were absent.

    From 4.52 on transformers compares the torch version, logs "Disabling PyTorch", and goes on: the import works, and
    every model class is a dummy that says *requires the PyTorch library but it was not found* although torch is
    there. The floors: 2.1 from transformers 4.52 on, 2.2 from 5.0, 2.4 from 5.1, 2.5 from 5.15, 2.6 from 5.20. Below
    4.52 nothing is compared.

    An error where a model is loaded or trained, else a warning.

    Fix: raise torch, or take an older transformers. Neither is done unasked: torch is gigabytes, and its CUDA build
    must suit the driver.

    Source: `is_torch_available` in the wheels of ten transformers versions.
    """
    floor, have = stack.floors(facts).get("torch"), stack.installed(facts, "torch")
    if floor is None or have is None or not older(have, floor.version):
        return
    yield Finding(
        "transformers {transformers} switches PyTorch off, because torch {torch} is older than {floor}: no model can be"
        " loaded. Install torch>={floor}, or an older transformers.",
        {
            "transformers": stack.installed(facts, "transformers"),
            "torch": have,
            "floor": floor.version,
            "source": floor.source,
        },
        severity=stack.severity(requests, floor.breaks),
        fixes=(PipRequirement(f"torch>={floor.version}"),),
    )


class _Conflict(NamedTuple):
    package: str
    needed: str
    specifier: str


@check("QD007", needs=["packages", "interpreter"], wants=["installed", "host"], since="0.1")
def requirement_that_is_not_met(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """A package's own metadata asks for something that is absent or of another version (what `pip check` finds).

    pip says this once, at the end of the install that caused it, and installs anyway. Whether it matters depends on
    the package: it is a warning where a package of the training stack asks, or one that the run imports, and one info
    for all others together. What a more precise check explains (a floor of transformers, a known-bad pair, a missing package of
    the stack) is not repeated here. Requirements of extras are not looked at.

    Fix: install what is asked for. Check with `qlora-doctor fix` first: two packages may ask for opposite things.

    Source: Requires-Dist in the metadata of the installed packages.
    """
    told = stack.told(facts)
    absent = {canonical(m.package) for m in missing.find(facts, requests)}
    taken = stack.paths(requests)
    others = []
    for conflict in _conflicts(facts):
        if frozenset((conflict.package, conflict.needed)) in told or conflict.needed in absent:
            continue
        have = stack.installed(facts, conflict.needed)
        wanted = conflict.needed + conflict.specifier
        found = "it is not installed" if have is None else f"{have} is installed"
        if conflict.package not in stack.STACK and f"import:{conflict.package.replace('-', '_')}" not in taken:
            others.append(f"{conflict.package} asks for {wanted} ({found})")
            continue
        safe = have is None and _small(conflict.needed)
        yield Finding(
            "{package} {version} asks for {requirement}, and {found}. Install {requirement}, or remove {package} where"
            " nothing uses it.",
            {
                "package": conflict.package,
                "version": stack.installed(facts, conflict.package),
                "requirement": wanted,
                "found": found,
            },
            fixes=(PipRequirement(wanted, applicability="safe" if safe else "unsafe"),),
        )
    if others:
        yield Finding(
            "{count} requirement(s) of packages that this run does not use are not met, such as: {examples}. `pip check`"
            " lists them all.",
            {"count": len(others), "examples": others[0], "all": others},
            severity="info",
            fixes=(Advice("look at what pip says", "pip check"),),
        )


def _small(name: str) -> bool:
    return name not in ("torch", "torchvision", "torchaudio", "transformers") and not name.startswith("nvidia-")


def _conflicts(facts: Facts) -> Iterator[_Conflict]:
    index = stack.by_name(facts.packages)
    here = marker_environment(facts)
    for name, distribution in index.items():
        wrong: dict[str, list[str]] = {}
        for need in needs(distribution.requires, here):
            other = index.get(need.name)
            if other is None or satisfies(other.version, need.specifier) is False:
                wrong.setdefault(need.name, []).append(need.specifier)
        for needed, specifiers in wrong.items():
            yield _Conflict(name, needed, ",".join(s for s in specifiers if s))


@check("QD008", needs=["packages"], since="0.1")
def newer_than_the_table(facts: Facts) -> Iterator[Finding]:
    """A package of the stack is newer than anything this doctor's tables describe.

    Nothing is wrong with it. What the package states in its own source (floors, arguments, architectures) is read
    from there and stays right; pairs that broke since then are not known. An info, so that silence about a new
    version is not taken for a promise.

    Fix: update qlora-doctor.

    Source: `known_to` in the table.
    """
    new = [f"{p} {stack.installed(facts, p)}" for p in stack.KNOWN if stack.newer_than_table(facts, p)]
    if new:
        read = not isinstance(facts.state("installed"), Unknown)
        yield Finding(
            "{packages}: newer than the tables of this doctor ({as_of}){judged}. Update qlora-doctor to have them judged fully.",
            {
                "packages": new,
                "as_of": stack.as_of(),
                "judged": "; what their own source states was used" if read else "",
            },
            severity="info",
        )


CHECKS: tuple[Check, ...] = (
    missing.missing_package,
    version_below_the_floor_of_transformers,
    transformers_that_refuses_to_be_imported,
    known_bad_pair,
    python_older_than_a_package_needs,
    torch_below_the_floor_of_transformers,
    requirement_that_is_not_met,
    newer_than_the_table,
    missing.import_that_is_not_installed,
    *environment.CHECKS,
    *beside_torch.CHECKS,
)
