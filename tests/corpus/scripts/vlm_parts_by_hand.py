"""Image processor and tokenizer apart: nothing is missing."""
import torch
from PIL import Image
from transformers import AutoTokenizer, BitsAndBytesConfig, CLIPImageProcessor, LlavaForConditionalGeneration

name = "llava-hf/llava-1.5-7b-hf"
tok, eyes = AutoTokenizer.from_pretrained(name), CLIPImageProcessor.from_pretrained(name)
model = LlavaForConditionalGeneration.from_pretrained(
    name, torch_dtype=torch.float16,
    quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16),
)
batch = tok("USER: " + "<image>" * 576 + "\nwhat? ASSISTANT:", return_tensors="pt")
batch["pixel_values"] = eyes(Image.open("a.png"), return_tensors="pt").pixel_values.half()
print(tok.decode(model.generate(**batch)[0]))
