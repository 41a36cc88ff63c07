"""The planted project that nine other tools were tried on: eleven faults, of which the best of them found four.

The environment is described by dist-info folders alone, as nothing in it needs to be importable.
"""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = """\
import torch
from transformers import AutoProcessor, BitsAndBytesConfig, LlavaForConditionalGeneration, Trainer, TrainingArguments
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

MODEL = "liuhaotian/llava-v1.5-7b"
bnb_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
model = LlavaForConditionalGeneration.from_pretrained(
    MODEL, quantization_config=bnb_config, device_map="auto", trust_remote_code=True
)
processor = AutoProcessor.from_pretrained(MODEL)
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, task_type="CAUSAL_LM"))
args = TrainingArguments(
    output_dir="out",
    fp16=True,
    bf16=True,
    evaluation_strategy="steps",
    per_device_train_batch_size=1,
)
trainer = Trainer(model=model, args=args, train_dataset=dataset, eval_dataset=dataset, tokenizer=processor.tokenizer)
trainer.train()
"""

SOUND = """\
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainingArguments
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

MODEL = "Qwen/Qwen3-0.6B"
bnb_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained(MODEL, quantization_config=bnb_config, dtype=torch.bfloat16)
tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = prepare_model_for_kbit_training(model)
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
args = TrainingArguments(output_dir="out", bf16=True, per_device_train_batch_size=1, use_cpu=True)
trainer = Trainer(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)
trainer.train()
"""

COMMON = {
    "torch": "2.13.0+cpu",
    "transformers": "5.23.0",
    "huggingface_hub": "2.4.0",
    "tokenizers": "0.23.3",
    "numpy": "2.4.6",
    "safetensors": "0.8.0",
    "regex": "2026.11.15",
    "tqdm": "4.70.1",
}
REQUIRES = {
    "peft 0.11.1": ("numpy>=1.17", "torch>=1.13.0", "transformers", "tqdm", "accelerate>=0.21.0", "safetensors"),
    "bitsandbytes 0.42.0": ("scipy",),
    "transformers 5.23.0": ("huggingface-hub<3.0,>=1.31.0", "numpy>=1.17", 'accelerate>=1.1.0; extra == "torch"'),
}


def environments() -> ModuleType:
    path = Path(__file__).parent / "gather" / "environments.py"
    spec = importlib.util.spec_from_file_location("planted_environments", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def environment(folder: Path, versions: dict[str, str]) -> Path:
    """The interpreter of an environment that has these distributions, by their metadata alone."""
    made = environments()
    python, site = made.virtual_environment(folder)
    for name, version in {**COMMON, **versions}.items():
        made.install(site, name, version, requires=REQUIRES.get(f"{name} {version}", ()))
    (site / "torch" / "version.py").write_text("__version__ = '2.13.0+cpu'\ncuda = None\nhip = None\n")
    (site / "bitsandbytes" / "libbitsandbytes_cpu.so").touch()
    return Path(python)


@pytest.fixture(autouse=True, scope="module")
def away_from_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A mirror that is down, an empty cache, no proxy."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in (
            "http_proxy",
            "https_proxy",
            "all_proxy",
            "HF_HUB_OFFLINE",
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
        ):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield


def check(project: Path, python: Path, script: str, *options: str) -> tuple[int, dict[str, Any]]:
    """`qlora-doctor check train.py` in a project, as a user runs it."""
    project.mkdir()
    (project / "train.py").write_text(script, encoding="utf-8")
    command = [sys.executable, "-m", "qlora_doctor", "check", "train.py", "--python", str(python), "--format", "json"]
    done = subprocess.run([*command, *options], check=False, cwd=project, capture_output=True, text=True, timeout=60)
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("planted")
    python = environment(folder / "venv", {"peft": "0.11.1", "bitsandbytes": "0.42.0"})
    code, report = check(folder / "project", python, SCRIPT)
    assert code == 1
    found: list[dict[str, Any]] = report["findings"]
    return found


def severities(found: list[dict[str, Any]], *words: str) -> list[str]:
    """The severities of the findings whose message holds all of `words`."""
    return [f["severity"] for f in found if all(w in f["message"] for w in words)]


def test_all_faults_of_the_environment_are_explained_at_the_severity_of_their_effect(
    planted: list[dict[str, Any]],
) -> None:
    assert severities(planted, "transformers 5.23.0 does not work with bitsandbytes 0.42.0", "0.46.1") == ["error"]
    assert severities(planted, "transformers 5.23.0 does not work with peft 0.11.1", "get_peft_model") == ["warning"]
    assert severities(planted, "accelerate is not installed", "refuses a quantised load") == ["error"]
    assert severities(planted, "scipy (not installed)", "a 4-bit load does not call that") == ["warning"]
    assert severities(planted, "http://127.0.0.1:", "HF_ENDPOINT", "nothing listens there") == ["error"]


def test_each_fault_of_the_environment_is_said_once(planted: list[dict[str, Any]]) -> None:
    of_environment = sorted(f["code"] for f in planted if f["code"].startswith(("QD0", "QD2")))
    assert of_environment == ["QD001", "QD002", "QD002", "QD004", "QD202"]


def test_all_faults_of_the_script_are_explained_at_the_severity_of_their_effect(planted: list[dict[str, Any]]) -> None:
    assert severities(planted, "names no dtype") == ["info"]
    assert severities(planted, "trust_remote_code=True has no effect") == ["info"]
    assert severities(planted, "fp16=True and bf16=True") == ["error"]
    assert severities(planted, "evaluation_strategy=", "eval_strategy") == ["error"]
    assert severities(planted, "tokenizer=", "processing_class") == ["error"]
    assert severities(planted, "prepare_model_for_kbit_training") == ["info"]
    assert severities(planted, "LoraConfig names no target_modules") == ["error"]
    assert severities(planted, "holds no processor files", "AutoProcessor") == ["error"]
    assert severities(planted, "LLaVA's own layout") == ["error"]


def test_each_fault_of_the_script_is_shown_at_its_line(planted: list[dict[str, Any]]) -> None:
    of_script = [f for f in planted if not f["code"].startswith(("QD0", "QD2", "QD4"))]
    lines = SCRIPT.splitlines()
    for found in of_script:
        place = found["location"]
        assert place["path"].endswith("train.py")
        assert lines[place["line"] - 1][place["column"] - 1 :].strip()
    assert len(of_script) == 9


def test_a_sound_script_on_a_sound_stack_is_silent(tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", {"peft": "0.21.2", "bitsandbytes": "0.50.2", "accelerate": "1.15.0"})
    code, report = check(tmp_path / "project", python, SOUND, "--offline")
    assert [f["message"] for f in report["findings"] if f["severity"] != "info"] == []
    assert code == 0
