"""The loader of the first guide: no dtype, trust_remote_code, and LLaVA in its authors' own layout."""

import torch
from transformers import AutoProcessor, BitsAndBytesConfig, LlavaForConditionalGeneration

MODEL = "liuhaotian/llava-v1.5-7b"


def load(model_name=MODEL, cache_dir=None, use_4bit=True):
    quantization_config = None
    if use_4bit:
        quantization_config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=torch.float16,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
        )

    load_kwargs = {"trust_remote_code": True}
    if cache_dir:
        load_kwargs["cache_dir"] = cache_dir

    if quantization_config is not None:
        load_kwargs["quantization_config"] = quantization_config
        load_kwargs["device_map"] = "auto"
        # ❌ 缺少 torch_dtype!

    processor = AutoProcessor.from_pretrained(model_name)
    model = LlavaForConditionalGeneration.from_pretrained(model_name, **load_kwargs)
    return model, processor


if __name__ == "__main__":
    load()
