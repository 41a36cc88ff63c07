import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlavaForConditionalGeneration, LlavaProcessor

KEEP = ["lm_head", "model.vision_tower", ".*multi_modal_projector"]
a = LlavaForConditionalGeneration.from_pretrained(
    "llava-hf/llava-1.5-7b-hf",
    torch_dtype=torch.float16,
    quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=KEEP),
)
b = AutoModelForCausalLM.from_pretrained(
    "some-org/own-architecture-7b",
    torch_dtype=torch.float16,
    quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["router", "head"]),
)
processor = LlavaProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf")
