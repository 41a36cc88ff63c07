# -*- coding: utf-8 -*-
# 用 4 比特加载 Qwen-VL-Chat，并用自己的数据做微调
import torch
from modelscope import snapshot_download
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

torch.manual_seed(1234)
模型名 = "Qwen/Qwen-VL-Chat"
tokenizer = AutoTokenizer.from_pretrained(模型名, trust_remote_code=True)
量化 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained(
    模型名, device_map="cuda", trust_remote_code=True, quantization_config=量化, torch_dtype=torch.bfloat16
).eval()
query = tokenizer.from_list_format([{"image": "demo.jpeg"}, {"text": "这是什么?"}])
response, history = model.chat(tokenizer, query=query, history=None)
print(response)
