"""AutoProcessor for a text model, and the tokenizer of a VLM repository for counting words: both fine."""
import torch
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, BitsAndBytesConfig

try:
    tokenizer = AutoProcessor.from_pretrained("Qwen/Qwen2.5-3B-Instruct")
except OSError:
    tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-3B-Instruct")
counter = AutoTokenizer.from_pretrained("llava-hf/llava-1.5-7b-hf")
old_counter = AutoTokenizer.from_pretrained("liuhaotian/llava-v1.5-7b")
model = AutoModelForCausalLM.from_pretrained(
    "Qwen/Qwen2.5-3B-Instruct",
    torch_dtype=torch.float16,
    quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16),
)
text = "count me"
print(len(counter(text).input_ids), len(old_counter(text).input_ids))
print(tokenizer.decode(model.generate(**tokenizer(text, return_tensors="pt").to(model.device))[0]))
