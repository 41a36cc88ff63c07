import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained(
    "mistralai/Mistral-7B-v0.1",
    quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16),
    use_cache=True,
)
peft_model = get_peft_model(model, LoraConfig(r=8, target_modules=["query_key_value"], task_type="CAUSAL_LM"))
peft_model = prepare_model_for_kbit_training(peft_model)
args = TrainingArguments(output_dir="out", fp16=True, gradient_checkpointing=True, load_best_model_at_end=True)
Trainer(model=peft_model, args=args, train_dataset=[]).train()
