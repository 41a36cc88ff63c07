"""Qwen-VL-Chat in bf16 with its own code, as its model card says; a Qwen2-VL in 4 bit beside it."""
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Qwen2VLForConditionalGeneration

old_tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen-VL-Chat", trust_remote_code=True)
old = AutoModelForCausalLM.from_pretrained("Qwen/Qwen-VL-Chat", device_map="cuda", trust_remote_code=True, bf16=True).eval()
old = old.half()
new = Qwen2VLForConditionalGeneration.from_pretrained(
    "Qwen/Qwen2-VL-2B-Instruct",
    torch_dtype="auto",
    quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16),
)
new.to("cuda")
query = old_tokenizer.from_list_format([{"image": "a.png"}, {"text": "?"}])
print(old.chat(old_tokenizer, query=query, history=None), new.config)
