import os
import sys
from typing import List

import fire
import torch
import transformers
from datasets import load_dataset
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, prepare_model_for_int8_training, set_peft_model_state_dict
from transformers import LlamaForCausalLM, LlamaTokenizer


def train(
    base_model: str = "",
    data_path: str = "yahma/alpaca-cleaned",
    output_dir: str = "./lora-alpaca",
    batch_size: int = 128,
    micro_batch_size: int = 4,
    val_set_size: int = 2000,
    lora_target_modules: List[str] = ["q_proj", "v_proj"],
    group_by_length: bool = False,
    resume_from_checkpoint: str = None,
):
    gradient_accumulation_steps = batch_size // micro_batch_size
    device_map = "auto"
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    ddp = world_size != 1
    if ddp:
        device_map = {"": int(os.environ.get("LOCAL_RANK") or 0)}
        gradient_accumulation_steps = gradient_accumulation_steps // world_size
    model = LlamaForCausalLM.from_pretrained(base_model, load_in_8bit=True, torch_dtype=torch.float16, device_map=device_map)
    tokenizer = LlamaTokenizer.from_pretrained(base_model)
    tokenizer.pad_token_id = 0  # unk, different from the eos token
    tokenizer.padding_side = "left"

    def tokenize(prompt):
        result = tokenizer(prompt, truncation=True, max_length=256, padding=False, return_tensors=None)
        result["input_ids"].append(tokenizer.eos_token_id)
        result["attention_mask"].append(1)
        result["labels"] = result["input_ids"].copy()
        return result

    model = prepare_model_for_int8_training(model)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=lora_target_modules, task_type="CAUSAL_LM"))
    data = load_dataset("json", data_files=data_path) if data_path.endswith(".json") else load_dataset(data_path)
    if val_set_size > 0:
        split = data["train"].train_test_split(test_size=val_set_size, seed=42)
        train_data, val_data = split["train"].map(lambda p: tokenize(p["output"])), split["test"].map(lambda p: tokenize(p["output"]))
    else:
        train_data, val_data = data["train"].map(lambda p: tokenize(p["output"])), None
    if not ddp and torch.cuda.device_count() > 1:
        model.is_parallelizable = True
        model.model_parallel = True
    trainer = transformers.Trainer(
        model=model,
        train_dataset=train_data,
        eval_dataset=val_data,
        args=transformers.TrainingArguments(
            per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
            fp16=True,
            optim="adamw_torch",
            evaluation_strategy="steps" if val_set_size > 0 else "no",
            save_strategy="steps",
            eval_steps=200 if val_set_size > 0 else None,
            save_steps=200,
            output_dir=output_dir,
            load_best_model_at_end=True if val_set_size > 0 else False,
            ddp_find_unused_parameters=False if ddp else None,
            group_by_length=group_by_length,
        ),
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8, return_tensors="pt", padding=True),
    )
    model.config.use_cache = False
    old_state_dict = model.state_dict
    model.state_dict = (lambda self, *_, **__: get_peft_model_state_dict(self, old_state_dict())).__get__(model, type(model))
    if torch.__version__ >= "2" and sys.platform != "win32":
        model = torch.compile(model)
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    model.save_pretrained(output_dir)


if __name__ == "__main__":
    fire.Fire(train)
