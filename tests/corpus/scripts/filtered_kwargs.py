"""Keyword arguments that are filtered by the installed signature, or left out when None."""
import dataclasses
import inspect
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

WANTED: dict[str, Any] = {
    "output_dir": "o", "evaluation_strategy": "no", "eval_strategy": "no", "warmup_ratio": 0.1, "group_by_length": True, "fp16": True,
}
known = set(inspect.signature(TrainingArguments.__init__).parameters)
args = TrainingArguments(**{k: v for k, v in WANTED.items() if k in known})
fields = {f.name for f in dataclasses.fields(TrainingArguments)}
again = {key: value for key, value in WANTED.items() if key in fields}
args2 = TrainingArguments(**again)
load = {"use_auth_token": None, "torch_dtype": torch.float16, "device_map": None}
load = {k: v for k, v in load.items() if v is not None}
q = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B", quantization_config=q, **load)
keep = "processing_class" if "processing_class" in inspect.signature(Trainer.__init__).parameters else "tokenizer"
print(args, args2, model, keep)
rest = dict(WANTED)
for name in list(rest):
    if name not in known:
        rest.pop(name)
args3 = TrainingArguments(**rest)
more = {"output_dir": "o"}
for name, value in WANTED.items():
    if hasattr(TrainingArguments, name):
        more[name] = value
args4 = TrainingArguments(**more)
if "evaluation_strategy" in known:
    args5 = TrainingArguments("o", evaluation_strategy="no")
