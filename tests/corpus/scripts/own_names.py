"""Functions and classes of the user's own whose names and arguments only look like the libraries'."""
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig


def load_model(name, load_in_4bit=True, use_auth_token=None, torch_dtype=None, resume_download=False):
    config = BitsAndBytesConfig(load_in_4bit=load_in_4bit, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return AutoModelForCausalLM.from_pretrained(name, quantization_config=config, token=use_auth_token)


class TrainingArguments:
    def __init__(self, evaluation_strategy="no", warmup_ratio=0.1, fp16=True, bf16=True):
        self.evaluation_strategy = evaluation_strategy
        self.warmup_ratio = warmup_ratio
        self.fp16, self.bf16 = fp16, bf16


class Trainer:
    def __init__(self, model, args, tokenizer=None):
        self.model, self.args, self.tokenizer = model, args, tokenizer

    def compute_loss(self, model, inputs):
        return model(**inputs).loss

    def train(self):
        for batch in []:
            loss = self.compute_loss(self.model, batch)
            loss.backward()


class AdamW(torch.optim.AdamW):
    pass


def half(x):
    return x / 2


model = load_model("mistralai/Mistral-7B-v0.3", load_in_4bit=True, use_auth_token="x", resume_download=True)
tokenizer = AutoTokenizer.from_pretrained("mistralai/Mistral-7B-v0.3", use_auth_token=None) if False else None
trainer = Trainer(model, TrainingArguments(evaluation_strategy="steps", warmup_ratio=0.03, fp16=True, bf16=True), tokenizer=tokenizer)
trainer.train()
print(half(3), torch.ones(2).half().float())
