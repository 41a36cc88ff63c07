"""An exception of the libraries leaves `load_quantized` with its cause; what is not known gets nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

noted = pytest.mark.skipif(sys.version_info < (3, 11), reason="notes came with Python 3.11")


@noted
def test_an_exception_of_transformers_arrives_with_its_cause(tiny: Callable[..., Path]) -> None:
    from qlora_core import load_quantized

    with pytest.raises((ImportError, ValueError)) as caught:
        load_quantized(tiny("qwen3"), gate="off", attn_implementation="flash_attention_2")
    notes = caught.value.__notes__
    assert [n.startswith("qlora-doctor: ") and "Fix: " in n for n in notes] == [True]
    assert "flash" in notes[0].lower()


def test_an_exception_that_nobody_knows_arrives_as_it_was() -> None:
    from qlora_core import load_quantized

    class Strange:
        def __fspath__(self) -> str:
            raise ArithmeticError("seventeen")

    with pytest.raises(ArithmeticError) as caught:
        load_quantized(Strange())
    assert getattr(caught.value, "__notes__", []) == []


def test_what_the_loader_refuses_itself_needs_no_explanation(tmp_path: Path) -> None:
    from qlora_core import load_quantized
    from qlora_doctor.errors import UsageError

    with pytest.raises(UsageError) as caught:
        load_quantized(tmp_path)
    assert getattr(caught.value, "__notes__", []) == []


def test_a_load_that_goes_well_imports_nothing_of_the_diagnosis(tiny: Callable[..., Path]) -> None:
    code = (
        "import sys; from qlora_core import load_quantized\n"
        f"load_quantized({str(tiny('qwen3'))!r}, gate='off')\n"
        "print('LOADED', *[m for m in sys.modules if m.startswith('qlora_doctor.logs')])\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED qlora_doctor.logs qlora_doctor.logs.explaining"
