import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainingArguments


class Finetuner:
    """Everything hangs on self."""

    def __init__(self, cfg_path):
        self.cfg = json.loads(Path(cfg_path).read_text())
        self.name = "mistralai/Mistral-7B-v0.1"
        self.load_kwargs = {}
        self.model = None
        self.tokenizer = None
        self.trainer = None

    def load(self):
        self.bnb_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
        self.load_kwargs["quantization_config"] = self.bnb_config
        self.load_kwargs["device_map"] = "auto"
        self.load_kwargs["use_auth_token"] = True
        self.model = AutoModelForCausalLM.from_pretrained(self.name, **self.load_kwargs)
        self.tokenizer = AutoTokenizer.from_pretrained(self.name)
        return self

    def cast(self):
        self.model = self.model.half()

    def wrap(self):
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        self.model = get_peft_model(self.model, lora)

    def fit(self, train_set):
        self.args = TrainingArguments(output_dir="out", per_device_train_batch_size=1, gradient_checkpointing=True)
        self.trainer = Trainer(model=self.model, args=self.args, train_dataset=train_set, tokenizer=self.tokenizer)
        self.trainer.train()


if __name__ == "__main__":
    runner = Finetuner("conf.json")
    runner.load()
    runner.cast()
    runner.wrap()
    from datasets import load_from_disk

    runner.fit(load_from_disk("tokens"))
