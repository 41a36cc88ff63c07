"""Settings files: recognised by their key names, judged under transformers' names."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from qlora_doctor.errors import UnknownArgument
from qlora_doctor.gather.config import read_config
from qlora_doctor.request import LoadRequest, Requests, TrainRequest
from qlora_doctor.source import Call, Dotted, Script


def read(folder: Path, text: str, name: str) -> tuple[Script, Requests]:
    path = folder / name
    path.write_text(dedent(text))
    script, requests = read_config(path)
    assert not script.problem, script.problem
    return script, requests


def both(requests: Requests) -> tuple[LoadRequest, TrainRequest]:
    (load,), (train,) = requests.loads, requests.trains
    return load, train


LLAMA_FACTORY = """
    ### model
    model_name_or_path: Qwen/Qwen3-4B
    quantization_bit: 4
    double_quantization: false
    stage: sft
    finetuning_type: lora
    lora_rank: 8
    lora_target: all
    template: qwen3
    cutoff_len: 2048
    output_dir: saves
    per_device_train_batch_size: 1
    learning_rate: 1.0e-4
    warmup_ratio: 0.1
    bf16: true
"""
AXOLOTL = """
    base_model: NousResearch/Llama-2-7b-hf
    load_in_4bit: true
    adapter: qlora
    sequence_len: 4096
    sample_packing: true
    lora_r: 32
    lora_target_linear: true
    micro_batch_size: 2
    num_epochs: 4
    optimizer: paged_adamw_32bit
    bf16: auto
    gradient_checkpointing: true
"""
SWIFT = '{"model": "Qwen/Qwen2.5-7B", "tuner_type": "lora", "quant_bits": 4, "quant_method": "bnb", "torch_dtype": "bfloat16", "lora_rank": 8, "num_train_epochs": 1}'


@pytest.mark.parametrize(
    ("text", "name", "layout", "function", "model", "setting", "rank"),
    [
        (LLAMA_FACTORY, "a.yaml", "llama-factory", "llamafactory.train", "Qwen/Qwen3-4B", ("warmup_ratio", 0.1), 8),
        (
            AXOLOTL,
            "a.yml",
            "axolotl",
            "axolotl.train",
            "NousResearch/Llama-2-7b-hf",
            ("optim", "paged_adamw_32bit"),
            32,
        ),
        (SWIFT, "a.json", "ms-swift", "swift.train", "Qwen/Qwen2.5-7B", ("num_train_epochs", 1), 8),
    ],
)
def test_the_files_of_the_known_projects_are_recognised(
    tmp_path: Path, text: str, name: str, layout: str, function: str, model: str, setting: tuple[str, object], rank: int
) -> None:
    script, requests = read(tmp_path, text, name)
    assert (script.kind, script.format) == ("config", layout)
    load, train = both(requests)
    assert load.call.function == function and load.model == model and load.source == "config"
    assert load.quantization is not None and load.quantization.bits == 4
    assert train.setting(setting[0]) == setting[1]
    assert train.peft is True and train.lora is not None and train.lora.get("r") == rank
    assert train.load == load


def test_what_a_project_adds_of_its_own_is_not_taken_for_absent(tmp_path: Path) -> None:
    _, requests = read(tmp_path, AXOLOTL, "a.yml")
    load, train = both(requests)
    with pytest.raises(UnknownArgument, match="axolotl"):
        load.call.has("device_map")
    assert train.lora is not None and train.lora.get("target_modules") == "all-linear"


def test_the_guides_own_sections_are_looked_into(tmp_path: Path) -> None:
    text = {
        "model": {"model_name": "liuhaotian/llava-v1.5-7b"},
        "quantization": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"},
        "training": {"fp16": True, "bf16": True, "gradient_checkpointing": True},
    }
    script, requests = read(tmp_path, json.dumps(text, indent=2), "config.json")
    assert script.format == "transformers"
    load, train = both(requests)
    assert load.model == "liuhaotian/llava-v1.5-7b"
    config = load.call.get("quantization_config")
    assert isinstance(config, Call) and config.get("bnb_4bit_compute_dtype") == Dotted("torch.bfloat16")
    assert train.setting("fp16") is True and train.setting("bf16") is True


def test_toml_settings_are_read_and_know_their_places(tmp_path: Path) -> None:
    text = 'model_name_or_path = "a/b"  # 模型\noutput_dir = "out"\nevaluation_strategy = "steps"\nbf16 = true\n'
    _, requests = read(tmp_path, text, "t.toml")
    site = requests.trains[0].site
    assert site is not None and site.line == 2
    start, end = site.spans["evaluation_strategy"]
    assert text.encode()[start:end].decode() == 'evaluation_strategy = "steps"'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("package.json", '{"name": "x", "version": "1", "scripts": {"build": "y"}}'),
        ("config.json", ('{"architectures": ["X"], "model_type": "llama", "torch_dtype": "float16", '
         '"quantization_config": {"load_in_4bit": true}}')),
        ("data.json", '[{"instruction": "a", "output": "b"}]'),
        ("zero2.json", '{"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 2}}'),
        ("accelerate.yaml", "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nmixed_precision: bf16\nuse_cpu: false\nfsdp_config: {}\n"),
        ("pyproject.toml", '[project]\nname = "x"\n[tool.ruff]\nline-length = 100\n'),
        ("compose.yaml", "services:\n  web:\n    image: x\n"),
        ("empty.yaml", ""),
        ("number.json", "3"),
        ("training_args.json", '{"learning_rate": 0.1, "seed": 1}'),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_asks_for_nothing_and_is_no_problem(tmp_path: Path, name: str, text: str) -> None:
    script, requests = read(tmp_path, text, name)
    assert requests == Requests()
    assert script.format == ""


@pytest.mark.parametrize(
    ("name", "text", "problem", "line"),
    [
        ("a.json", '{"fp16": true,\n "bf16": }', "not valid JSON", 2),
        ("a.json", '{"fp16": true,\n "fp16": false, "output_dir": "x"}', "twice", 2),
        ("a.yaml", "fp16: true\nbf16: [\n", "not valid YAML", 3),
        ("a.yaml", "fp16: true\noutput_dir: x\nfp16: false\n", "twice", 3),
        ("a.yaml", "\n".join(f"k{i}: *a" for i in range(200)), "aliases", 0),
        ("a.toml", "fp16 = true\nfp16 = false\n", "not valid TOML", 2),
        ("a.json", "[" * 100_000, "nested", 0),
        ("a.yaml", "[" * 20_000, "nested", 0),
        ("a.json", '{"x": "' + "a" * 3_000_000 + '"}', "MB", 0),
        ("a.json", "\x00\x01", "null byte", 0),
        ("a.json", "{" + '"a":{' * 50_000, "nested", 0),
    ],
    ids=lambda v: v[:12] if isinstance(v, str) else str(v),
)
def test_a_file_that_cannot_be_read_says_why_and_where(
    tmp_path: Path, name: str, text: str, problem: str, line: int
) -> None:
    path = tmp_path / name
    path.write_text(text)
    script, requests = read_config(path)
    assert problem in script.problem
    assert script.problem_line == line
    assert requests == Requests()


def test_yaml_without_pyyaml_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    path = tmp_path / "a.yaml"
    path.write_text("fp16: true\n")
    script, _ = read_config(path)
    assert "pip install pyyaml" in script.problem
