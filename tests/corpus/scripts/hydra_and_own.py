"""Hydra, Lightning, and the author's own names for well-known things."""
from __future__ import annotations
import os
os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"
if not os.environ.get("HF_ENDPOINT"):
    os.environ["HF_ENDPOINT"] = "https://hf-mirror.com/"
import torch
from omegaconf import OmegaConf
import hydra
import lightning.pytorch as pl
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from peft import LoraConfig, get_peft_model

@hydra.main(config_path="conf", config_name="x", version_base=None)
def main(cfg):
    q = BitsAndBytesConfig(**OmegaConf.to_container(cfg.bnb)) if cfg.get("bnb") else None
    model = Qwen2VLForConditionalGeneration.from_pretrained(cfg.model, quantization_config=q, torch_dtype=cfg.dtype, **cfg.extra)
    model = get_peft_model(model, LoraConfig(**cfg.lora))
    model.half()
    trainer = pl.Trainer(precision="bf16-mixed", evaluation_strategy=None)
    trainer.fit(model)
main()

import logging
class Trainer:
    """mine"""
    def __init__(self, tokenizer=None, evaluation_strategy=None): ...
    def compute_loss(self, m, i): ...
Trainer(tokenizer=1, evaluation_strategy="steps")
def from_pretrained(name, load_in_4bit=False): return name
from_pretrained("liuhaotian/llava-v1.5-7b", load_in_4bit=True)
class Loader:
    def from_pretrained(self, name, **kw): return name
Loader().from_pretrained("liuhaotian/llava-v1.5-7b", load_in_4bit=True, use_auth_token=True)
print("os.environ['HF_ENDPOINT'] = 'x'", "load_in_4bit=True", "evaluation_strategy='no'")
