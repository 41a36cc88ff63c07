import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainingArguments

name = "mistralai/Mistral-7B-v0.1"
tokenizer = AutoTokenizer.from_pretrained(name)
tokenizer.add_special_tokens({"pad_token": tokenizer.eos_token})


def encode(row):
    enc = tokenizer(row["text"] + tokenizer.eos_token, padding="max_length", truncation=True, max_length=256)
    enc["labels"] = [-100 if t == tokenizer.pad_token_id else t for t in enc["input_ids"]]
    return enc


q = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
model = AutoModelForCausalLM.from_pretrained(name, quantization_config=q, torch_dtype=torch.float16)
model = get_peft_model(prepare_model_for_kbit_training(model), LoraConfig(r=8, target_modules=["q_proj"]))
Trainer(model=model, args=TrainingArguments("o", fp16=True), train_dataset=[encode({"text": "a"})]).train()
