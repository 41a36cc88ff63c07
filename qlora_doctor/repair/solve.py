"""The solver's verdict: what an install would do, asked of pip or uv, before anything is done."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from qlora_doctor.errors import RepairError
from qlora_doctor.facts import Distribution, Facts, Packages, Unknown, canonical
from qlora_doctor.fix import PipRequirement
from qlora_doctor.install.sources import read_sources
from qlora_doctor.repair import pips
from qlora_doctor.repair.pip import (
    QUIET,
    Installer,
    build_options,
    constraint_file,
    failure_of,
    installer_of,
    pin_lines,
    run,
)
from qlora_doctor.repair.plan import Solution
from qlora_doctor.repair.sizes import sizes_of


def solver_for(facts: Facts, python: str) -> Callable[[Sequence[PipRequirement]], Solution]:
    """A solver that asks the installer of `python` what an install would do, without doing it."""
    known: dict[tuple[PipRequirement, ...], Solution] = {}

    def solve(fixes: Sequence[PipRequirement]) -> Solution:
        key = tuple(fixes)
        if key not in known:
            known[key] = _solve(facts, python, key)
        return known[key]

    return solve


def _solve(facts: Facts, python: str, fixes: tuple[PipRequirement, ...]) -> Solution:
    if isinstance(facts.state("packages"), Unknown):
        return Solution(failure=f"the installed packages are not known: {facts.state('packages').reason}")
    interpreter = facts.state("interpreter")
    if not isinstance(interpreter, Unknown) and interpreter.externally_managed and not interpreter.venv:
        return Solution(failure=f"{python} belongs to the system (PEP 668); make a virtual environment for the run")
    try:
        installer = installer_of(python)
    except RepairError as error:
        return Solution(failure=str(error))
    wanted = [f.requirement for f in fixes if not f.remove]
    removed = {pips.name_of(f) for f in fixes if f.remove}
    kept = tuple(d for d in facts.packages.distributions if canonical(d.name) not in removed)
    base = dataclasses.replace(facts.packages, distributions=kept)
    if not wanted:
        return Solution(packages=base)
    failure = ""
    options, wanted = build_options(wanted, installer.kind == "uv", read_sources())
    for pins in _pins(base, fixes):
        with constraint_file(pins) as constraints:
            solution = _ask(installer, [*constraints, *options, *wanted], base)
        if solution.packages is not None:
            return solution
        failure = failure or solution.failure
        if _no_index(failure):
            break
    return Solution(failure=failure)


def _pins(packages: Packages, fixes: Sequence[PipRequirement]) -> Iterator[list[str]]:
    """First everything else stays as it is; failing that, only what no index gives back, and torch."""
    asked = {pips.name_of(f) for f in fixes}
    others = [d for d in packages.distributions if canonical(d.name) not in asked]
    torch_asked = any(pips.torch_family(name) for name in asked)
    rigid = [d for d in others if pips.irreplaceable(d) or (pips.torch_family(d.name) and not torch_asked)]
    if not torch_asked:
        yield pin_lines(others)
    yield pin_lines(rigid)


def _ask(installer: Installer, arguments: Sequence[str], base: Packages) -> Solution:
    if installer.kind == "uv":
        done = run(installer.install("--dry-run", *arguments))
        return Solution(failure=failure_of(done)) if done.returncode else _from_uv(done.stderr + done.stdout, base)
    done = run(installer.install("--dry-run", "--report", "-", "--quiet", "--retries", "1", *QUIET, *arguments))
    if done.returncode:
        return Solution(failure=failure_of(done))
    found = reported(done.stdout)
    if found is None:
        return Solution(
            failure="pip printed no report; it may be older than 22.2: update it (python -m pip install -U pip)"
        )
    return Solution(packages=with_installs(base, found.new), sizes=found.sizes())


class Reported(NamedTuple):
    """What pip's report says would be installed, and where each file lies."""

    new: tuple[Distribution, ...]
    urls: Mapping[str, str]

    def sizes(self) -> dict[str, int | None]:
        """Bytes to download for each canonical name; None where its server does not say."""
        return sizes_of(self.urls)


def reported(text: str) -> Reported | None:
    """The report of `pip install --report -`; None where there is none in the text."""
    try:
        installs: Sequence[Mapping[str, Any]] = json.loads(text[text.index("{") :])["install"]
    except (ValueError, KeyError, TypeError):
        return None
    new = []
    urls = {}
    for item in installs:
        metadata = item["metadata"]
        name = str(metadata["name"])
        requires = tuple(str(r) for r in metadata.get("requires_dist", ()))
        python = str(metadata.get("requires_python", ""))
        new.append(Distribution(name, str(metadata["version"]), requires=requires, requires_python=python))
        urls[canonical(name)] = str(item.get("download_info", {}).get("url", ""))
    return Reported(tuple(new), urls)


def _from_uv(text: str, base: Packages) -> Solution:
    new, gone = [], set()
    for line in text.splitlines():
        sign, _, rest = line.strip().partition(" ")
        name, _, version = rest.strip().partition("==")
        if sign == "+" and version:
            new.append(Distribution(name, version.split()[0]))
        elif sign == "-":
            gone.add(canonical(name))
    kept = tuple(d for d in base.distributions if canonical(d.name) not in gone)
    packages = with_installs(dataclasses.replace(base, distributions=kept), new)
    return Solution(packages=packages, sizes={canonical(d.name): None for d in new})


def with_installs(base: Packages, new: Sequence[Distribution]) -> Packages:
    """A set of packages with some put in the place of their older versions."""
    names = {canonical(d.name) for d in new}
    old = {canonical(d.name): d for d in base.distributions}
    placed = [
        dataclasses.replace(d, location=old[canonical(d.name)].location if canonical(d.name) in old else "")
        for d in new
    ]
    kept = tuple(d for d in base.distributions if canonical(d.name) not in names)
    duplicates = {k: v for k, v in base.duplicates.items() if k not in names}
    return dataclasses.replace(base, distributions=(*kept, *placed), duplicates=duplicates)


def _no_index(failure: str) -> bool:
    return "index" in failure and "reached" in failure
