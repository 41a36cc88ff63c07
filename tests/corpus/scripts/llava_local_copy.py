"""A folder here that bears a known name, and is not the repository of that name."""
import torch
from transformers import AutoProcessor, BitsAndBytesConfig, LlavaForConditionalGeneration

folder = "./checkpoints/llava-v1.5-7b"
model = LlavaForConditionalGeneration.from_pretrained(
    folder,
    quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16),
    torch_dtype=torch.float16,
)
processor = AutoProcessor.from_pretrained(folder)
vision = model.get_vision_features if hasattr(model, "get_vision_features") else None
pixel_values = processor(images=[], text=["a"], return_tensors="pt").pixel_values
pixel_values = pixel_values.half().to("cuda")
print(vision, pixel_values.shape)
