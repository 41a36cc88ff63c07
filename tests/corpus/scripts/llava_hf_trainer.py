import json

import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (AutoProcessor, BitsAndBytesConfig, LlavaForConditionalGeneration, Trainer, TrainingArguments)

MODEL_ID = "llava-hf/llava-1.5-7b-hf"
processor = AutoProcessor.from_pretrained(MODEL_ID)
processor.tokenizer.padding_side = "right"

quant = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16,
                           llm_int8_skip_modules=["vision_tower", "multi_modal_projector"])
model = LlavaForConditionalGeneration.from_pretrained(MODEL_ID, quantization_config=quant, torch_dtype=torch.bfloat16)
model = prepare_model_for_kbit_training(model)
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM"))


def collate(rows):
    texts = [f"USER: <image>\n{r['question']} ASSISTANT: {r['answer']}" for r in rows]
    batch = processor(text=texts, images=[r["image"] for r in rows], return_tensors="pt", padding=True)
    labels = batch["input_ids"].clone()
    labels[labels == processor.tokenizer.pad_token_id] = -100
    batch["labels"] = labels
    return batch


train_set = load_dataset("merve/vqav2-small", split="validation")
trainer = Trainer(
    model=model,
    args=TrainingArguments(output_dir="llava-qlora", per_device_train_batch_size=1, bf16=True, max_steps=100),
    train_dataset=train_set,
    data_collator=collate,
)
trainer.train()
