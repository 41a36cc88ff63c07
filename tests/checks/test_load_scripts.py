"""The load checks on whole scripts, read as the command reads them."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from qlora_checks import CHECKS
from qlora_doctor.facts import Facts
from qlora_doctor.gather.script import read_script
from qlora_doctor.judge import Case, judge
from qlora_doctor.source import Script
from qlora_doctor.testing import RTX_3060, facts

QD1 = tuple(c for c in CHECKS if c.code.startswith("QD1"))
NEW = facts(
    {"transformers": "5.23.0", "trl": "1.16.0", "peft": "0.21.2", "bitsandbytes": "0.50.2"},
    gpus=(RTX_3060,), environ={},
)  # fmt: skip
OLD = facts({"transformers": "4.44.2", "peft": "0.12.0", "bitsandbytes": "0.44.1"}, gpus=(RTX_3060,), environ={})


def codes(tmp_path: Path, source: str, world: Facts = NEW, floor: str = "warning") -> list[str]:
    """`QD123:5` for each finding at or above `floor`, by line."""
    path = tmp_path / "train.py"
    path.write_text(dedent(source), encoding="utf-8")
    script, requests = read_script(path)
    assert isinstance(script, Script) and not script.problem
    verdict = judge(QD1, world, [Case(requests, script)])
    assert not [o for o in verdict.outcomes if o.outcome == "crashed"]
    grave = {"info": ("info", "warning", "error"), "warning": ("warning", "error")}[floor]
    found = {(f.site.line if f.site else 0, f.code) for f in verdict.findings if f.severity in grave}
    return [f"{code}:{line}" for line, code in sorted(found)]


SOUND = """
import os
os.environ["HF_ENDPOINT"] = "https://hf-mirror.com"
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainingArguments

bnb = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_use_double_quant=True
)
name = "Qwen/Qwen3-4B"
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, quantization_config=bnb, dtype=torch.bfloat16, device_map="auto")
model = prepare_model_for_kbit_training(model)
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj"]))
args = TrainingArguments("out", eval_strategy="no", warmup_steps=10)
Trainer(model=model, args=args, train_dataset=None, processing_class=tokenizer).train()
"""


def test_a_sound_script_on_a_sound_stack_is_silent(tmp_path: Path) -> None:
    assert codes(tmp_path, SOUND, floor="info") == []


GUIDE = """
import torch
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

load_kwargs = {"trust_remote_code": True}
load_kwargs["quantization_config"] = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_compute_dtype=torch.float16, bnb_4bit_quant_type="nf4"
)
model = LlavaForConditionalGeneration.from_pretrained("liuhaotian/llava-v1.5-7b", device_map="auto", **load_kwargs)
"""


@pytest.mark.parametrize("world", [OLD, NEW], ids=["4.44", "5.23"])
def test_the_first_guides_script_fails_for_its_layout_and_not_for_its_dtype(tmp_path: Path, world: Facts) -> None:
    assert codes(tmp_path, GUIDE, world) == ["QD104:9"]
    assert codes(tmp_path, GUIDE, world, floor="info") == ["QD101:9", "QD102:9", "QD104:9"]


@pytest.mark.parametrize("version", ["0.43.3", "0.44.1", "0.48.2"])
def test_the_first_guides_table_has_the_same_cause_in_every_row(tmp_path: Path, version: str) -> None:
    row = facts({"transformers": "4.44.2", "peft": "0.12.0", "bitsandbytes": version}, gpus=(RTX_3060,), environ={})
    assert codes(tmp_path, GUIDE, row) == ["QD104:9"]
    mended = GUIDE.replace("device_map=", "torch_dtype=torch.float16, device_map=")
    assert codes(tmp_path, mended, row) == ["QD104:9"], "naming the dtype is not the cure"
    assert codes(tmp_path, GUIDE.replace("liuhaotian/llava-v1.5-7b", "llava-hf/llava-1.5-7b-hf"), row) == []


def test_the_second_guides_debug_script_is_a_type_error_today(tmp_path: Path) -> None:
    source = """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model_name = "Qwen/Qwen3-4B-Thinking-2507"
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForCausalLM.from_pretrained(model_name, load_in_4bit=True, device_map="auto")
    """
    assert codes(tmp_path, source) == ["QD120:5"]
    assert codes(tmp_path, source, OLD) == ["QD108:5"], "Qwen3 came with 4.51"


def test_the_third_guides_trainer_uses_names_that_are_gone(tmp_path: Path) -> None:
    source = """
    from transformers import Trainer, TrainingArguments
    args = TrainingArguments(output_dir="o", evaluation_strategy="steps", eval_steps=50, optim="paged_adamw_32bit")
    trainer = Trainer(model=model, args=args, tokenizer=tokenizer)
    trainer.train()
    """
    assert codes(tmp_path, source) == ["QD121:3", "QD121:4"]
    assert codes(tmp_path, source, OLD) == []


COMPATIBLE = """
import inspect
import transformers
from packaging import version
from transformers import TrainingArguments, Trainer

