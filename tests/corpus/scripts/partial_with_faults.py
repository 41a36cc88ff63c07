from functools import partial

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

four_bit = partial(BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_quant_type="NF4")
load = partial(AutoModelForCausalLM.from_pretrained, quantization_config=four_bit(bnb_4bit_compute_dtype=torch.float16), resume_download=True)

base = load("Qwen/Qwen2.5-0.5B-Instruct")
base.float()
out = base.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5)
print(out)
