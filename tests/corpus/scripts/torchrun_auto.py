#!/usr/bin/env python
# torchrun --nproc_per_node 4 torchrun_auto.py
import os

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainingArguments

local_rank = int(os.environ.get("LOCAL_RANK", -1))
dist.init_process_group("nccl")
q = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", quantization_config=q, device_map="auto", torch_dtype=torch.float16)
model = get_peft_model(prepare_model_for_kbit_training(model), LoraConfig(r=8, target_modules="all-linear"))
Trainer(model, TrainingArguments("o", ddp_find_unused_parameters=False), train_dataset=[]).train()
