# ruff: noqa
"""A training loop of its own, with a helper for the model."""

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

MODEL = "Qwen/Qwen2.5-0.5B"


def get_model(name, bits=4):
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(name, quantization_config=config, dtype=torch.bfloat16)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    return get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))


def main():
    accelerator = Accelerator()
    model = get_model(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    optimizer = AdamW(model.parameters(), lr=1e-4, eps=1e-8)
    model, optimizer = accelerator.prepare(model, optimizer)
    for step in range(1000):
        batch = tokenizer(["a", "b"], padding=True, truncation=True, return_tensors="pt")
        labels = batch["input_ids"].clone()
        labels[labels == tokenizer.pad_token_id] = -100
        loss = model(**batch, labels=labels).loss
        accelerator.backward(loss)
        if (step + 1) % 4 == 0:
            optimizer.step()


main()
