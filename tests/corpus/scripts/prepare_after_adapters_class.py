import torch
import peft
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainingArguments, Trainer


class Job:
    def __init__(self):
        q = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
        self.net = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B", quantization_config=q)

    def adapt(self):
        self.net = peft.get_peft_model(self.net, peft.LoraConfig(target_modules="all-linear"))
        return self

    def prepare(self):
        self.net = peft.prepare_model_for_kbit_training(self.net, use_gradient_checkpointing=True)
        return self

    def run(self):
        Trainer(self.net, TrainingArguments("o", save_only_model=True), train_dataset=[]).train()


Job().adapt().prepare().run()
