"""The data files beside the checks, read once. Those of versions and builds lie in `qlora_doctor.tables`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from qlora_doctor import tables

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_DOCTORS = ("matrix.toml", "cuda.toml")


@cache
def load(name: str) -> Mapping[str, Any]:
    """The tables of one TOML file of this package (`api.toml`), or of the doctor's (`matrix.toml`, `cuda.toml`)."""
    if name in _DOCTORS:
        return tables.load(name)
    return tomllib.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))


def rows(name: str, table: str) -> list[Mapping[str, Any]]:
    """The rows of one array of tables: `rows("matrix.toml", "bad_pair")`."""
    found: list[Mapping[str, Any]] = load(name).get(table, [])
    return found
