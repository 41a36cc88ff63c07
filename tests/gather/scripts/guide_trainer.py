# ruff: noqa
"""A trainer in the shape of the guides' own: a dict of load arguments, filled branch by branch."""

import logging

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

logger = logging.getLogger(__name__)


class LoRATrainer:
    def __init__(self, config):
        self.config = config
        self.model = None
        self.tokenizer = None

    def train(self, dataset):
        arguments = TrainingArguments(output_dir="out", fp16=True, gradient_checkpointing=True)
        trainer = Trainer(self.model, arguments, train_dataset=dataset)
        trainer.train()

    def load_model(self):
        model_name = self.config.model.name
        quantization_config = None
        if self.config.quantization.load_in_4bit:
            quantization_config = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_compute_dtype=torch.float16,
                bnb_4bit_quant_type="nf4",
            )

        load_kwargs = {"trust_remote_code": True}
        if self.config.model.cache_dir:
            load_kwargs["cache_dir"] = self.config.model.cache_dir
        if quantization_config is not None:
            load_kwargs["quantization_config"] = quantization_config
            load_kwargs["device_map"] = "auto"
        else:
            load_kwargs["torch_dtype"] = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16

        self.model = LlavaForConditionalGeneration.from_pretrained(model_name, **load_kwargs)
        if quantization_config is not None:
            self.model = prepare_model_for_kbit_training(self.model)
        self.model = get_peft_model(self.model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))

        try:
            self.tokenizer = AutoProcessor.from_pretrained(model_name, trust_remote_code=True)
        except Exception as error:
            logger.warning(f"falling back to the tokenizer: {error}")
            self.tokenizer = AutoTokenizer.from_pretrained(model_name, use_fast=False)
