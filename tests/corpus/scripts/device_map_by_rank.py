import os

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

world_size = int(os.environ.get("WORLD_SIZE", 1))
ddp = world_size != 1
device_map = "auto"
if ddp:
    device_map = {"": int(os.environ.get("LOCAL_RANK") or 0)}
q = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", quantization_config=q, device_map=device_map, torch_dtype=torch.float16)
if torch.cuda.device_count() > 1 and not ddp:
    model.is_parallelizable = True
    model.model_parallel = True
