"""The tests here that compare with real models need torch; they are skipped where it is absent."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

MISSING = [name for name in ("torch", "transformers", "peft", "bitsandbytes") if find_spec(name) is None]
# The libraries' own notices, which say nothing of our code.
NOTICES = ("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("torch") is None or item.path.parent.name != "memory":
            continue
        for notice in NOTICES:
            item.add_marker(pytest.mark.filterwarnings(notice))
        if MISSING:
            item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(MISSING)}"))
