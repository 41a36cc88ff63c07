import argparse

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

p = argparse.ArgumentParser()
p.add_argument("--use_4bit", action="store_true")
p.add_argument("--base", type=str, default="Qwen/Qwen2.5-0.5B")
a = p.parse_args()

cfg = None
if a.use_4bit:
    cfg = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained(a.base, quantization_config=cfg, device_map={"": 0})
if a.use_4bit:
    model = model.to(torch.bfloat16)
model.gradient_checkpointing_enable()
model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]))
Trainer(model, TrainingArguments("o", bf16=True, gradient_checkpointing=True), train_dataset=[]).train()
