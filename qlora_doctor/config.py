"""The `[tool.qlora-doctor]` table of the nearest pyproject.toml.

[tool.qlora-doctor]
select = ["QD0", "QD1"]
ignore = { QD203 = "our mirror answers slowly" }      # or a plain list
severity = { QD101 = "error" }
fail-on = "error"
mirrors = ["https://hub.example.com"]                 # asked where the Hub does not answer
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qlora_doctor.errors import UsageError
from qlora_doctor.finding import SEVERITIES, Severity

TABLE = "tool.qlora-doctor"
KEYS = ("select", "ignore", "severity", "fail-on", "mirrors")


@dataclass(frozen=True, slots=True)
class Config:
    """What the project asks for. `ignore` maps a code or name to the reason ("" where none is given)."""

    path: str = ""
    select: tuple[str, ...] = ()
    ignore: Mapping[str, str] = field(default_factory=dict)
    severity: Mapping[str, Severity] = field(default_factory=dict)
    fail_on: Severity | None = None
    mirrors: tuple[str, ...] = ()


def nearest_config(start: str) -> Config:
    """The settings of the first pyproject.toml in `start` or a folder above it; empty where there is none.

    Raises:
        UsageError: the table holds what it cannot; the message names the file and the key.
    """
    folder = os.path.abspath(start)
    while True:
        path = os.path.join(folder, "pyproject.toml")
        if os.path.isfile(path):
            return read_config_file(path)
        parent = os.path.dirname(folder)
        if parent == folder:
            return Config()
        folder = parent


def read_config_file(path: str) -> Config:
    """The settings in one pyproject.toml. A file without our name in it is not even parsed. Raises UsageError."""
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    if b"qlora-doctor" not in raw:
        return Config()
    tool = _toml(path, raw).get("tool")
    table = tool.get("qlora-doctor") if isinstance(tool, Mapping) else None
    return Config() if table is None else _config(path, table)


def _toml(path: str, raw: bytes) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not valid TOML: {error}") from None


def read_user_mirrors(path: str) -> tuple[str, ...]:
    """`mirrors` of the user's own file; empty where there is no such file. Raises UsageError."""
    try:
        with open(path, "rb") as file:
            raw = file.read(2**20)
    except OSError:
        return ()
    table = _toml(path, raw)
    for key in table:
        if key != "mirrors":
            raise UsageError(f"{path}: {key}: there is no such key; the only one is mirrors")
    return checked_mirrors(path, "mirrors", table.get("mirrors", []))


def checked_mirrors(path: str, key: str, value: Any) -> tuple[str, ...]:
    """Addresses without the slashes at their ends. Raises UsageError for what is no http or https address."""
    where = f"{path}: {key}" if key else path
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise UsageError(f'{where}: expected a list of addresses, such as ["https://hub.example.com"]')
    for word in value:
        if not re.match(r"https?://[^\s/]+[^\s]*\Z", word):
            raise UsageError(f"{where}: expected addresses such as https://hub.example.com; this is none: {word!r}")
    return tuple(v.rstrip("/") for v in value)


def _config(path: str, table: Any) -> Config:
    if not isinstance(table, Mapping):
        raise _wrong(path, "", "expected a table")
    for key in table:
        if key not in KEYS:
            raise _wrong(path, key, f"there is no such key; the keys are {', '.join(KEYS)}")
    fail_on = table.get("fail-on")
    return Config(
        path=path,
        select=tuple(_words(path, "select", table.get("select", []))),
        ignore=_ignore(path, table.get("ignore", [])),
        severity={k: _severity(path, f"severity.{k}", v) for k, v in _table(path, "severity", table).items()},
        fail_on=None if fail_on is None else _severity(path, "fail-on", fail_on),
        mirrors=checked_mirrors(path, f"{TABLE}.mirrors", table.get("mirrors", [])),
    )


def _ignore(path: str, value: Any) -> dict[str, str]:
    if isinstance(value, Mapping):
        for word, reason in value.items():
            if not isinstance(reason, str):
                raise _wrong(path, f"ignore.{word}", 'expected the reason as a string, such as "we pin it ourselves"')
        return dict(value)
    return dict.fromkeys(_words(path, "ignore", value), "")


def _table(path: str, key: str, table: Mapping[str, Any]) -> Mapping[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, Mapping):
        raise _wrong(path, key, 'expected a table, such as { QD101 = "error" }')
    return value


def _words(path: str, key: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
        raise _wrong(path, key, 'expected a list of codes or names, such as ["QD1", "QD203"]')
    return value


def _severity(path: str, key: str, value: Any) -> Severity:
    for severity in SEVERITIES:
        if value == severity:
            return severity
    raise _wrong(path, key, f"expected one of {', '.join(SEVERITIES)}, found {value!r}")


def _wrong(path: str, key: str, problem: str) -> UsageError:
    return UsageError(f"{path}: {TABLE}{'.' if key else ''}{key}: {problem}")
