"""Failures provoked for real with the installed stack, and diagnosed from their live output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from qlora_doctor.logs.diagnose import diagnose

STACK = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets")
MISSING = [name for name in STACK if find_spec(name) is None]
# Another interpreter may hold the stack while the tests run in one without it.
PYTHON = os.environ.get("QLORA_DOCTOR_TEST_STACK", "" if MISSING else sys.executable)

pytestmark = [pytest.mark.torch, pytest.mark.skipif(not PYTHON, reason=f"not installed: {', '.join(MISSING)}")]


@pytest.fixture(scope="module")
def provoked() -> dict[str, tuple[str, str]]:
    program = Path(__file__).parent / "provocations.py"
    done = subprocess.run([PYTHON, str(program)], capture_output=True, text=True, timeout=900, check=True)
    rows = [json.loads(line.partition(" ")[2]) for line in done.stdout.splitlines() if line.startswith("PROVOKED ")]
    return {row["name"]: (row["cause"], row["text"]) for row in rows}


def test_failures_of_the_stack_are_diagnosed_from_their_live_output(provoked: dict[str, tuple[str, str]]) -> None:
    # TRL is not in the train extra; what needs it is provoked only where it is installed.
    raised = {n: pair for n, pair in provoked.items() if pair[1] and "No module named 'trl'" not in pair[1]}
    wrong = {
        name: (cause, found[:3], text.strip().splitlines()[-1][:200])
        for name, (cause, text) in raised.items()
        if cause not in (found := diagnose(text).causes)[:1]
    }
    assert wrong == {}
    signatures = {d.signature.id for _, text in raised.values() for d in diagnose(text).diagnoses[:1]}
    assert len(signatures) >= 40
