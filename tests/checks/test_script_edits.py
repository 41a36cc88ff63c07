"""From the text of a script to its findings, and from an edit to a script in which they are gone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from qlora_checks import CHECKS
from qlora_doctor.finding import Finding
from qlora_doctor.fix import SourceEdit
from qlora_doctor.gather.script import read_script
from qlora_doctor.judge import Case, judge
from qlora_doctor.testing import RTX_3060, facts

NEW = facts(
    {"transformers": "5.23.0", "peft": "0.21.2", "trl": "1.16.0", "bitsandbytes": "0.50.2", "torch": "2.13.0"},
    gpus=(RTX_3060,),
)
HEAD = """
import torch
from transformers import (AutoModelForCausalLM, AutoProcessor, AutoTokenizer, BitsAndBytesConfig,
                          DataCollatorForLanguageModeling, LlavaForConditionalGeneration, Trainer, TrainingArguments)
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

名字 = "微调"
bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float16)
"""
LOAD = 'model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-4B", quantization_config=bnb)\n'
PREPARE = "model = prepare_model_for_kbit_training(model)\n"
LORA = 'config = LoraConfig(r=8, target_modules=["q_proj"])\n'
PEFT = "model = get_peft_model(model, config)\n"
TRAIN = (
    'args = TrainingArguments("out", optim="adamw_torch")\nTrainer(model=model, args=args, train_dataset=ds).train()\n'
)


def found(path: Path, code: str) -> list[Finding]:
    script, requests = read_script(path)
    assert not script.problem
    checks = [c for c in CHECKS if c.code == code]
    verdict = judge(checks, NEW, [Case(requests, script)])
    assert [o.outcome for o in verdict.outcomes if o.outcome == "crashed"] == []
    return list(verdict.findings)


def apply(path: Path, fix: object) -> str:
    assert isinstance(fix, SourceEdit)
    data = path.read_bytes()
    for edit in sorted(fix.edits, key=lambda e: e.start, reverse=True):
        data = data[: edit.start] + edit.text.encode() + data[edit.end :]
    head = "".join(line + "\n" for line in fix.imports)
    path.write_bytes(head.encode() + data)
    ast.parse(data)
    return data.decode()


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        pytest.param(
            "QD601",
            LOAD + LORA + PEFT + TRAIN,
            "get_peft_model(prepare_model_for_kbit_training(model), config)",
            id="prepare",
        ),
        pytest.param("QD611", LOAD + PREPARE + LORA + PEFT + "model.half()\n" + TRAIN, "\nmodel\n", id="half"),
        pytest.param(
            "QD611",
            LOAD + PREPARE + LORA + "model = get_peft_model(model, config, autocast_adapter_dtype=False)\n" + TRAIN,
            "autocast_adapter_dtype=True)",
            id="autocast",
        ),
        pytest.param(
            "QD631",
            "class Mine(Trainer):\n"
            "    def compute_loss(self, model, inputs, return_outputs: bool = False):\n"
            "        return super().compute_loss(model, inputs, return_outputs)\n",
            "return_outputs: bool = False, num_items_in_batch=None):",
            id="compute_loss",
        ),
        pytest.param(
            "QD631",
            "class Mine(Trainer):\n    def training_step(self, model, inputs, **kwargs):\n        pass\n",
            "inputs, num_items_in_batch=None, **kwargs):",
            id="training_step",
        ),
        pytest.param(
            "QD302",
            'processor = AutoProcessor.from_pretrained("liuhaotian/llava-v1.5-7b")\n',
            "AutoProcessor.from_pretrained('llava-hf/llava-1.5-7b-hf')",
            id="processor",
        ),
        pytest.param(
            "QD303",
            "def load(name):\n    try:\n        p = AutoProcessor.from_pretrained(name)\n    except OSError as e:\n"
            "        print(e)\n        p = AutoTokenizer.from_pretrained(name)\n    return p\n",
            "    except OSError as e:\n        raise\n    return p\n",
            id="fallback",
        ),
        pytest.param(
            "QD705",
            LOAD + "collator = DataCollatorForLanguageModeling(\n    tokenizer=tok,\n)\n",
            "    tokenizer=tok, mlm=False,\n)",
            id="collator",
        ),
    ],
)
def test_an_edit_removes_its_finding_from_the_script(tmp_path: Path, code: str, text: str, expected: str) -> None:
    path = tmp_path / "train.py"
    path.write_text(HEAD + text, encoding="utf-8")
    (finding,) = found(path, code)
    assert expected in apply(path, finding.fixes[0])
    assert found(path, code) == []


SOUND = HEAD + (
    'tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen3-4B")\n'
    "if tokenizer.pad_token is None:\n    tokenizer.pad_token = tokenizer.eos_token\n"
    + LOAD
    + PREPARE
    + LORA
    + PEFT
    + 'args = TrainingArguments("out", bf16=True, gradient_checkpointing=True, optim="paged_adamw_8bit")\n'
    "collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)\n"
    "Trainer(model=model, args=args, train_dataset=ds, data_collator=collator).train()\n"
)


def test_a_sound_script_on_a_sound_stack_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(SOUND, encoding="utf-8")
    for family in ("QD3", "QD6", "QD7"):
        assert [f.text for c in CHECKS if c.code.startswith(family) for f in found(path, c.code)] == []


@pytest.mark.parametrize(
    ("code", "old", "new", "severity"),
    [
        ("QD608", PREPARE + LORA + PEFT, LORA + PEFT + PREPARE, "error"),
        ("QD602", LORA + PEFT, "", "error"),
        ("QD605", 'target_modules=["q_proj"]', 'target_modules="q_proj"', "error"),
        ("QD605", 'target_modules=["q_proj"]', 'target_modules=["c_attn"]', "error"),
        ("QD621", "bf16=True", "bf16=True, fp16=True", "error"),
        ("QD623", "bf16=True", 'bf16=True, eval_strategy="steps"', "error"),
        ("QD624", "bf16=True", "load_best_model_at_end=True", "error"),
        ("QD701", "if tokenizer.pad_token is None:\n    tok", "if True:\n    tok", "warning"),
        ("QD703", "bnb = ", 'tokenizer.padding_side = "left"\nbnb = ', "info"),
        ("QD603", ").train()\n", ").train()\nmodel.merge_and_unload()\n", "info"),
    ],
)
def test_one_fault_in_a_sound_script_is_found_at_its_severity(
    tmp_path: Path, code: str, old: str, new: str, severity: str
) -> None:
    assert old in SOUND
    path = tmp_path / "train.py"
    path.write_text(SOUND.replace(old, new), encoding="utf-8")
    assert [f.severity for f in found(path, code)] == [severity]
