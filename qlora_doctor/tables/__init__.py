"""What is known of versions, builds and drivers, as data; the checks and the install advice read the same rows."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@cache
def load(name: str) -> Mapping[str, Any]:
    """The tables of one TOML file of this package: `matrix.toml`, `cuda.toml` or `install.toml`."""
    return tomllib.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))


def rows(name: str, table: str) -> list[Mapping[str, Any]]:
    """The rows of one array of tables: `rows("matrix.toml", "bad_pair")`."""
    found: list[Mapping[str, Any]] = load(name).get(table, [])
    return found
