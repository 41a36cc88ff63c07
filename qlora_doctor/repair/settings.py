"""Argument fixes in settings files: one key renamed, set, taken out or added, all other bytes as they were."""

from __future__ import annotations

import hashlib
import json
import re

from qlora_doctor.errors import RepairError
from qlora_doctor.fix import LoadKwarg, SourceEdit, TrainSetting
from qlora_doctor.repair.text import decode, edits_between
from qlora_doctor.source import Dotted, Script, Site, Value

_KEY = re.compile(r"""(["']?)([A-Za-z_][\w.-]*)\1(\s*[:=]\s*)""")


def setting_edit(data: bytes, script: Script, fix: LoadKwarg | TrainSetting, site: Site) -> SourceEdit:
    """The edit of a JSON, YAML or TOML file that carries `fix` out. `site.spans` are the places of its keys.

    Raises:
        RepairError: the key stands in a way that cannot be changed without guessing.
    """
    text, encoding = decode(data, script.encoding)
    bom = len(encoding.bom)

    def characters(span: tuple[int, int]) -> tuple[int, int]:
        start = len(data[bom : span[0]].decode(encoding.name))
        return start, start + len(data[span[0] : span[1]].decode(encoding.name))

    places = {name: characters(span) for name, span in site.spans.items()}
    style = script.path.rpartition(".")[2].lower()
    new = _changed(text, fix, places, "yaml" if style == "yml" else style)
    edits = edits_between(text, new, encoding)
    if not edits:
        raise RepairError("the file has this already")
    digest = hashlib.sha256(data).hexdigest()
    return SourceEdit(script.path, digest, edits, fix.title, applicability=fix.applicability)


def _changed(text: str, fix: LoadKwarg | TrainSetting, places: dict[str, tuple[int, int]], style: str) -> str:
    if fix.drop:
        return _without(text, _place(places, fix.name), style)
    if fix.replaces in places:
        if fix.name in places:
            return _without(text, places[fix.replaces], style)
        return _set(text, places[fix.replaces], fix.replaces, fix.name, fix.value, style)
    if fix.name in places:
        return _set(text, places[fix.name], fix.name, fix.name, fix.value, style)
    if isinstance(fix, LoadKwarg) or fix.target != "settings" or not places:
        raise RepairError(f"whether the program that reads this file takes {fix.name} is not known; add it yourself")
    return _with(text, min(places.values())[0], fix.name, fix.value, style)


def _place(places: dict[str, tuple[int, int]], name: str) -> tuple[int, int]:
    if name not in places:
        raise RepairError(f"where {name} is set cannot be seen in this file")
    return places[name]


def _set(text: str, span: tuple[int, int], old: str, new: str, value: Value, style: str) -> str:
    entry = text[span[0] : span[1]]
    match = _KEY.match(entry)
    if match is None or (match[2] != old and old != new):
        raise RepairError(f"{old} goes by another name in this file; change it there")
    rest = entry[match.end() :]
    key = new if match[2] == old else match[2]
    same = rest.strip().strip("\"'") == (written(value, style).strip("\"'"))
    return (
        text[: span[0]]
        + match[1]
        + key
        + match[1]
        + match[3]
        + (rest if same else written(value, style))
        + text[span[1] :]
    )


def _without(text: str, span: tuple[int, int], style: str) -> str:
    start = text.rfind("\n", 0, span[0]) + 1
    end = text.find("\n", span[1])
    end = len(text) if end < 0 else end + 1
    before, after = text[start : span[0]].strip(), text[span[1] : end].strip()
    if style == "json":
        return _without_json(text, span, (start, end), before, after)
    if before or (after and not after.startswith("#")):
        raise RepairError("the setting shares its line with another; take it out yourself")
    if re.match(r"[ \t]+[^\s#]", text[end:]) and len(text[start : span[0]]) < len(re.match(r"[ \t]*", text[end:])[0]):  # type: ignore[index]
        raise RepairError("the setting goes over several lines; take it out yourself")
    return text[:start] + text[end:]


def _without_json(text: str, span: tuple[int, int], line: tuple[int, int], before: str, after: str) -> str:
    if after.startswith(","):
        end = text.index(",", span[1]) + 1
        alone = not before and after == ","
        return text[: line[0]] + text[line[1] :] if alone else text[: span[0]] + text[end:].lstrip(" ")
    comma = re.search(r",\s*\Z", text[: span[0]])
    if comma is None:
        raise RepairError("it is the only setting of its object; take it out yourself")
    return text[: comma.start()] + text[span[1] :]


def _with(text: str, at: int, name: str, value: Value, style: str) -> str:
    start = text.rfind("\n", 0, at) + 1
    indent = text[start:at]
    alone = not indent.strip()
    if not alone:
        indent, start = "", at
    newline = "\r\n" if "\r\n" in text else "\n"
    end = newline if alone else " "
    shown = written(value, style)
    if style == "json":
        return f'{text[:start]}{indent}"{name}": {shown},{end}{text[start:]}'
    if not alone:
        raise RepairError(f"the file is on one line; add {name} yourself")
    return f"{text[:start]}{indent}{name}{' = ' if style == 'toml' else ': '}{shown}{end}{text[start:]}"


def written(value: Value, style: str) -> str:
    """A value as JSON, YAML or TOML. Raises RepairError for what these cannot hold."""
    if isinstance(value, Dotted):
        return json.dumps(value.name.rpartition(".")[2])
    if isinstance(value, float):
        # YAML 1.1 takes 1e-4 for text.
        return f"{value:.12f}".rstrip("0") + ("0" if value == int(value) else "") if "e" in repr(value) else repr(value)
    if value is None and style == "toml":
        raise RepairError("TOML has no word for None; take the key out yourself")
    if value is None or isinstance(value, (bool, int)):
        return json.dumps(value)
    if isinstance(value, str):
        return (
            value
            if style == "yaml" and re.fullmatch(r"[A-Za-z_]\w*", value) and value not in _WORDS
            else json.dumps(value)
        )
    if isinstance(value, tuple):
        return "[" + ", ".join(written(v, "json" if style == "json" else style) for v in value) + "]"
    raise RepairError("the new value cannot be written in this file")


_WORDS = ("yes", "no", "on", "off", "true", "false", "null", "y", "n", "True", "False", "No", "Yes", "None")
