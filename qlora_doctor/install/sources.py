"""Where packages come from on this machine: the indexes and mirrors that pip, uv and conda are told of. Values, never printed
whole: a URL may hold a password."""

from __future__ import annotations

import configparser
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OWN_VARIABLE = "QLORA_DOCTOR_TORCH_INDEX"
_VARIANT = re.compile(r"(.*/)(cu\d{2,3}|cpu|rocm[\d.]+|xpu)/?\Z")


@dataclass(frozen=True, slots=True)
class Sources:
    """Configured indexes. `pip_index` and `uv_index` are the main ones, "" for the tool's default.

    `torch_root` is the folder of indexes of torch builds (`.../whl`), to which a label such as `cu126` is added.
    `said_by` names, for each of the others, the file or variable that says it.
    """

    pip_index: str = ""
    pip_extra: tuple[str, ...] = ()
    pip_links: tuple[str, ...] = ()
    uv_index: str = ""
    uv_extra: tuple[str, ...] = ()
    conda_channels: tuple[str, ...] = ()
    torch_root: str = ""
    said_by: Mapping[str, str] | None = None

    @property
    def said(self) -> Mapping[str, str]:
        return self.said_by or {}


def read_sources(environ: Mapping[str, str] | None = None, prefix: str = "", project: str = "") -> Sources:
    """The sources that the user's variables and files name; what is said nearer to the command counts.

    `prefix` is the environment whose own files count too, `project` the folder of uv's project settings.
    """
    environ = os.environ if environ is None else environ
    said: dict[str, str] = {}
    pip: dict[str, str] = {}
    for path in _pip_files(environ, prefix):
        for name, value in _ini(path).items():
            pip[name] = value
            said["pip " + name] = path
    for name in ("index-url", "extra-index-url", "find-links"):
        variable = "PIP_" + name.upper().replace("-", "_")
        if environ.get(variable):
            pip[name], said["pip " + name] = environ[variable], variable
    uv_index, uv_extra = _uv(environ, project, said)
    channels = _conda(environ, prefix, said)
    pip_extra, links = tuple(pip.get("extra-index-url", "").split()), tuple(pip.get("find-links", "").split())
    root = environ.get(OWN_VARIABLE, "")
    if root:
        match = _VARIANT.match(root)
        root, said["torch"] = (match[1] if match else root).rstrip("/"), OWN_VARIABLE
    else:
        for name, urls in (("pip", (pip.get("index-url", ""), *pip_extra, *links)), ("uv", (uv_index, *uv_extra))):
            match = next((m for m in map(_VARIANT.match, urls) if m), None)
            if match:
                root, said["torch"] = match[1].rstrip("/"), f"{name}'s configuration"
                break
    return Sources(pip.get("index-url", ""), pip_extra, links, uv_index, uv_extra, channels, root, said)


def _pip_files(environ: Mapping[str, str], prefix: str) -> Iterator[str]:
    """pip's configuration files, the weakest first."""
    chosen = environ.get("PIP_CONFIG_FILE", "")
    if chosen == os.devnull:
        return
    home = environ.get("HOME") or environ.get("USERPROFILE") or os.path.expanduser("~")
    if sys.platform == "win32":
        yield os.path.join(environ.get("PROGRAMDATA", "C:\\ProgramData"), "pip", "pip.ini")
        yield os.path.join(environ.get("APPDATA", home), "pip", "pip.ini")
    else:
        for folder in reversed((environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")):
            yield os.path.join(folder, "pip", "pip.conf")
        yield "/etc/pip.conf"
        yield os.path.join(home, ".pip", "pip.conf")
        if sys.platform == "darwin":
            yield os.path.join(home, "Library", "Application Support", "pip", "pip.conf")
        yield os.path.join(environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config"), "pip", "pip.conf")
    if prefix:
        yield os.path.join(prefix, "pip.ini" if sys.platform == "win32" else "pip.conf")
    if chosen:
        yield chosen


def _ini(path: str) -> dict[str, str]:
    """The indexes in one of pip's files; a file that cannot be read says nothing, as pip itself will complain of it."""
    parser = configparser.RawConfigParser()
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError, OSError):
        return {}
    found: dict[str, str] = {}
    for section in ("global", "install"):
        for name in ("index-url", "extra-index-url", "find-links"):
            value = parser.get(section, name, fallback="")
            if value:
                found[name] = value
    return found


def _uv(environ: Mapping[str, str], project: str, said: dict[str, str]) -> tuple[str, tuple[str, ...]]:
    index, extra = "", tuple[str, ...]()
    home = environ.get("HOME") or os.path.expanduser("~")
    config = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    files = ["/etc/uv/uv.toml", os.path.join(config, "uv", "uv.toml")]
    files += [os.path.join(project, "pyproject.toml"), os.path.join(project, "uv.toml")] if project else []
    for path in files:
        table = _toml(path)
        if path.endswith("pyproject.toml"):
            table = table.get("tool", {}).get("uv", {})
        entries = [e for e in table.get("index", ()) if isinstance(e, dict) and isinstance(e.get("url"), str)]
        main = next((e["url"] for e in entries if e.get("default")), table.get("index-url", ""))
        if main:
            index, said["uv index"] = str(main), path
        extra += tuple(e["url"] for e in entries if not e.get("default") and not e.get("explicit"))
    for variable in ("UV_INDEX_URL", "UV_DEFAULT_INDEX"):
        if environ.get(variable):
            index, said["uv index"] = environ[variable], variable
    return index, extra + tuple((environ.get("UV_INDEX") or environ.get("UV_EXTRA_INDEX_URL") or "").split())


def _toml(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except (OSError, ValueError):
        return {}


def _conda(environ: Mapping[str, str], prefix: str, said: dict[str, str]) -> tuple[str, ...]:
    """The channels in .condarc, the nearest file first; only the plain list form is read."""
    home = environ.get("HOME") or environ.get("USERPROFILE") or os.path.expanduser("~")
    files = [os.path.join(prefix, ".condarc")] if prefix else []
    for path in (*files, os.path.join(home, ".condarc")):
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError):
            continue
        match = re.search(r"^channels:[ \t]*\n((?:[ \t]*-[^\n]*\n?)+)", text, re.MULTILINE)
        if match:
            said["conda"] = path
            return tuple(line.strip(" \t-'\"") for line in match[1].splitlines())
    return ()
