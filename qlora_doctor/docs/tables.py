"""The page of the tables: every version, build and driver that the checks know by heart, with its source."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qlora_doctor import tables

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILES = {"matrix.toml": "Versions", "cuda.toml": "GPUs, drivers and builds"}
_BEGINS = re.compile(r"^(\w+) = \[$")
_ROW = re.compile(r"^\[\[(\w+)\]\](?: # (.*))?$", re.MULTILINE)
_ARGUMENTS = {
    "argument": "Arguments",
    "value": "Values",
    "name": "Names that are imported",
    "synonym": "Often misspelt",
}
_SHOWN = ("calls", "module", "deprecated", "removed", "old", "new", "since", "advice", "effect")
_THREAD = re.compile(r"\b([\w.-]+/[\w.-]+)#(\d+)\b")


def table_page() -> Mapping[str, str]:
    """The page by its path under docs/."""
    lines = [
        "# Tables",
        "",
        "Made from `qlora_doctor/tables` by `make docs`. Do not edit.",
        "",
        "What the checks cannot read from the installed packages themselves. Where an installed package states its own",
        "minimum, that is read from its source and beats the table. A row that was not verified never makes an error.",
    ]
    for file, title in FILES.items():
        said = _comments(Path(tables.__file__).with_name(file).read_text(encoding="utf-8"))
        data = tables.load(file)
        lines += ["", f"## {title}", ""]
        lines += [f"`{file}`" + (f", as of {data['as_of']}" if "as_of" in data else "") + "."]
        for name, rows in data.items():
            if isinstance(rows, list) and rows and isinstance(rows[0], dict):
                lines += ["", f"### {name}", "", *([said[name], ""] if name in said else []), *_table(rows)]
    return {"tables.md": "\n".join([*lines, *_interfaces()]) + "\n"}


def _interfaces() -> Iterator[str]:
    """What changed in the libraries' interfaces: the rows of the checks' api.toml, with the comment of each."""
    spec = find_spec("qlora_checks")
    if spec is None or spec.origin is None:
        return
    text = Path(spec.origin).with_name("api.toml").read_text(encoding="utf-8")
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for begins, part in zip(_ROW.finditer(text), _ROW.split(text)[3::3], strict=True):
        # Only the keys of the row itself: a table after the last row begins with a bracket.
        row = tomllib.loads(re.split(r"^\[", part, maxsplit=1, flags=re.MULTILINE)[0])
        name = row.pop("names", row.get("name", ""))
        package = {"package": row["package"]} if "package" in row else {}
        shown = {**package, "name": name, **{k: row[k] for k in _SHOWN if k in row}}
        rows.setdefault(begins[1], []).append({**shown, "known from": begins[2] or "parsed"})
    yield from ("", "## Arguments and names", "")
    yield "`api.toml`: what changed in the libraries' interfaces. *Parsed*: read in the wheels of transformers 4.36 to 5.6 and"
    yield "5.23, and of TRL 0.8 to 1.0 and 1.16. *Run*: also called in transformers 5.23 and TRL 1.16."
    for name, title in _ARGUMENTS.items():
        yield from ("", f"### {title}", "", *_table(rows.get(name, [])))


def _comments(text: str) -> Mapping[str, str]:
    """The comment above each table of a TOML file, as one paragraph."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in text.splitlines():
        if begins := _BEGINS.match(line):
            found[begins[1]] = " ".join(above)
        above = [*above, line.lstrip("# ")] if line.startswith("#") else []
    return {name: said for name, said in found.items() if said}


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    yield f"| {' | '.join(name.replace('_', ' ') for name in columns)} |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield f"| {' | '.join(_cell(name, row.get(name, '')) for name in columns)} |"


def _cell(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    pairs = [f"{old} → {new}" for old, new in value.items()] if isinstance(value, dict) else value
    text = ", ".join(map(str, pairs)) if isinstance(pairs, list) else str(pairs)
    if not text:
        return ""
    if name in ("source", "effect", "advice", "known from", "when_omitted", "where", "when", "note"):
        shown = re.sub(r"([\\*_<>|~])", r"\\\1", text)
        return _THREAD.sub(r"[\1#\2](https://github.com/\1/issues/\2)", shown)
    return f"`{text.replace('|', chr(92) + '|')}`"
