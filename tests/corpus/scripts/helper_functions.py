"""A module split into helpers, each far from its use."""
import torch
import transformers
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoTokenizer


def quant_config(bits=4):
    return transformers.BitsAndBytesConfig(load_in_4bit=bits == 4, bnb_4bit_quant_type="nf4")


def get_model(name, **extra):
    return transformers.AutoModelForCausalLM.from_pretrained(name, quantization_config=quant_config(), **extra)


def get_args(out, **more):
    defaults = dict(output_dir=out, num_train_epochs=1, logging_steps=5, no_cuda=False)
    defaults.update(more)
    return transformers.TrainingArguments(**defaults)


def attach(model, rank=8):
    return get_peft_model(prepare_model_for_kbit_training(model), LoraConfig(r=rank, target_modules=["c_attn"], task_type="CAUSAL_LM"))


def run():
    name = "Qwen/Qwen2.5-1.5B"
    model = attach(get_model(name, torch_dtype="bf16", device_map="auto"))
    tokenizer = AutoTokenizer.from_pretrained(name)
    from datasets import load_dataset

    data = load_dataset("imdb", split="train[:1%]").map(lambda r: tokenizer(r["text"], truncation=True, max_length=256))
    args = get_args("out", evaluation_strategy="epoch", fp16=True, bf16=True)
    collate = transformers.DataCollatorForLanguageModeling(tokenizer)
    trainer = transformers.Trainer(model=model, args=args, train_dataset=data, data_collator=collate)
    trainer.train()


run()
