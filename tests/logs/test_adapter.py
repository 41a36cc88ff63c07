"""`diagnose --adapter`: a saved adapter is read as bytes, and its answers are judged, without torch."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from qlora_doctor.errors import UsageError
from qlora_doctor.logs.adapter import adapter_findings, finite
from qlora_doctor.logs.answers import Sample, judge_samples, read_samples, repeats

ONE = struct.pack("<4f", 0.5, -0.25, 1e-3, 2.0)
ZERO = bytes(16)


def save(folder: Path, tensors: Mapping[str, tuple[str, bytes]], config: Mapping[str, str] | None = None) -> Path:
    """An adapter folder; each tensor has two rows."""
    folder.mkdir(exist_ok=True)
    header, data, at = {}, b"", 0
    for name, (dtype, raw) in tensors.items():
        width = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8}[dtype]
        header[name] = {"dtype": dtype, "shape": [2, len(raw) // width // 2], "data_offsets": [at, at + len(raw)]}
        data, at = data + raw, at + len(raw)
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **(config or {})}), encoding="utf-8")
    return folder


def names(folder: Path, base: str = "") -> list[str]:
    return [f.name for f in adapter_findings(str(folder), base)]


def test_a_trained_adapter_has_nothing_wrong(tmp_path: Path) -> None:
    assert names(save(tmp_path / "a", {"q.lora_A.weight": ("F32", ONE), "q.lora_B.weight": ("F32", ONE)})) == []


def test_an_adapter_whose_every_lora_b_is_zero_is_untrained(tmp_path: Path) -> None:
    tensors = {
        "q.lora_A.weight": ("F32", ONE),
        "q.lora_B.weight": ("F32", ZERO),
        "v.lora_B.weight": ("BF16", bytes([0, 128]) * 8),
    }
    assert names(save(tmp_path / "a", tensors)) == ["adapter-untrained"]


def test_layers_that_were_never_trained_are_named(tmp_path: Path) -> None:
    tensors = {"q.lora_B.weight": ("F32", ONE), "vision.lora_B.weight": ("F32", ZERO)}
    found = adapter_findings(str(save(tmp_path / "a", tensors)))
    assert [f.name for f in found] == ["adapter-partly-untrained"]
    assert "vision.lora_B.weight" in found[0].text


@pytest.mark.parametrize(
    ("dtype", "form", "limit"),
    [("F32", "<f", 3.0e38), ("F64", "<d", 1.7e308), ("F16", "<e", 65504.0)],
)
def test_nan_and_infinity_are_told_from_the_largest_numbers(dtype: str, form: str, limit: float) -> None:
    sound = [0.0, -0.0, 1e-6, 1.5, limit, -limit]
    assert finite(b"".join(struct.pack(form, v) for v in sound), dtype)
    for bad in (float("nan"), float("inf"), float("-inf")):
        assert not finite(b"".join(struct.pack(form, v) for v in [*sound, bad, 1.0]), dtype)


def test_nan_in_bfloat16_is_found(tmp_path: Path) -> None:
    raw = struct.pack("<f", 1.5)[2:] + struct.pack("<f", float("nan"))[2:]
    assert names(save(tmp_path / "a", {"q.lora_B.weight": ("BF16", raw)})) == ["adapter-not-finite"]


def test_a_file_that_is_cut_is_said_to_be(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", {"q.lora_B.weight": ("F32", ONE)})
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    assert names(folder) == ["adapter-file-damaged"]


def test_another_chat_template_or_end_token_than_the_bases_is_found(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    words = {"chat_template": "{{ a }}\n", "eos_token": "</s>", "pad_token": "<unk>"}
    (base / "tokenizer_config.json").write_text(json.dumps(words), encoding="utf-8")
    folder = save(tmp_path / "a", {"q.lora_B.weight": ("F32", ONE)}, {"base_model_name_or_path": str(base)})
    (folder / "chat_template.jinja").write_text("{{ a }}", encoding="utf-8")
    assert names(folder) == []
    (folder / "chat_template.jinja").write_text("{{ b }}", encoding="utf-8")
    mine = {**words, "eos_token": {"content": "<|im_end|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(mine), encoding="utf-8")
    assert names(folder) == ["adapter-template-differs", "adapter-token-differs"]


def test_a_folder_without_an_adapter_is_a_mistake_of_the_question(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no adapter_config\.json"):
        adapter_findings(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("Paris is nice. I like it. I like it. I like it. I like it. I like it. I like it.", True),
        ("the the the the the the the the", True),
        ("好的好的好的好的好的好的好的好的好的好的好的好的", True),
        ("will will will not will not not will will will not will will will will not will will not not will", True),
        ("the cat and the dog and the bird sat on the mat and the rug while the sun set over the sea", False),
        ("The capital of France is Paris. It lies on the Seine and is known for its museums.", False),
        ("1. apple 2. banana 3. cherry", False),
        ("", False),
    ],
)
def test_repetition_is_told_from_ordinary_text(text: str, unit: bool) -> None:
    assert bool(repeats(text)) is unit


LOOP = "and so on " * 20
SAMPLES = {
    "adapter-repeats": [Sample("a", LOOP, "Paris."), Sample("b", LOOP, "The sea is blue.")],
    "adapter-never-ends": [Sample("a", "one two", "x", False), Sample("b", "three", "y", False)],
    "adapter-wrong-template": [Sample("a", "Sure. ### Instruction: next", "x"), Sample("b", "ok USER: hi", "y")],
    "adapter-changes-nothing": [Sample("a", "x", "x"), Sample("b", "y", "y")],
    "adapter-says-nothing": [Sample("a", "", "x"), Sample("b", " ", "y")],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_each_fault_of_the_answers_is_named(name: str) -> None:
    assert [f.name for f in judge_samples(SAMPLES[name])] == [name]


def test_good_answers_and_faults_that_the_base_has_too_are_not_the_adapters() -> None:
    assert list(judge_samples([Sample("a", "Paris.", "It is Paris."), Sample("b", "Blue.", "The sea.")])) == []
    assert list(judge_samples([Sample("a", LOOP, LOOP + "x " + LOOP, False, False)])) == []


def test_the_command_reads_the_adapter_and_kept_answers(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", {"q.lora_B.weight": ("F32", ONE)})
    kept = tmp_path / "s.json"
    rows = [{"prompt": s.prompt, "output": s.output, "base": s.base} for s in SAMPLES["adapter-repeats"]]
    kept.write_text(json.dumps({"schema": 1, "samples": rows}), encoding="utf-8")
    assert read_samples(str(kept))[0].output == LOOP
    words = [sys.executable, "-m", "qlora_doctor", "diagnose", "--adapter", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, "nothing is wrong" in done.stdout) == (0, True)
    done = subprocess.run([*words, "--samples", str(kept)], capture_output=True, text=True, check=False)
    assert (done.returncode, "error adapter-repeats" in done.stdout) == (1, True)
    kept.write_text('{"samples": [{"prompt": 3}]}', encoding="utf-8")
    done = subprocess.run([*words, "--samples", str(kept)], capture_output=True, text=True, check=False)
    assert (done.returncode, "$.samples[0]" in done.stderr) == (2, True)
