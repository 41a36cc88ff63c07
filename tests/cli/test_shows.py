"""What the doctor is for: a stack that kills the process, a project full of faults, and silence where all is well."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

DEADLY = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
LOAD = """
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

model = AutoModelForCausalLM.from_pretrained(
    "Qwen/Qwen2.5-0.5B",
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    ),
    dtype=torch.bfloat16,
)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_where_importing_torch_or_bitsandbytes_kills_the_process_the_report_is_still_printed(
    process: Any, environment: Any, tmp_path: Path
) -> None:
    environment.install("torch", "2.13.0", module=DEADLY)
    environment.install("bitsandbytes", "0.42.0", "scipy", module=DEADLY)
    environment.install("transformers", "5.23.0", module=DEADLY)
    for name in ("torch", "bitsandbytes"):
        done = subprocess.run([environment.python, "-c", f"import {name}"], check=False, capture_output=True)
        assert done.returncode == -signal.SIGSEGV
    (tmp_path / "train.py").write_text(LOAD, encoding="utf-8")
    run = process("check", "train.py", "--python", environment.python, "--offline")
    assert run.code == 1
    assert "bitsandbytes 0.42.0" in run.out.replace("\n    ", " ")
    assert run.err == ""


PLANTED = Path(__file__).parents[2] / "examples" / "planted"


@pytest.fixture
def broken(environment: Any) -> Any:
    """The environment of the planted project, by metadata alone: nothing in it can be imported."""
    environment.install("torch", "2.13.0", "filelock")
    environment.install("transformers", "5.23.0", "tqdm", "filelock")
    environment.install("peft", "0.11.1", "accelerate>=0.21.0", "transformers")
    environment.install("bitsandbytes", "0.42.0", "scipy")
    for name, version in {
        "filelock": "4.2.11", "tqdm": "4.70.1", "huggingface-hub": "2.4.0", "numpy": "2.4.6", "regex": "2026.11.15",
        "safetensors": "0.8.0", "tokenizers": "0.23.3", "packaging": "26.3", "pyyaml": "6.0.3", "pillow": "13.0.0",
    }.items():  # fmt: skip
        environment.install(name, version)
    (environment.site / "torch").mkdir()
    version = "__version__ = '2.13.0+cpu'\ncuda = None\nhip = None\n"
    (environment.site / "torch" / "version.py").write_text(version, encoding="utf-8")
    return environment


# What is wrong, by the code that says so, with its severity on this stack and words that its message must hold.
FAULTS = [
    ("bitsandbytes is older than transformers accepts", "QD002", "error", "bitsandbytes 0.42.0"),
    ("peft is older than transformers accepts, but trains", "QD002", "warning", "peft 0.11.1"),
    ("accelerate is missing", "QD001", "error", "accelerate"),
    ("scipy is missing", "QD004", "warning", "scipy"),
    ("the Hub's address is dead", "QD202", "error", "127.0.0.1:9"),
    ("no dtype in a 4-bit load", "QD101", "info", "dtype"),
    ("trust_remote_code where it changes nothing", "QD102", "info", "trust_remote_code"),
    ("fp16 and bf16 together", "QD621", "error", "fp16"),
    ("an argument that transformers 5 does not take", "QD121", "error", "evaluation_strategy"),
    ("an argument of Trainer that transformers 5 does not take", "QD121", "error", "processing_class"),
    ("prepare_model_for_kbit_training is imported and not called", "QD601", "info", "prepare_model_for_kbit_training"),
    ("a processor from a repository that has none", "QD302", "error", "no processor files"),
    ("no target_modules where peft has no default", "QD604", "error", "target_modules"),
    ("a checkpoint that no transformers class can load", "QD104", "error", "own layout"),
]


