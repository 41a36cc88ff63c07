"""The trainer loads the model itself."""
import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

quant = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
config = SFTConfig(
    "out",
    model_init_kwargs={"quantization_config": quant, "dtype": torch.bfloat16, "trust_remote_code": False},
    bf16=False,
    eval_strategy="no",
)
trainer = SFTTrainer(
    "meta-llama/Llama-3.2-1B",
    args=config,
    train_dataset=load_dataset("trl-lib/Capybara", split="train"),
    peft_config=LoraConfig(r=8, target_modules=["q_proj", "v_proj"]),
)
trainer.train()
