"""Adapters come in ways other than get_peft_model."""
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, DataCollatorForSeq2Seq, Trainer, TrainingArguments

quant = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
base = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B", quantization_config=quant, torch_dtype=torch.float16)
resumed = PeftModel.from_pretrained(base, "runs/one", is_trainable=True)
tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-0.5B")


def encode(text):
    enc = tokenizer(text, padding="max_length", max_length=128, truncation=True)
    enc["labels"] = [t if m else -100 for t, m in zip(enc["input_ids"], enc["attention_mask"])]
    return enc


args = TrainingArguments("out", load_best_model_at_end=True, save_strategy="steps", save_steps=200, eval_strategy="steps", eval_steps=50)
Trainer(model=resumed, args=args, train_dataset=[encode("a")], eval_dataset=[encode("b")]).train()
again = AutoPeftModelForCausalLM.from_pretrained("runs/one", torch_dtype=torch.float16)
merged = again.merge_and_unload()
merged.half().save_pretrained("merged")
