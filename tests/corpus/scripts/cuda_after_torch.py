import torch, os
os.environ["CUDA_VISIBLE_DEVICES"] = "0"  # torch asks CUDA only when it is used
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
m = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B", quantization_config=BitsAndBytesConfig(load_in_8bit=True), torch_dtype="auto")
m.to("cuda:0")
