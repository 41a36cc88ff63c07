# LLaVA's own code base: its loader knows its own layout.
import argparse

import torch
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import get_model_name_from_path, process_images, tokenizer_image_token
from llava.model import LlavaLlamaForCausalLM
from llava.model.builder import load_pretrained_model
from PIL import Image
from transformers import AutoTokenizer, BitsAndBytesConfig


def eval_model(args):
    name = get_model_name_from_path(args.model_path)
    if args.direct:
        kwargs = {"device_map": "auto"}
        kwargs["load_in_4bit"] = True
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=torch.float16, bnb_4bit_use_double_quant=True, bnb_4bit_quant_type="nf4"
        )
        tokenizer = AutoTokenizer.from_pretrained("liuhaotian/llava-v1.5-7b", use_fast=False)
        model = LlavaLlamaForCausalLM.from_pretrained("liuhaotian/llava-v1.5-7b", low_cpu_mem_usage=True, **kwargs)
        tower = model.get_vision_tower()
        tower.to(device="cuda", dtype=torch.float16)
        image_processor = tower.image_processor
    else:
        tokenizer, model, image_processor, _ = load_pretrained_model(args.model_path, None, name, load_4bit=True)
    conv = conv_templates["v1"].copy()
    conv.append_message(conv.roles[0], DEFAULT_IMAGE_TOKEN + "\n" + args.query)
    conv.append_message(conv.roles[1], None)
    ids = tokenizer_image_token(conv.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt").unsqueeze(0).cuda()
    pixels = process_images([Image.open(args.image)], image_processor, model.config).half().cuda()
    with torch.inference_mode():
        out = model.generate(ids, images=pixels, max_new_tokens=128)
    print(tokenizer.batch_decode(out, skip_special_tokens=True)[0])


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--model-path", default="liuhaotian/llava-v1.5-7b")
    p.add_argument("--image", required=True)
    p.add_argument("--query", default="Describe.")
    p.add_argument("--direct", action="store_true")
    eval_model(p.parse_args())
