import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

bf16 = torch.cuda.is_bf16_supported()
compute = torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16
q = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", quantization_config=q, torch_dtype=compute)
model = get_peft_model(prepare_model_for_kbit_training(model), LoraConfig(r=8, target_modules="all-linear"))
args = TrainingArguments("o", bf16=bf16, fp16=not bf16)
Trainer(model, args, train_dataset=[]).train()
