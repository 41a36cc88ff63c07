# ruff: noqa
"""Arguments from the command line by dataclasses; the quantisation depends on them."""

from dataclasses import dataclass, field
from typing import Optional

import torch
import transformers
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training


@dataclass
class ModelArguments:
    model_name_or_path: Optional[str] = field(default="meta-llama/Llama-2-7b-hf")


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    bits: int = field(default=16)
    full_finetune: bool = False


def load(model_args, args):
    if args.full_finetune:
        assert args.bits in [16, 32]
    compute_dtype = torch.float16 if args.fp16 else torch.bfloat16
    extra = {}
    if args.bits in [4, 8]:
        extra.update(
            dict(
                device_map={"": args.device},
                quantization_config=transformers.BitsAndBytesConfig(
                    load_in_4bit=args.bits == 4,
                    load_in_8bit=args.bits == 8,
                    bnb_4bit_compute_dtype=compute_dtype,
                ),
            )
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        model_args.model_name_or_path, torch_dtype=compute_dtype, **extra
    )
    if args.bits in [4, 8]:
        model = prepare_model_for_kbit_training(model)
    if not args.full_finetune:
        model = get_peft_model(model, LoraConfig(r=64, target_modules=["q_proj"]))
    return model


def train():
    parser = transformers.HfArgumentParser((ModelArguments, TrainingArguments))
    model_args, training_args = parser.parse_args_into_dataclasses()
    model = load(model_args, training_args)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    trainer = transformers.Trainer(model=model, tokenizer=tokenizer, args=training_args)
    trainer.train()


if __name__ == "__main__":
    train()
