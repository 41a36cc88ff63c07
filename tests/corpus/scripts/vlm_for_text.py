"""A VLM asked about text alone."""
import torch
from transformers import AutoTokenizer, BitsAndBytesConfig, Qwen2VLForConditionalGeneration

name = "Qwen/Qwen2-VL-2B-Instruct"
tok = AutoTokenizer.from_pretrained(name)
model = Qwen2VLForConditionalGeneration.from_pretrained(
    name, torch_dtype=torch.float16,
    quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16),
)
text = tok.apply_chat_template([{"role": "user", "content": "Name a river."}], tokenize=False, add_generation_prompt=True)
print(tok.decode(model.generate(**tok(text, return_tensors="pt").to(model.device), max_new_tokens=20)[0]))
