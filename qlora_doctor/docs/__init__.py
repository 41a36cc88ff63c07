"""The pages of the checks, made from their docstrings, and how generated files are kept fresh.

`explain`, the pages and the list all show the one docstring; a test fails when the pages are stale. `python -m
qlora_doctor.docs` writes all that is generated under docs/.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from qlora_doctor.fix import KINDS
from qlora_doctor.registry import Check

OURS = "qlora-doctor"
# Folders under docs/ in which nothing is written by hand.
GENERATED = ("checks", "symptoms", "pictures")
FAMILIES = {
    "QD0": "Versions",
    "QD1": "The load request",
    "QD2": "The Hub and the network",
    "QD3": "Model files and processor",
    "QD4": "GPU, CUDA and driver",
    "QD5": "Memory and disk",
    "QD6": "Adapters and training",
    "QD7": "Data",
    "QD9": "Live tests",
}
_JUDGES = {
    "facts": "the environment",
    "load": "each load of a model",
    "train": "each trainer",
    "requests": "the run as a whole",
}
# Where a check's facts are told when its docstring does not: by the module that it is in.
_INTERFACES = "[what changed in the libraries' interfaces](../tables.md#arguments-and-names), row by row"
_ESTIMATE = "[how memory is computed, and how far it is off](../memory.md)"
_SOURCES = {
    **dict.fromkeys(("arguments", "outdated", "names"), _INTERFACES),
    **dict.fromkeys(("memory", "memory_load", "planned", "room"), _ESTIMATE),
}
_FIXES = tuple(kind for name, kind in KINDS.items() if name != "advice")


def judges(check: Check) -> str:
    """What a check looks at, in words."""
    return "each script" if check.per_script and check.judges == "facts" else _JUDGES[check.judges]


def facts_line(check: Check) -> str:
    """One line of what is known of a check beside its docstring."""
    parts = [f"judges {judges(check)}", "can propose a fix" if can_fix(check) else "explains only"]
    if check.needs:
        parts.append(f"needs {', '.join(check.needs)}")
    if check.requires:
        parts.append(f"skipped where {', '.join(check.requires)} found something")
    parts.append(f"since {check.since}")
    if check.distribution not in ("", OURS):
        parts.append(f"from {check.distribution}")
    return "; ".join(parts)


def can_fix(check: Check) -> bool:
    """Whether the check's code, or a function of its package that it calls, makes a fix that can be applied.

    Read from the compiled code, so that it cannot say other than the check does.
    """
    top = check.function.__module__.partition(".")[0]
    return _makes_fix(check.function, top, set())


def _makes_fix(function: Any, top: str, seen: set[Any]) -> bool:
    if function in seen:
        return False
    seen.add(function)
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        if value in _FIXES:
            return True
        ours = isinstance(value, FunctionType) and value.__module__.partition(".")[0] == top
        if ours and _makes_fix(value, top, seen):
            return True
    return False


def _names(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def page(check: Check) -> str:
    """The page of one check, in Markdown."""
    rest = check.doc.partition("\n\n")[2]
    lines = [f"# {check.code} {check.name}", "", check.title, "", f"*{facts_line(check)}.*"]
    if rest:
        lines += ["", rest.rstrip()]
    module = check.function.__module__.rpartition(".")[2]
    if "Source" not in check.doc and module in _SOURCES:
        lines += ["", f"Source: {_SOURCES[module]}."]
    lines += ["", f"*In the code: `checks/{check.function.__module__.replace('.', '/')}.py`.*"]
    return "\n".join(lines) + "\n"


def index(checks: Sequence[Check]) -> str:
    """The table of all checks, in Markdown."""
    lines = ["# Checks", "", "Made from the checks' docstrings by `make docs`. Do not edit.", ""]
    lines += ["The versions, builds and drivers that they know by heart, with the sources: [tables](tables.md)."]
    families = dict.fromkeys([*FAMILIES, *(c.code[:3] for c in checks)])
    for family in families:
        rows = [c for c in checks if c.code.startswith(family)]
        if not rows:
            continue
        lines += [
            "",
            f"## {family}: {FAMILIES.get(family, 'other')}",
            "",
            "| code | name | what | fix |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| [{c.code}](checks/{c.code}.md) | `{c.name}` | {c.title.replace('|', chr(92) + '|')} | {'yes' if can_fix(c) else ''} |"
            for c in rows
        ]
    return "\n".join(lines) + "\n"


def pages(checks: Sequence[Check]) -> Mapping[str, str]:
    """Every generated page by its path under docs/."""
    ours = [c for c in checks if c.distribution == OURS]
    return {"checks.md": index(ours), **{f"checks/{c.code}.md": page(c) for c in ours}}


def stale(root: Path, wanted: Mapping[str, str]) -> list[str]:
    """The paths under `root` whose text is not the wanted one, and files in the folders of generated ones that are gone."""
    wrong = [
        p for p, text in wanted.items() if not (root / p).is_file() or (root / p).read_text(encoding="utf-8") != text
    ]
    folders = [f for f in GENERATED if any(p.startswith(f"{f}/") for p in wanted)]
    there = [f"{f}/{p.name}" for f in folders for p in sorted((root / f).glob("*")) if p.is_file()]
    return [*wrong, *(p for p in there if p not in wanted)]


def write(root: Path, wanted: Mapping[str, str]) -> list[str]:
    """Writes what is stale, removes what is gone, and returns the paths."""
    changed = stale(root, wanted)
    for path in changed:
        if path in wanted:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(wanted[path], encoding="utf-8", newline="\n")
        else:
            (root / path).unlink()
    return changed


_SHOWN = re.compile(r"(\$ cd (\S+); qlora-doctor (.*)\n)[^`]*(?=```)")


def with_reports(text: str, root: Path) -> str:
    """A document whose blocks `$ cd FOLDER; qlora-doctor ARGUMENTS` are followed by what that command prints."""

    def printed(match: re.Match[str]) -> str:
        command = [sys.executable, "-m", "qlora_doctor", *match[3].split()]
        english = {**os.environ, "QLORA_DOCTOR_LANG": "en"}
        done = subprocess.run(
            command, cwd=root / match[2], capture_output=True, encoding="utf-8", env=english, check=False
        )
        return match[1] + done.stdout + done.stderr

    return _SHOWN.sub(printed, text)
