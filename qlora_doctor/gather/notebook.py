"""Notebooks: code cells as one script, each place remembered by its cell."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_doctor.gather import script
from qlora_doctor.gather.source_text import MAX_BYTES, Text, Unreadable, decode, read_bytes
from qlora_doctor.gather.static.sites import Part, Places
from qlora_doctor.request import Requests
from qlora_doctor.source import Script

_MAX_NOTEBOOK = 64 * 2**20
_PYTHON_CELLS = ("time", "capture", "timeit", "python", "python3", "prun", "debug", "memit")
_MAGIC = re.compile(r"^(?P<indent>\s*)(?:[\w.,\[\] ]+=\s*)?(?P<sign>[%!?])(?P<rest>.*)$")
_AUTOMAGIC = re.compile(r"^(pip3?|conda|mamba|uv|cd|ls|mkdir|cat|cp|mv|rm|pwd|git|wget|apt)\b(?!\s*[=(.])")
_ENV = re.compile(r"^(?:set_)?env\s+(\w+)\s*[= ]\s*(.*)$")


def read_notebook(path: Path, data: bytes | None = None) -> tuple[Script, Requests]:
    """What the code cells of a notebook say, from the first to the last, as if they were run in this order."""
    failed = Script(str(path), kind="notebook")
    try:
        data = read_bytes(path, _MAX_NOTEBOOK) if data is None else data
        cells = _cells(data)
    except Unreadable as error:
        return script._with_problem(failed, str(error), 0), Requests()
    sha256 = script._sha256(data)
    source: list[str] = []
    parts: list[Part] = []
    ignores: dict[str, tuple[str, ...]] = {}
    problem, line = "", 1
    for index, text in cells:
        python, trouble = _python(text)
        if trouble and not problem:
            problem = f"cell {index + 1}: {trouble}"
        parts.append(Part(line, Text(text), index))
        source.append(python)
        line += len(parts[-1].text.lines)
        ignores.update({f"{index}:{at}": codes for at, codes in script.ignores_in(text).items()})
    joined = "\n".join(source)
    if len(joined) > MAX_BYTES:
        return script._with_problem(failed, "its code cells hold more text than a training script does", 0), Requests()
    tree, trouble, _ = script.parse(joined)
    if tree is None:
        return script._with_problem(failed, trouble, 0), Requests()
    places = Places(str(path), sha256, parts or [Part(1, Text(""), 0)])
    words = "\n".join(text for _, text in cells)
    try:
        found, requests = script.read_tree(tree, places, words, path.parent, kind="notebook", ignores=ignores)
    except RecursionError:
        return script._with_problem(failed, "it is nested too deeply to be read", 0), Requests()
    except Exception as error:
        if os.environ.get("QLORA_DOCTOR_DEBUG"):
            raise
        return script._with_problem(failed, script.own_fault(error), 0), Requests()
    return script._with_problem(found, problem, 0), requests


def _cells(data: bytes) -> list[tuple[int, str]]:
    """The code cells: their index among all cells, and their text."""
    import json

    try:
        notebook = json.loads(decode(data).text)
    except RecursionError:
        raise Unreadable("it is nested too deeply to be a notebook") from None
    except ValueError as error:
        raise Unreadable(f"it is not a notebook: {error}") from None
    raw = notebook.get("cells") if isinstance(notebook, Mapping) else None
    if raw is None and isinstance(notebook, Mapping):
        sheets = notebook.get("worksheets")
        if isinstance(sheets, list):
            raw = [c for s in sheets if isinstance(s, Mapping) for c in _list(s.get("cells"))]
    if not isinstance(raw, list):
        raise Unreadable("it is not a notebook: it has no cells")
    found = []
    for index, cell in enumerate(raw):
        if isinstance(cell, Mapping) and cell.get("cell_type") == "code":
            lines = cell.get("source", cell.get("input", ""))
            text = "".join(map(str, lines)) if isinstance(lines, list) else str(lines)
            found.append((index, text.replace("\x00", "")))
    return found


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _python(text: str) -> tuple[str, str]:
    """A cell as Python with the same lines, and why it is left out where it is none."""
    lines = re.split(r"\r\n|\r|\n", text)
    plain = "\n".join(lines)
    if _parses(plain):
        return plain, ""
    first = next((line.strip() for line in lines if line.strip()), "")
    if first.startswith("%%"):
        word = first[2:].split()[0] if first[2:].split() else ""
        if word not in _PYTHON_CELLS:
            return "\n" * (len(lines) - 1), ""
    without = "\n".join(_without_magic(lines))
    if _parses(without):
        return without, ""
    _, problem, line = script.parse(without)
    return "\n" * (len(lines) - 1), f"line {line}: {problem}"


def parse_export(text: str) -> ast.Module | None:
    """The tree of a notebook that was saved as .py with its commands (`!pip install ...`) as they stand."""
    return script.parse("\n".join(_without_magic(re.split(r"\r\n|\r|\n", text))))[0]


def _parses(text: str) -> bool:
    return script.parse(text)[0] is not None


def _without_magic(lines: Sequence[str]) -> list[str]:
    found: list[str] = []
    continued = False
    for line in lines:
        if continued:
            continued = line.rstrip().endswith("\\")
            found.append("")
            continue
        match = _MAGIC.match(line)
        if match is None:
            if _AUTOMAGIC.match(line):
                continued = line.rstrip().endswith("\\")
                found.append("")
                continue
            found.append("" if re.fullmatch(r"\s*[\w.]+\?{1,2}\s*", line) else line)
            continue
        continued = line.rstrip().endswith("\\")
        found.append(match["indent"] + _replacement(match["sign"], match["rest"], line))
    return found


def _replacement(sign: str, rest: str, line: str) -> str:
    environment = _ENV.match(rest.strip()) if sign == "%" else None
    if environment is not None:
        value = environment[2].strip().strip("\"'")
        return f"__qlora_doctor_env__({environment[1]!r}, {value!r})"
    assigned = re.match(r"\s*([A-Za-z_]\w*)\s*=\s*[%!]", line)
    return f"{assigned[1]} = __qlora_doctor_shell__" if assigned else "pass"
