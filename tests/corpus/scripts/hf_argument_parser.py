import sys
from dataclasses import dataclass, field
from typing import Optional

import torch
import transformers
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import HfArgumentParser


@dataclass
class ModelArguments:
    model_name_or_path: str = field(default="meta-llama/Meta-Llama-3-8B")
    quantize: bool = field(default=True)
    use_auth_token: bool = field(default=False, metadata={"help": "log in first"})


@dataclass
class DataArguments:
    data_path: str = field(default="data/train.jsonl")
    evaluation_strategy: Optional[str] = None
    max_seq_length: int = 1024


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    cache_dir: Optional[str] = field(default=None)
    optim: str = field(default="adamw_torch")
    model_max_length: int = field(default=1024)
    lora_rank: int = 16
    evaluation_strategy: str = "no"
    double_quant: bool = True


def make_data(tokenizer, data_args):
    from datasets import load_dataset

    raw = load_dataset("json", data_files=data_args.data_path, split="train")

    def tokenise(batch):
        return tokenizer(batch["text"], truncation=True, max_length=data_args.max_seq_length)

    return raw.map(tokenise, batched=True, remove_columns=raw.column_names)


def train():
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        model_args, data_args, training_args = parser.parse_json_file(sys.argv[1])
    else:
        model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    compute_dtype = torch.float16 if training_args.fp16 else (torch.bfloat16 if training_args.bf16 else torch.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        model_args.model_name_or_path,
        cache_dir=training_args.cache_dir,
        quantization_config=transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=compute_dtype,
            bnb_4bit_use_double_quant=training_args.double_quant,
        )
        if model_args.quantize
        else None,
        torch_dtype=compute_dtype,
    )
    if model_args.quantize:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=training_args.gradient_checkpointing)
    model = get_peft_model(model, LoraConfig(r=training_args.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        model_args.model_name_or_path, model_max_length=training_args.model_max_length, padding_side="right", use_fast=False
    )
    trainer = transformers.Trainer(
        model=model, args=training_args, train_dataset=make_data(tokenizer, data_args),
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
    )
    trainer.train()
    trainer.save_state()


if __name__ == "__main__":
    train()
