"""torchrun --nproc-per-node 2 fsdp_paged_optimizer.py"""

import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainingArguments

NAME = "Qwen/Qwen2.5-7B-Instruct"
bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained(NAME, quantization_config=bnb, torch_dtype=torch.bfloat16)
tokenizer = AutoTokenizer.from_pretrained(NAME)
model = get_peft_model(model, LoraConfig(r=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
args = TrainingArguments(
    output_dir="out",
    bf16=True,
    optim="paged_adamw_8bit",
    fsdp="full_shard",
)
rows = load_dataset("json", data_files="rows.jsonl", split="train")
trainer = Trainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
trainer.train()
