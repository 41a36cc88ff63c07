"""Every check that has a fix: a small script shows the finding, `fix --apply --unsafe` ends it, `undo` gives the bytes back.

All of it through the command line, with an environment that is described by metadata alone and a stand-in for nvidia-smi.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.registry import installed_checks

STACK = {
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "bitsandbytes": "0.50.2",
    "accelerate": "1.15.0",
    "torch": "2.13.0",
    "trl": "1.16.0",
    "datasets": "5.0.0",
    "huggingface-hub": "2.4.0",
}
T4 = "0, Tesla T4, GPU-1, 550.54.15, 15109, 15000, Default, 7.5, [N/A]"
RTX_3060 = "0, NVIDIA GeForce RTX 3060, GPU-1, 550.54.15, 12288, 12000, Default, 8.6, [N/A]"
A100 = "0, NVIDIA A100, GPU-1, 550.54.15, 40960, 40000, Default, 8.0, [N/A]"
# What a made-up environment is bound to lack; a case may ask for one of them all the same.
BESIDE = ("QD0", "QD2", "QD4")
# Their fixes change packages; tests/repair/test_packages.py and test_plan.py show them.
BY_PIP = re.compile(r"QD0\d\d|QD40\d")
# What this machine cannot show.
ELSEWHERE = {
    "QD320": "its fix is shown only",
    "QD336": "needs a checkpoint; tests/models/test_targets.py proves the fix",
    "QD207": "needs a Hub whose storage is blocked; tests/models/test_hub_routes.py shows what the fix does",
    "QD217": "needs a Hub on another machine that is asked over plain http, and a token",
    "QD419": "needs Windows",
    "QD424": "needs a CUDA build of torch and its libraries; test_simulate.py shows what the fix does",
    "QD615": "needs a launcher and several GPUs; tests/checks/test_launch.py shows the fix",
    "QD433": "needs a CUDA build of torch; tests/checks/test_cuda_beside.py proves the fix",
    "QD501": "needs a card of just the right size; tests/checks/test_memory_load.py proves the fix",
    "QD513": "needs a card of just the right size; tests/checks/test_memory_load.py proves the fix",
    "QD441": "needs two kinds of GPU; tests/checks/test_cuda_beside.py proves the fix",
    "QD438": "needs a ROCm build of torch and an AMD GPU; tests/checks/test_cuda_beside.py proves the fix",
    "QD439": "needs a ROCm build of torch; tests/checks/test_cuda_beside.py proves the fix",
}


@dataclass(frozen=True)
class Case:
    """A script (and what it runs in) in which one check finds something that can be fixed."""

    script: str
    packages: Mapping[str, str] = field(default_factory=dict)
    gpu: str = A100
    environ: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    cached: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    offline: bool = True
    ignore: str = ""


LOAD = """import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B", quantization_config=bnb, dtype=torch.bfloat16)
"""
TRAIN = (
    LOAD
    + """
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import Trainer, TrainingArguments

model = prepare_model_for_kbit_training(model)
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
args = TrainingArguments(
    output_dir="out",
    bf16=True,
)
trainer = Trainer(model=model, args=args, train_dataset=load_rows())
trainer.train()
"""
)
SFT = (
    LOAD
    + """
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

