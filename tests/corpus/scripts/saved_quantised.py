"""A checkpoint that was saved in 4 bit needs no config."""
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("unsloth/Llama-3.2-1B-bnb-4bit", torch_dtype=torch.float16)
plain = AutoModelForCausalLM.from_pretrained("unsloth/Llama-3.2-1B", torch_dtype=torch.float16)
plain.half()
model.half()
Trainer(model=model, args=TrainingArguments("o", fp16=True), train_dataset=[]).train()
Trainer(model=plain, args=TrainingArguments("p", fp16=False), train_dataset=[]).train()
