"""LLaVA QLoRA 微调：一个看起来正常、其实有许多错误的训练脚本。

A training script in the style of many guides. It looks right and holds about ten faults, which
`qlora-doctor check train.py` finds without running it. Do not copy from it.
"""

import argparse
import json
import os

import torch
from PIL import Image
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoProcessor,
    BitsAndBytesConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

# 使用镜像
os.environ["HF_ENDPOINT"] = "hf-mirror.example"

MODEL = "liuhaotian/llava-v1.5-7b"


def load_model():
    bnb_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
    )
    model = LlavaForConditionalGeneration.from_pretrained(
        MODEL,
        quantization_config=bnb_config,
        device_map="auto",
        trust_remote_code=True,
    )
    processor = AutoProcessor.from_pretrained(MODEL)
    return model, processor


def add_lora(model):
    config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    model.print_trainable_parameters()
    return model


class Records(torch.utils.data.Dataset):
    """一行一个 JSON：image, question, answer。"""

    def __init__(self, path, processor):
        with open(path, encoding="utf-8") as file:
            self.records = [json.loads(line) for line in file]
        self.processor = processor

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        record = self.records[index]
        text = f"USER: <image>\n{record['question']} ASSISTANT: {record['answer']}"
        item = self.processor(text=text, images=Image.open(record["image"]), return_tensors="pt")
        item = {name: value[0] for name, value in item.items()}
        item["labels"] = item["input_ids"].clone()
        return item


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="train.jsonl")
    parser.add_argument("--output", default="output")
    args = parser.parse_args()

    model, processor = load_model()
    model = add_lora(model)
    training_args = TrainingArguments(
        output_dir=args.output,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        num_train_epochs=3,
        learning_rate=2e-4,
        fp16=True,
        bf16=True,
        evaluation_strategy="epoch",
        optim="paged_adamw_8bit",
        gradient_checkpointing=True,
        logging_steps=10,
    )
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=Records(args.data, processor),
        tokenizer=processor.tokenizer,
    )
    trainer.train()
    model.save_pretrained(args.output)


if __name__ == "__main__":
    main()