trainer = SFTTrainer(
    model=model,
    args=SFTConfig(output_dir="out", bf16=True),
    train_dataset=load_rows(),
    peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.train()
"""
)
LLAVA = """import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
processor = AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf")
model = AutoModelForImageTextToText.from_pretrained(
    "llava-hf/llava-1.5-7b-hf", quantization_config=bnb, dtype=torch.bfloat16
)
"""
BLIP = LLAVA.replace("llava-hf/llava-1.5-7b-hf", "Salesforce/instructblip-flan-t5-xl")


def change(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


def args(line: str) -> str:
    """The training script with another line among its training arguments."""
    return change(TRAIN, ("    bf16=True,\n", f"    bf16=True,\n    {line}\n"))


COLLATOR = """from transformers import AutoTokenizer, DataCollatorForLanguageModeling
tokenizer = AutoTokenizer.from_pretrained('Qwen/Qwen3-0.6B')
trainer = Trainer(model=model, data_collator=DataCollatorForLanguageModeling(tokenizer),"""

SOURCES = {
    "transformers/__init__.py": "from .training_args import TrainingArguments\nfrom .trainer import Trainer\n",
    "transformers/training_args.py": "from dataclasses import dataclass\n\n\n@dataclass\nclass TrainingArguments:\n"
    "    output_dir: str = ''\n    bf16: bool = False\n",
}
OVERRIDE = """class Mine(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        return model(**inputs).loss


"""
VISION_TRAIN = """from datasets import load_dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import Trainer, TrainingArguments


def collate(rows):
    return processor(text=[r["text"] for r in rows], images=[r["image"] for r in rows], return_tensors="pt")


model = prepare_model_for_kbit_training(model)
model = get_peft_model(model, LoraConfig(r=8, target_modules=r".*language_model.*q_proj"))
rows = load_dataset("json", data_files="rows.jsonl", split="train")
args = TrainingArguments(output_dir="out", bf16=True)
Trainer(model=model, args=args, train_dataset=rows, data_collator=collate).train()
"""

CASES: dict[str, Case] = {
    "QD101": Case(change(LOAD, (", dtype=torch.bfloat16)", ")"))),
    "QD102": Case(
        change(LOAD, ("bnb, dtype=torch.bfloat16)\n", "bnb, dtype=torch.bfloat16, trust_remote_code=True)\n"))
    ),
    "QD103": Case(change(LOAD, (", dtype=torch.bfloat16)", ', dtype="bf16")'))),
    "QD104": Case(change(LLAVA, ("llava-hf/llava-1.5-7b-hf", "liuhaotian/llava-v1.5-7b"))),
    "QD106": Case(change(BLIP, ("dtype=torch.bfloat16\n", "dtype=torch.float16\n"))),
    "QD110": Case(change(LOAD, (", bnb_4bit_compute_dtype=torch.bfloat16", ""))),
    "QD111": Case(change(LOAD, (' bnb_4bit_quant_type="nf4",', ""))),
    "QD112": Case(change(LOAD, ("load_in_4bit=True,", "load_in_4bit=True, load_in_8bit=True,"))),
    "QD113": Case(change(LOAD, ("load_in_4bit=True, ", ""))),
    "QD114": Case(LOAD, gpu=T4),
    "QD115": Case(change(LOAD, ("load_in_4bit=True,", "load_in_4bit=True, llm_int8_threshold=6,"))),
    "QD116": Case(change(LLAVA, ("load_in_4bit=True,", 'load_in_4bit=True, llm_int8_skip_modules=["vision"],'))),
    "QD117": Case(LOAD + "model = model.half()\n"),
    "QD118": Case(LOAD + 'model = model.to("cuda")\n', packages={"transformers": "4.44.2", "bitsandbytes": "0.42.0"}),
    "QD120": Case(change(LOAD, (", dtype=", ", torch_dtype="))),
    "QD121": Case(args('evaluation_strategy="no",')),
    "QD123": Case("from transformers import AutoModelForVision2Seq\n" + LOAD + "print(AutoModelForVision2Seq)\n"),
    "QD125": Case(change(LOAD, ("bnb, dtype=torch.bfloat16)\n", 'bnb, dtype=torch.bfloat16, devce_map="auto")\n'))),
    "QD130": Case('import transformers\nimport os\nos.environ["HF_ENDPOINT"] = "https://hub.example"\n' + LOAD),
    "QD302": Case(
        change(
            LLAVA,
            (
                'AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf")',
                'AutoProcessor.from_pretrained("liuhaotian/llava-v1.5-7b")',
            ),
        )
    ),
    "QD303": Case(
        LLAVA.replace(
            'processor = AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf")\n',
            "from transformers import AutoTokenizer\n\ntry:\n"
            '    processor = AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf")\n'
            "except Exception:\n"
            '    processor = AutoTokenizer.from_pretrained("llava-hf/llava-1.5-7b-hf")\n',
        )
    ),
    "QD502": Case(args("per_device_train_batch_size=256,"), gpu=RTX_3060),
    "QD503": Case(change(SFT, ("bf16=True)", "bf16=True, max_length=16384)")), gpu=RTX_3060),
    "QD508": Case(
        change(
            TRAIN,
            ("model = prepare_model_for_kbit_training(model)\n", ""),
            ("bf16=True", "bf16=True, per_device_train_batch_size=8"),
        ),
        gpu=RTX_3060,
    ),
    "QD601": Case(change(TRAIN, ("model = prepare_model_for_kbit_training(model)\n", ""))),
    "QD604": Case(
        change(LLAVA, ("import torch\n", "import torch\nfrom peft import LoraConfig, get_peft_model\n"))
        + "model = get_peft_model(model, LoraConfig(r=8))\nfrom transformers import Trainer, TrainingArguments\n"
        "Trainer(model, TrainingArguments(output_dir='o'), train_dataset=rows).train()\n"
    ),
    "QD605": Case(change(TRAIN, ('["q_proj", "v_proj"]', '["c_attn", "c_proj"]'))),
    "QD606": Case(
        change(LLAVA, ("import torch\n", "import torch\nfrom peft import LoraConfig, get_peft_model\n"))
        + "model = get_peft_model(model, LoraConfig(r=8, target_modules='all-linear'))\nfrom transformers import Trainer, TrainingArguments\n"
        "Trainer(model, TrainingArguments(output_dir='o'), train_dataset=rows).train()\n"
    ),
    "QD609": Case(
        change(
            SFT,
            (
                "trainer = SFTTrainer(",
                "from peft import get_peft_model\nmodel = get_peft_model(model, LoraConfig(r=8))\ntrainer = SFTTrainer(",
            ),
        )
    ),
    "QD611": Case(change(TRAIN, ("args = Train", "model = model.half()\nargs = Train"))),
    "QD612": Case(change(SFT, ("bf16=True", "fp16=True"))),
    "QD613": Case(
        change(
            args('gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True},'),
            ("import torch\n", "import os\nimport torch\n\nRANK = int(os.environ['LOCAL_RANK'])\n"),
        )
    ),
    "QD617": Case(
        change(
            args('optim="paged_adamw_8bit", fsdp="full_shard",'),
            ('nf4",', 'nf4", bnb_4bit_quant_storage=torch.bfloat16,'),
        )
    ),
    "QD618": Case(args('optim="adamw_torch", fsdp="full_shard",')),
    "QD621": Case(args("fp16=True,")),
    "QD622": Case(change(TRAIN, ("torch.bfloat16", "torch.float16")), gpu=T4),
    "QD623": Case(args('eval_strategy="epoch",')),
    "QD624": Case(
        change(
            args('eval_strategy="epoch", save_strategy="steps", load_best_model_at_end=True,'),
            ("train_dataset=load_rows()", "train_dataset=load_rows(), eval_dataset=load_rows()"),
        )
    ),
    "QD626": Case(args('optim="adamw_bnb_8bit",'), gpu="", packages={"bitsandbytes": "0.48.2"}),
    "QD705": Case(
        change(
            TRAIN,
            (
                "trainer = Trainer(model=model,",
                COLLATOR,
            ),
        )
    ),
    "QD107": Case(
        change(
            LOAD,
            ("Qwen/Qwen3-0.6B", "Qwen/Qwen-7B-Chat"),
            ("bnb, dtype=torch.bfloat16)\n", "bnb, dtype=torch.bfloat16, trust_remote_code=True)\n"),
        )
    ),
    "QD126": Case(args("outputdir='x',"), sources=SOURCES),
    "QD128": Case(
        "from transformers import TrainingArguments\n\n\ndef make():\n    return TrainingArguments(outputdir='x')\n",
        sources=SOURCES,
    ),
    "QD416": Case(
        change(
            LOAD,
            ("bnb, dtype=torch.bfloat16)\n", 'bnb, dtype=torch.float16, attn_implementation="flash_attention_2")\n'),
            ("compute_dtype=torch.bfloat16", "compute_dtype=torch.float16"),
        ),
        gpu=T4,
    ),
    "QD418": Case(change(args("tf32=True,"), ("bf16=True", "fp16=True"), ("torch.bfloat16", "torch.float16")), gpu=T4),
    "QD122": Case(
        "from transformers import TrainingArguments\n\n\ndef make():\n"
        "    return TrainingArguments(output_dir='x', evaluation_strategy='no')\n"
    ),
    "QD313": Case(
        change(
            LOAD,
            ("Qwen/Qwen3-0.6B", "./model"),
            ("bnb, dtype=torch.bfloat16)", "bnb, dtype=torch.bfloat16, trust_remote_code=True)"),
        ),
        sources={
            "transformers/__init__.py": "",
            "transformers/models/auto/configuration_auto.py": "CONFIG_MAPPING_NAMES = {'llama': 'LlamaConfig'}\n",
        },
        files={
            "model/config.json": '{"model_type": "llama", "architectures": ["LlamaForCausalLM"],'
            ' "auto_map": {"AutoModelForCausalLM": "own.LlamaForCausalLM"}}',
            "model/own.py": "",
            "model/model.safetensors": "",
        },
    ),
    "QD127": Case(change(LOAD, ("bnb_4bit_compute_dtype", "bnb_4bit_compute_dtyp"))),
    "QD202": Case(LOAD, environ={"HF_ENDPOINT": "http://127.0.0.1:9"}, cached=("Qwen/Qwen3-0.6B",), offline=False),
    "QD203": Case(LOAD, environ={"HF_HUB_OFFLINE": "1"}, offline=False, ignore="QD202"),
    "QD607": Case(
        change(
            TRAIN,
            ("Qwen/Qwen3-0.6B", "Salesforce/instructblip-vicuna-7b"),
            ("AutoModelForCausalLM", "InstructBlipForConditionalGeneration"),
            (" dtype=torch", " torch_dtype=torch"),
        ),
        packages={"transformers": "4.44.2", "peft": "0.12.0"},
    ),
    "QD631": Case(
        change(
            TRAIN,
            ("trainer = Trainer(", OVERRIDE + "trainer = Mine("),
        )
    ),
    "QD632": Case(LLAVA + VISION_TRAIN),
    "QD201": Case(LOAD, environ={"HF_ENDPOINT": "hf-mirror.example"}),
    "QD208": Case(LOAD, packages={"socksio": "1.0.0"}, environ={"all_proxy": "socks://127.0.0.1:9"}),
    "QD210": Case(LOAD, environ={"HF_HUB_ENABLE_HF_TRANSFER": "1"}),
    "QD437": Case(LOAD, environ={"CUDA_VISIBLE_DEVICES": "0,7"}),
}


@dataclass(frozen=True)
class Machine:
    """An environment of metadata alone, and a PATH with a stand-in for nvidia-smi."""

    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "venv" / "bin" / "python")

    def build(self, case: Case) -> dict[str, str]:
        site = self.folder / "venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        site.mkdir(parents=True)
        (self.folder / "venv" / "bin").mkdir()
        os.symlink(os.path.realpath(sys.executable), self.python)
        home = os.path.dirname(os.path.realpath(sys.executable))
        (self.folder / "venv" / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
        for name, version in {**STACK, **case.packages}.items():
            info = site / f"{name.replace('-', '_')}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\n")
        for name, text in case.sources.items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(text)
        tools = self.folder / "bin"
        tools.mkdir()
        rows = f"echo '{case.gpu}'" if case.gpu else "exit 9"
        banner = "echo '| NVIDIA-SMI 550  Driver Version: 550.54.15  CUDA Version: 12.4 |'"
        smi = tools / "nvidia-smi"
        smi.write_text(f'#!/bin/sh\ncase "$*" in\n  *query*) {rows} ;;\n  *) {banner} ;;\nesac\n')
        smi.chmod(0o755)
        if not case.gpu:
            smi.unlink()
        home = self.folder / "huggingface"
        for model in case.cached:
            snapshot = home / "hub" / f"models--{model.replace('/', '--')}" / "snapshots" / ("0" * 40)
            snapshot.mkdir(parents=True)
            (snapshot / "config.json").write_text("{}")
            (snapshot / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
            (snapshot.parent.parent / "refs").mkdir()
            (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
        path = f"{tools}{os.pathsep}{os.environ['PATH']}"
        return {"PATH": path, "HF_HOME": str(home), **case.environ}


def found(report: Any) -> list[tuple[str, str]]:
    return sorted((f["code"], f["severity"]) for f in report["findings"])


@pytest.mark.parametrize("code", sorted(CASES))
def test_a_fix_ends_its_finding_adds_none_and_is_undone(code: str, here: Any, project: Any, tmp_path: Path) -> None:
    case = CASES[code]
    machine = Machine(tmp_path / "machine")
    environ = machine.build(case)
    script = project.path / "train.py"
    script.write_bytes(case.script.encode())
    for name, text in case.files.items():
        (project.path / name).parent.mkdir(exist_ok=True)
        (project.path / name).write_text(text)
    ignored = ",".join([*(b for b in BESIDE if not code.startswith(b)), case.ignore])
    target = ("train.py", "--python", machine.python, "--ignore", ignored, *(["--offline"] if case.offline else []))

    before = here("check", *target, "--format", "json", **environ).json
    assert code in {f["code"] for f in before["findings"]}, before["findings"] or before["outcomes"]

    done = here("fix", *target, "--apply", "--unsafe", "--format", "json", **environ)
    assert (done.code in (0, 1), done.err) == (True, "")
    assert done.json["applied"], done.json
    if case.environ:
        environ |= sourced(project.path / ".qlora-doctor" / "env.sh")
    ast.parse(script.read_bytes())
    after = here("check", *target, "--format", "json", **environ).json
    assert code not in {f["code"] for f in after["findings"]}, [f["message"] for f in after["findings"]]
    assert set(found(after)) <= set(found(before))

    undone = here("undo")
    assert (undone.code, script.read_bytes()) == (0, case.script.encode())
    assert not (project.path / ".qlora-doctor" / "env.sh").exists()


def sourced(path: Path) -> dict[str, str]:
    from qlora_doctor.repair.environment import read_sh

    return {name: value or "" for name, value in read_sh(path.read_text()).items()}


def test_every_check_that_yields_a_fix_has_its_case() -> None:
    fixable = {c.code for c in installed_checks().checks if _has_a_fix(c)}
    missing = {c for c in fixable if not BY_PIP.match(c)} - set(CASES) - set(ELSEWHERE)
    assert json.dumps(sorted(missing)) == "[]"


def _has_a_fix(check: Any) -> bool:
    """Whether a check, or a function of the checks that it calls, makes a fix other than advice or a package."""
    import inspect

    seen, todo = set(), [check.function]
    while todo:
        function = todo.pop()
        if function in seen:
            continue
        seen.add(function)
        source = inspect.getsource(function)
        if re.search(r"\b(LoadKwarg|TrainSetting|SourceEdit|EnvVar|ModelFile)\(", source):
            return True
        known = vars(inspect.getmodule(function))
        called = [known.get(name) for name in re.findall(r"\b(\w+)\(", source)]
        todo += [f for f in called if inspect.isfunction(f) and f.__module__.startswith("qlora_checks")]
    return False
