"""A model of the Hub that cannot be had: said before torch is imported, with the way out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qlora_core import load_quantized
from qlora_core.errors import ModelProblem
from qlora_doctor.errors import UsageError


def test_a_model_that_is_neither_cached_nor_reachable_says_so_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom qlora_core import load_quantized\nfrom qlora_doctor.errors import UsageError\n"
        f"try: load_quantized('org/model', gate='off', endpoint='http://127.0.0.1:9', cache_dir={str(tmp_path)!r})\n"
        "except UsageError as error: print(error)\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "org/model is not in the cache, and cannot be downloaded" in done.stdout
    assert "nothing listens there" in done.stdout and "endpoint=" in done.stdout


def test_the_original_llava_repository_is_replaced_by_the_converted_one_and_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"llava-hf/llava-1.5-7b-hf takes the place of liuhaotian/llava-v1.5-7b"):
        load_quantized("liuhaotian/llava-v1.5-7b", local_files_only=True, cache_dir=tmp_path)


def test_with_the_gate_off_the_original_llava_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelProblem, match="original LLaVA layout"):
        load_quantized("liuhaotian/llava-v1.5-7b", gate="off", cache_dir=tmp_path)
