"""SFT on TRL 1.x as its documentation has it."""
from datasets import load_dataset
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

name = "Qwen/Qwen3-4B"
tokenizer = AutoTokenizer.from_pretrained(name)
tokenizer.pad_token = tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(
    name,
    dtype=torch.bfloat16,
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_use_double_quant=True
    ),
)
trainer = SFTTrainer(
    model=model,
    args=SFTConfig(output_dir="out", max_length=2048, packing=True, assistant_only_loss=True, bf16=True),
    train_dataset=load_dataset("trl-lib/Capybara", split="train"),
    processing_class=tokenizer,
    peft_config=LoraConfig(r=32, lora_alpha=16, target_modules="all-linear"),
)
trainer.train()
