import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, DataCollatorWithPadding, Trainer, TrainingArguments

name = "Qwen/Qwen2.5-0.5B"
quant = BitsAndBytesConfig(load_in_8bit=True)
model = AutoModelForCausalLM.from_pretrained(name, quantization_config=quant, torch_dtype=torch.float16)
tokenizer = AutoTokenizer.from_pretrained(name)
rows = []
for text in ["a", "b"]:
    enc = tokenizer(text, padding="max_length", max_length=128, truncation=True)
    enc["labels"] = enc["input_ids"].copy()
    rows.append(enc)
args = TrainingArguments("out", load_best_model_at_end=True, save_strategy="epoch", eval_strategy="steps", optim="adamw_bnb_8bit")
Trainer(model=model, args=args, train_dataset=rows, eval_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer)).train()
