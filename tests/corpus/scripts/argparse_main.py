import argparse
import logging
import os

import torch
from datasets import load_dataset
from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, DataCollatorForSeq2Seq
from transformers import Trainer, TrainingArguments, set_seed

logger = logging.getLogger(__name__)


def parse_args():
    p = argparse.ArgumentParser()
    p.add_argument("--model_name", default="Qwen/Qwen2.5-7B-Instruct")
    p.add_argument("--data", required=True)
    p.add_argument("--output", default="runs/qwen")
    p.add_argument("--bits", type=int, default=4, choices=[4, 8, 16])
    p.add_argument("--bf16", action="store_true")
    p.add_argument("--lr", type=float, default=1e-4)
    p.add_argument("--eval", default=None)
    return p.parse_args()


def build_model(args):
    kwargs = {"device_map": {"": int(os.environ.get("LOCAL_RANK", 0))}}
    compute = torch.bfloat16 if args.bf16 else torch.float16
    kwargs["dtype"] = compute
    if args.bits == 4:
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=compute,
            bnb_4bit_use_double_quant=True,
        )
    elif args.bits == 8:
        kwargs["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    else:
        kwargs["trust_remote_code"] = True
    model = AutoModelForCausalLM.from_pretrained(args.model_name, **kwargs)
    if args.bits < 16:
        model = prepare_model_for_kbit_training(model)
    else:
        model = model.half()
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj"])
    return get_peft_model(model, config)


def encode(tokenizer, row):
    prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
    answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    ids = (prompt + answer)[:1024]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ([-100] * len(prompt) + answer)[:1024]}


def main():
    args = parse_args()
    set_seed(42)
    tokenizer = AutoTokenizer.from_pretrained(args.model_name)
    model = build_model(args)
    train = load_dataset("json", data_files=args.data, split="train").map(lambda r: encode(tokenizer, r))
    evals = load_dataset("json", data_files=args.eval, split="train").map(lambda r: encode(tokenizer, r)) if args.eval else None
    training_args = TrainingArguments(
        output_dir=args.output,
        learning_rate=args.lr,
        bf16=args.bf16,
        fp16=not args.bf16,
        eval_strategy="steps" if evals is not None else "no",
        optim="paged_adamw_8bit",
    )
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train,
        eval_dataset=evals,
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
    )
    trainer.train()


if __name__ == "__main__":
    main()
