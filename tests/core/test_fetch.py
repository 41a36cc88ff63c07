"""A model of the Hub that cannot be had: said before torch is imported, with the way out."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from qlora_core import load_quantized
from qlora_core.errors import ModelProblem
from qlora_core.fetch import _room, _wanted
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
    assert "org/model is not in the cache, and the Hub cannot be reached" in done.stdout
    assert "endpoint=" in done.stdout


def test_the_original_llava_repository_is_replaced_by_the_converted_one_and_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"llava-hf/llava-1.5-7b-hf takes the place of liuhaotian/llava-v1.5-7b"):
        load_quantized("liuhaotian/llava-v1.5-7b", local_files_only=True, cache_dir=tmp_path)


def test_with_the_gate_off_the_original_llava_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelProblem, match="original LLaVA layout"):
        load_quantized("liuhaotian/llava-v1.5-7b", gate="off", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("files", "wanted"),
    [(["config.json", "model.safetensors", "pytorch_model.bin"], "*.safetensors"), (["pytorch_model-1.bin"], "*.bin")],
)
def test_pickles_are_downloaded_only_where_there_is_nothing_else(files: list[str], wanted: str) -> None:
    assert _wanted("org/model", files)[-1] == wanted


@pytest.mark.parametrize("files", [["model.Q4.gguf"], ["adapter_config.json"], ["README.md"]])
def test_a_repository_without_weights_that_load_is_refused(files: list[str]) -> None:
    with pytest.raises(ModelProblem, match="org/model"):
        _wanted("org/model", files)


def test_a_full_disk_is_named_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 9, 2**30))
    with pytest.raises(UsageError, match=r"14.00 GiB are still to be downloaded .* 1.00 GiB free"):
        _room("org/model", {"model.safetensors": 14 * 2**30}, tmp_path)
