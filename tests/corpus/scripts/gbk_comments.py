# -*- coding: gbk -*-
# 四比特量化微调，中文注释
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainingArguments
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

模型路径 = "Qwen/Qwen2.5-7B-Instruct"  # 也可以用本地路径
量化配置 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
模型 = AutoModelForCausalLM.from_pretrained(模型路径, quantization_config=量化配置, torch_dtype=torch.float16)
模型 = prepare_model_for_kbit_training(模型)
模型 = get_peft_model(模型, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
模型 = 模型.to(torch.float16)  # 转成半精度
参数 = TrainingArguments(output_dir="输出", fp16=True, no_cuda=False, evaluation_strategy="no")
训练器 = Trainer(model=模型, args=参数, train_dataset=[], tokenizer=AutoTokenizer.from_pretrained(模型路径))
训练器.train()
