import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainingArguments
from trl import DPOConfig, DPOTrainer, ORPOConfig, ORPOTrainer

name = "teknium/OpenHermes-2.5-Mistral-7B"
tokenizer = AutoTokenizer.from_pretrained(name)
tokenizer.pad_token = tokenizer.eos_token
tokenizer.padding_side = "left"
model = AutoModelForCausalLM.from_pretrained(
    name,
    quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16),
    torch_dtype=torch.float16,
)
args = DPOConfig(output_dir="dpo", beta=0.1, max_length=1024, max_prompt_length=512, per_device_train_batch_size=1, fp16=True)
trainer = DPOTrainer(
    model,
    ref_model=None,
    args=args,
    train_dataset=load_dataset("Intel/orca_dpo_pairs", split="train"),
    tokenizer=tokenizer,
    peft_config=LoraConfig(r=16, target_modules=["q_proj", "v_proj"]),
    max_length=1024,
)
trainer.train()
