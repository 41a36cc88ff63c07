import os
os.environ["HF_ENDPOINT"] = "https://hf-mirror.com"
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, BitsAndBytesConfig, LlavaForConditionalGeneration

model_path = "liuhaotian/llava-v1.5-7b"
bnb_config = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_compute_dtype=torch.float16,
    bnb_4bit_use_double_quant=True,
    bnb_4bit_quant_type="nf4",
)
model = LlavaForConditionalGeneration.from_pretrained(
    model_path,
    quantization_config=bnb_config,
    device_map="auto",
    trust_remote_code=True,
)
try:
    processor = AutoProcessor.from_pretrained(model_path)
except Exception as e:
    print("no processor, the warning is normal:", e)
    processor = AutoTokenizer.from_pretrained(model_path, use_fast=False)

image = Image.open("cat.jpg").convert("RGB")
inputs = processor(text="USER: <image>\nWhat is it? ASSISTANT:", images=image, return_tensors="pt").to("cuda")
print(processor.decode(model.generate(**inputs, max_new_tokens=64)[0]))