def test_the_planted_project_every_fault_is_explained_in_one_run(
    doctor: Any, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    report = doctor("check", PLANTED / "train.py", "--python", broken.python, "--format", "json").json
    found = [(f["code"], f["severity"], f["message"]) for f in report["findings"]]
    missed = [
        title
        for title, code, severity, words in FAULTS
        if not any(code in (c, "") and severity in (s, "") and words in m for c, s, m in found)
    ]
    assert missed == [], "\n".join(" ".join(f) for f in found)
    assert report["exit_code"] == 1
    assert [o for o in report["outcomes"] if o["outcome"] == "crashed"] == []


def test_the_shipped_example_shows_the_same_faults_everywhere(doctor: Any) -> None:
    options = (PLANTED / "train.py", "--facts", PLANTED / "facts.json", "--format", "json")
    report = doctor("check", *options)
    assert report.out == doctor("check", *options).out
    assert set(report.codes) >= {"QD001", "QD002", "QD101", "QD102", "QD104", "QD202", "QD601", "QD621"}


def test_the_report_goes_through_the_environment_and_then_file_by_file(doctor: Any, tmp_path: Path) -> None:
    for name in ("b.py", "a.py"):
        (tmp_path / name).write_bytes((PLANTED / "train.py").read_bytes())
    run = doctor("check", tmp_path / "b.py", tmp_path / "a.py", "--facts", PLANTED / "facts.json")
    heads = [
        line.partition(": ")[0] for line in run.out.splitlines() if re.match(r"(environment|.*\.py:\d+:\d+): ", line)
    ]
    groups = [head.rpartition("/")[2].partition(":")[0] for head in heads]
    assert list(dict.fromkeys(groups)) == ["environment", "a.py", "b.py"]
    assert groups == sorted(groups, key=["environment", "a.py", "b.py"].index)


SOUND = """
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

name = "Qwen/Qwen2.5-0.5B"
config = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)
model = AutoModelForCausalLM.from_pretrained(name, quantization_config=config, dtype=torch.bfloat16, device_map={"": 0})
model = prepare_model_for_kbit_training(model)
model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
tokenizer = AutoTokenizer.from_pretrained(name)
data = load_dataset("json", data_files="train.jsonl", split="train")
data = data.map(lambda row: tokenizer(row["text"], truncation=True, max_length=512), remove_columns=data.column_names)
trainer = Trainer(
    model=model,
    args=TrainingArguments(output_dir="output", bf16=True, learning_rate=2e-4, per_device_train_batch_size=1),
    train_dataset=data,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    processing_class=tokenizer,
)
trainer.train()
"""


def test_a_sound_script_on_a_sound_stack_is_one_line(doctor: Any, facts_file: Any) -> None:
    from qlora_doctor.facts import BnbBuild, Driver, Hub, TorchBuild
    from qlora_doctor.testing import RTX_3060

    saved = facts_file(
        {
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "peft": "0.21.2",
            "bitsandbytes": "0.50.2",
            "accelerate": "1.15.0",
            "datasets": "4.4.1",
            "huggingface-hub": "2.4.0",
            "tokenizers": "0.23.3",
            "safetensors": "0.8.0",
            "numpy": "2.4.6",
            "packaging": "26.3",
            "pyyaml": "6.0.3",
            "regex": "2026.11.15",
            "tqdm": "4.70.1",
            "filelock": "4.2.11",
        },
        torch=TorchBuild("2.13.0+cu130", "13.0"),
        bitsandbytes=BnbBuild("0.50.2", ("cpu", "cuda121", "cuda128", "cuda130")),
        gpus=(RTX_3060,),
        driver=Driver("580.95.05", "13.0"),
        hub=Hub(reachable=True),
        environ={},
        shadows=(),
    )
    Path("train.py").write_text(SOUND, encoding="utf-8")
    run = doctor("check", "train.py", "--facts", saved)
    assert (run.code, run.out.count("\n")) == (0, 1), run.out
    assert run.out.startswith("nothing found in train.py (")


def test_a_comment_on_the_line_silences_one_code_there_and_nowhere_else(doctor: Any, facts_file: Any) -> None:
    saved = facts_file({"transformers": "4.44.2", "bitsandbytes": "0.43.3", "accelerate": "0.33.0"}, gpus=())
    load = (
        "import transformers\n"
        "config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4')\n"
        "a = transformers.AutoModelForCausalLM.from_pretrained('Qwen/Qwen2-7B', quantization_config=config){comment}\n"
        "b = transformers.AutoModelForCausalLM.from_pretrained('Qwen/Qwen2-7B', quantization_config=config)\n"
    )

    def lines(comment: str) -> list[int]:
        Path("train.py").write_text(load.replace("{comment}", comment), encoding="utf-8")
        report = doctor("check", "train.py", "--facts", saved, "--select", "QD101", "--format", "json").json
        return sorted(f["location"]["line"] for f in report["findings"])

    assert lines("") == [3, 4]
    assert lines("  # qlora-doctor: ignore[QD101]") == [4]
    assert lines("  # qlora-doctor: ignore[quantized-load-without-dtype]") == [4]
    assert lines("  # qlora-doctor: ignore[QD102]") == [3, 4]
