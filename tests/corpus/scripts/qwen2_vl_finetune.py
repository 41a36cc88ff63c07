"""Qwen2-VL on receipts. The task: read the total."""
import torch
from datasets import load_dataset
from peft import LoraConfig
from qwen_vl_utils import process_vision_info
from transformers import AutoModelForVision2Seq, AutoProcessor, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

model_id = "Qwen/Qwen2-VL-7B-Instruct"

bnb_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForVision2Seq.from_pretrained(model_id, device_map="auto", torch_dtype=torch.bfloat16, quantization_config=bnb_config)
processor = AutoProcessor.from_pretrained(model_id)

peft_config = LoraConfig(lora_alpha=16, lora_dropout=0.05, r=8, bias="none", target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def collate_fn(examples):
    texts = [processor.apply_chat_template(e["messages"], tokenize=False) for e in examples]
    images = [process_vision_info(e["messages"])[0] for e in examples]
    batch = processor(text=texts, images=images, return_tensors="pt", padding=True)
    labels = batch["input_ids"].clone()
    labels[labels == processor.tokenizer.pad_token_id] = -100
    for token in (151652, 151653, 151655):
        labels[labels == token] = -100
    batch["labels"] = labels
    return batch


args = SFTConfig(
    output_dir="qwen2-7b-receipts",
    num_train_epochs=3,
    per_device_train_batch_size=4,
    gradient_checkpointing=True,
    optim="adamw_torch_fused",
    bf16=True,
    max_grad_norm=0.3,
    warmup_ratio=0.03,
    gradient_checkpointing_kwargs={"use_reentrant": False},
    dataset_text_field="",
    dataset_kwargs={"skip_prepare_dataset": True},
)
args.remove_unused_columns = False
dataset = load_dataset("mychen76/invoices-and-receipts_ocr_v1", split="train")
trainer = SFTTrainer(model=model, args=args, train_dataset=dataset, data_collator=collate_fn, peft_config=peft_config, tokenizer=processor.tokenizer)
trainer.train()
trainer.save_model(args.output_dir)
