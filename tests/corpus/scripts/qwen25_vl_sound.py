import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoProcessor, BitsAndBytesConfig, Qwen2_5_VLForConditionalGeneration, Trainer, TrainingArguments

NAME = "Qwen/Qwen2.5-VL-3B-Instruct"


class Collator:
    def __init__(self, processor):
        self.processor = processor

    def __call__(self, rows):
        texts = [self.processor.apply_chat_template(r["messages"], tokenize=False) for r in rows]
        batch = self.processor(text=texts, images=[r["image"] for r in rows], padding=True, return_tensors="pt")
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        batch["pixel_values"] = batch["pixel_values"].to(torch.bfloat16)
        return batch


def load_model(quantised=True):
    kwargs = {"dtype": torch.bfloat16, "device_map": {"": 0}}
    if quantised:
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=["visual", ".*visual", "lm_head"],
        )
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(NAME, **kwargs)


processor = AutoProcessor.from_pretrained(NAME, min_pixels=256 * 28 * 28, max_pixels=768 * 28 * 28)
model = prepare_model_for_kbit_training(load_model())
model = get_peft_model(model, LoraConfig(r=16, target_modules=r"model\.language_model\..*\.(q_proj|v_proj)"))
arguments = TrainingArguments("out", remove_unused_columns=False, bf16=True, gradient_checkpointing=True, max_steps=50)
trainer = Trainer(model, arguments, data_collator=Collator(processor), train_dataset=load_dataset("json", data_files="vqa.json")["train"])
trainer.train()