key = "eval_strategy" if "eval_strategy" in inspect.signature(TrainingArguments).parameters else "evaluation_strategy"
one = TrainingArguments("o", **{key: "no"})
if version.parse(transformers.__version__) < version.parse("4.41"):
    two = TrainingArguments("o", evaluation_strategy="no")
else:
    two = TrainingArguments("o", eval_strategy="no")
try:
    three = TrainingArguments("o", evaluation_strategy="no")
except TypeError:
    three = TrainingArguments("o", eval_strategy="no")
settings = {"output_dir": "o"}
if version.parse(transformers.__version__) >= version.parse("4.46"):
    settings["eval_strategy"] = "no"
else:
    settings["evaluation_strategy"] = "no"
for args in (one, two, three, TrainingArguments(**settings)):
    Trainer(model=None, args=args).train()
try:
    from transformers import AutoModelForImageTextToText
except ImportError:
    from transformers import AutoModelForVision2Seq as AutoModelForImageTextToText
"""


@pytest.mark.parametrize("world", [OLD, NEW], ids=["4.44", "5.23"])
def test_code_that_tests_the_version_is_silent_in_every_version(tmp_path: Path, world: Facts) -> None:
    assert codes(tmp_path, COMPATIBLE, world) == []


def test_an_environment_variable_is_judged_by_its_place(tmp_path: Path) -> None:
    late = 'import os\nimport transformers\nos.environ["HF_ENDPOINT"] = "https://hf-mirror.com"\n'
    assert codes(tmp_path, late) == ["QD130:3"]
    early = 'import os\nos.environ["HF_ENDPOINT"] = "https://hf-mirror.com"\nimport transformers\n'
    assert codes(tmp_path, early) == []
    cuda = 'import os\nimport torch\nos.environ["CUDA_VISIBLE_DEVICES"] = "0"\nimport peft\n'
    assert codes(tmp_path, cuda) == []
    too_late = 'import os\nimport peft\nos.environ["CUDA_VISIBLE_DEVICES"] = "1"\n'
    assert codes(tmp_path, too_late) == ["QD130:3"]


def test_casts_are_judged_by_the_object_they_are_called_on(tmp_path: Path) -> None:
    source = """
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained("x/y", quantization_config=bnb, dtype=torch.bfloat16)
    model = model.half()
    model.to("cuda")
    model.to(torch.float16)
    plain = AutoModelForCausalLM.from_pretrained("x/y").half()
    adapted = get_peft_model(model, None)
    adapted.half()
    loss = adapted(1).float()
    """
    assert codes(tmp_path, source) == ["QD117:7", "QD117:9"]


def test_a_branch_that_quantises_is_not_blamed_for_the_other_branchs_cast(tmp_path: Path) -> None:
    source = """
    import argparse
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    args = argparse.ArgumentParser().parse_args()
    bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16) if args.qlora else None
    model = AutoModelForCausalLM.from_pretrained("x/y", quantization_config=bnb, dtype=torch.bfloat16)
    if not args.qlora:
        model = model.half()
    """
    assert codes(tmp_path, source) == []


def test_a_compute_dtype_chosen_by_the_scripts_flags_is_silent(tmp_path: Path) -> None:
    source = """
    import argparse
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    args = argparse.ArgumentParser().parse_args()
    compute = torch.float16 if args.fp16 else (torch.bfloat16 if args.bf16 else torch.float32)
    bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=compute, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained("x/y", quantization_config=bnb, dtype=compute)
    """
    assert codes(tmp_path, source) == []


def test_a_helper_that_builds_training_arguments_is_judged(tmp_path: Path) -> None:
    source = """
    from transformers import TrainingArguments
    def settings(out):
        return TrainingArguments(output_dir=out, evaluation_strategy="no")
    """
    assert codes(tmp_path, source) == ["QD122:4"]


def test_a_subclass_of_training_arguments_may_have_fields_of_its_own(tmp_path: Path) -> None:
    source = """
    from dataclasses import dataclass
    import transformers
    @dataclass
    class TrainingArguments(transformers.TrainingArguments):
        lora_enable: bool = False
    args = TrainingArguments(output_dir="o", lora_enable=True, evaluation_strategy="no")
    transformers.Trainer(model=None, args=args).train()
    """
    found = codes(tmp_path, source)
    assert found in (["QD121:7"], [])
