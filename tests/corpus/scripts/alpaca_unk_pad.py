"""The same recipe, done right: unk as padding, current argument names, processing_class."""
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

MODEL = "meta-llama/Llama-2-7b-hf"


def main():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.pad_token = tokenizer.unk_token
    quant = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = AutoModelForCausalLM.from_pretrained(
        MODEL, quantization_config=quant, dtype=torch.bfloat16, device_map="auto"
    )
    model = prepare_model_for_kbit_training(model)
    lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    rows = load_dataset("yahma/alpaca-cleaned", split="train").train_test_split(0.02)
    rows = rows.map(lambda r: tokenizer(r["output"], truncation=True, max_length=512), remove_columns=rows["train"].column_names)
    args = TrainingArguments(
        "out",
        per_device_train_batch_size=2,
        bf16=True,
        eval_strategy="steps",
        eval_steps=100,
        save_steps=200,
        load_best_model_at_end=True,
        gradient_checkpointing=True,
    )
    Trainer(
        model,
        args,
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    ).train()


if __name__ == "__main__":
    main()
