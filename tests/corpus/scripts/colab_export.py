# -*- coding: utf-8 -*-
"""Saved from Colab as .py

!pip lines and all.
"""

!pip install -q -U bitsandbytes transformers \
    peft
# %cd /content
%cd /content

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainingArguments

if torch.cuda.is_available():
    !nvidia-smi

files = !ls
model_id = "EleutherAI/gpt-neox-20b"
bnb_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
tokenizer = AutoTokenizer.from_pretrained(model_id)
model = AutoModelForCausalLM.from_pretrained(model_id, quantization_config=bnb_config, device_map={"": 0}, trust_remote_code=True)
model.gradient_checkpointing_enable()
model = prepare_model_for_kbit_training(model)
model = get_peft_model(model, LoraConfig(r=8, target_modules=["query_key_value"], task_type="CAUSAL_LM"))
args = TrainingArguments(output_dir="outputs", fp16=True, per_device_batch_size=1, no_cuda=False)
trainer = Trainer(model=model, train_dataset=[], args=args)
trainer.train()
model.push_to_hub("me/neox-qlora", use_temp_dir=False)
tokenizer.push_to_hub("me/neox-qlora", use_auth_token=True)
trainer.push_to_hub(commit_message="done", token=None)
