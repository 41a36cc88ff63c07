"""Catches the TypeError of the other version."""
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

quant = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
try:
    model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", dtype=torch.float16, quantization_config=quant)
except TypeError:
    model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", torch_dtype=torch.float16, quantization_config=quant)
from peft import LoraConfig, get_peft_model

model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]))
model.enable_input_require_grads()
try:
    args = TrainingArguments("out", eval_strategy="no", max_steps=1)
except TypeError:
    args = TrainingArguments("out", evaluation_strategy="no", max_steps=1)
try:
    model.base_model.model.half()
except ValueError as error:
    print("as expected:", error)
Trainer(model=model, args=args, train_dataset=[]).train()
