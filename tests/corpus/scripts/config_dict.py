import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainingArguments
from peft import LoraConfig
from trl import SFTTrainer

CONFIG = {
    "model": {
        "name": "meta-llama/Llama-3.1-8B-Instruct",
        "quant": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_type": torch.bfloat16},
    },
    "lora": {"r": 16, "lora_alpha": 32, "target_modules": "q_proj,v_proj", "bias": "none"},
    "train": {
        "output_dir": "./llama31",
        "per_device_train_batch_size": 1,
        "warmup_ratio": 0.03,
        "lr_scheduler_type": "cosine",
        "bf16": True,
    },
    "data": {"max_seq_length": 2048},
}

model = AutoModelForCausalLM.from_pretrained(
    CONFIG["model"]["name"], quantization_config=BitsAndBytesConfig(**CONFIG["model"]["quant"]), device_map={"": 0}
)
tokenizer = AutoTokenizer.from_pretrained(CONFIG["model"]["name"])
training_arguments = TrainingArguments(**CONFIG["train"])
peft_config = LoraConfig(**CONFIG["lora"], task_type="CAUSAL_LM")
from datasets import load_dataset

trainer = SFTTrainer(
    model=model,
    args=training_arguments,
    train_dataset=load_dataset("json", data_files="d.jsonl", split="train"),
    peft_config=peft_config,
    dataset_text_field="text",
    max_seq_length=CONFIG["data"]["max_seq_length"],
    tokenizer=tokenizer,
    packing=False,
)
trainer.train()
trainer.model.save_pretrained("adapter")
