import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained(
    "Qwen/Qwen2.5-0.5B",
    quantisation_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16),
    torch_dtype=torch.float16,
    fp16=True,
)
lora = LoraConfig(rank=16, lora_alpha=32, target_modules=["q_proj"])
model = get_peft_model(model, lora)
args = TrainingArguments(
    output_dir="out",
    per_device_batch_size=2,
    learning_rates=1e-4,
    max_grad_norm=0.3,
)
trainer = Trainer(model=model, args=args, train_data=[], data_collator=None)
trainer.train()
