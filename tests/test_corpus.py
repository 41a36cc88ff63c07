"""The corpus: scripts and notebooks in the styles of the wild, each with the faults that it has and the traps that it sets.

`corpus/labels.toml` says what must be found on which machine, and what must not. Any other error or warning fails.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from qlora_checks import CHECKS
from qlora_doctor.examine import read_cases
from qlora_doctor.facts import Facts, TorchBuild
from qlora_doctor.finding import Finding
from qlora_doctor.judge import Case, judge
from qlora_doctor.source import Site
from qlora_doctor.testing import T4
from qlora_doctor.wire import from_data

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "corpus"
MACHINES = ("current", "t4", "cpu", "old")
SHOWN = ("error", "warning")
# What fits into memory is judged elsewhere; most of these scripts would need a larger card than the one here.
NOT_HERE = ("QD5",)
# They need an old bitsandbytes on a machine without a GPU, and a launcher with several GPUs.
NO_MACHINE = {"QD626", "QD614", "QD615"}


@dataclass(frozen=True, slots=True)
class Label:
    """One fault: `QD117 error all @ model.half()`. The text stands on the line of the finding, and once in the file.

    `optional`: it may be found (written with a `?` behind the code), because it follows from another fault.
    """

    code: str
    severity: str
    machines: tuple[str, ...]
    text: str
    optional: bool

    @classmethod
    def read(cls, line: str) -> Label:
        head, _, text = line.partition(" @ ")
        code, severity, machines = head.split()
        on = MACHINES if machines == "all" else tuple(machines.split(","))
        assert set(on) <= set(MACHINES), line
        return cls(code.rstrip("?"), severity, on, text, code.endswith("?"))


@cache
def labels() -> list[dict[str, Any]]:
    return list(tomllib.loads((FOLDER / "labels.toml").read_text(encoding="utf-8"))["script"])


@cache
def machine(name: str) -> Facts:
    if name in ("current", "old"):
        return from_data(Facts, json.loads((FOLDER / "facts" / f"{name}.json").read_text(encoding="utf-8")))
    facts = machine("current")
    if name == "t4":
        return facts.but(gpus=(T4,))
    return facts.but(gpus=(), driver=None, torch=TorchBuild("2.13.0+cpu"))


@cache
def case_of(file: str) -> Case:
    (case,) = read_cases([str(FOLDER / "scripts" / file)])
    return replace(case, script=replace(case.script, path=file)) if case.script else case


@cache
def found(file: str, on: str) -> tuple[Finding, ...]:
    verdict = judge(CHECKS, machine(on), (case_of(file),))
    crashed = [f"{o.code}: {o.reason}" for o in verdict.outcomes if o.outcome == "crashed"]
    assert not crashed, crashed
    return verdict.findings


@cache
def lines_of(file: str) -> dict[tuple[int | None, int], str]:
    """The lines of a script, or of each cell, by cell and number."""
    path = FOLDER / "scripts" / file
    if path.suffix != ".ipynb":
        encoding = "gbk" if b"coding: gbk" in path.read_bytes()[:200] else "utf-8"
        return {(None, n): line for n, line in enumerate(path.read_text(encoding=encoding).splitlines(), 1)}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = [(i, c["source"] if isinstance(c["source"], str) else "".join(c["source"])) for i, c in enumerate(cells)]
    return {(i, n): line for i, text in texts for n, line in enumerate(text.splitlines(), 1)}


def place(file: str, text: str) -> tuple[int | None, int]:
    places = [at for at, line in lines_of(file).items() if text in line]
    assert len(places) == 1, f"{text!r} stands {len(places)} times in {file}"
    return places[0]


def at(site: Site | None) -> tuple[int | None, int] | None:
    return None if site is None else (site.cell, site.line)


def missing(file: str, on: str, wanted: list[Label]) -> Iterator[str]:
    findings = {(f.code, f.severity, at(f.site)) for f in found(file, on)}
    for label in wanted:
        if on in label.machines and not label.optional:
            key = (label.code, label.severity, place(file, label.text))
            if key not in findings:
                same = [(f.severity, at(f.site)) for f in found(file, on) if f.code == label.code]
                yield f"missed on {on}: {label.code} {label.severity} at {key[2]} {label.text!r} (that code: {same})"


def false_alarms(file: str, on: str, wanted: list[Label]) -> Iterator[str]:
    allowed = {(w.code, w.severity, place(file, w.text)) for w in wanted if on in w.machines}
    for f in found(file, on):
        if f.severity in SHOWN and not f.code.startswith(NOT_HERE) and (f.code, f.severity, at(f.site)) not in allowed:
            yield f"false alarm on {on}: {f.severity} {f.code} at {at(f.site)}: {f.text[:200]}"


@pytest.mark.parametrize("label", labels(), ids=lambda label: label["file"])
def test_finds_the_labelled_faults_and_no_others(label: dict[str, Any]) -> None:
    wanted = [Label.read(line) for line in label.get("find", [])]
    problems: list[str] = []
    for on in label.get("machines", MACHINES):
        problems += [*missing(label["file"], on, wanted), *false_alarms(label["file"], on, wanted)]
        for trap in label.get("never", []):
            code = trap.partition(" ")[0]
            problems += [
                f"the trap {trap!r} caught {f.text[:160]!r} on {on}" for f in found(label["file"], on) if f.code == code
            ]
    assert not problems, "\n".join(problems)


def test_every_script_of_the_corpus_is_labelled() -> None:
    files = {p.name for p in (FOLDER / "scripts").iterdir() if p.is_file()}
    named = [label["file"] for label in labels()]
    assert len(named) == len(set(named)) >= 60
    assert files - {"notes.txt"} == set(named)


def test_every_check_that_a_script_alone_can_raise_is_met_by_the_corpus() -> None:
    met = {Label.read(line).code for label in labels() for line in label.get("find", [])}
    families = ("QD1", "QD3", "QD6", "QD7")
    from_scripts = {
        c.code for c in CHECKS if c.code.startswith(families) and not {"model", "data", "hub", "saved"} & set(c.needs)
    }
    assert from_scripts - met == NO_MACHINE
