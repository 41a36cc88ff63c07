"""torchrun --nproc-per-node 4 ddp_reentrant.py, or with --zero: DeepSpeed on the same machine"""

import os
import sys

import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

ZERO = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": "auto", "zero_optimization": {"stage": 2}}

bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained(
    "Qwen/Qwen2.5-7B-Instruct",
    quantization_config=bnb,
    torch_dtype=torch.bfloat16,
    device_map={"": int(os.environ["LOCAL_RANK"])},
)
model = prepare_model_for_kbit_training(model)
model = get_peft_model(model, LoraConfig(r=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
rows = load_dataset("json", data_files="rows.jsonl", split="train")
if "--zero" in sys.argv:
    zero_args = TrainingArguments("out", bf16=True, per_device_train_batch_size=2, deepspeed=ZERO)
    trainer = Trainer(model=model, args=zero_args, train_dataset=rows)
else:
    ddp_args = TrainingArguments(
        "out",
        bf16=True,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": True},
    )
    trainer = Trainer(model=model, args=ddp_args, train_dataset=rows)
trainer.train()
