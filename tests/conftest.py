"""What needs the stack is skipped where the stack is absent (Python 3.10). Reports are read in English, whatever the locale."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

os.environ["QLORA_DOCTOR_LANG"] = "en"
MISSING = [name for name in ("torch", "transformers", "peft", "bitsandbytes") if find_spec(name) is None]


@pytest.hookimpl(trylast=True)  # after the folders have marked theirs
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if MISSING:
        for item in items:
            if item.get_closest_marker("torch"):
                item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(MISSING)}"))
