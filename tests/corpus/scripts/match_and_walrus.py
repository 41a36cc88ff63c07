import sys

import torch
import transformers as tf


def dtype_of(word):
    match word:
        case "bf16":
            return torch.bfloat16
        case "fp16":
            return torch.float16
        case _:
            return torch.float32


if (choice := sys.argv[1] if len(sys.argv) > 1 else "fp16") == "int8":
    quant = tf.BitsAndBytesConfig(load_in_8bit=True)
else:
    quant = tf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype_of(choice))

model = tf.AutoModelForCausalLM.from_pretrained("google/gemma-2b", quantization_config=quant, trust_remote_code=True, use_auth_token=True)
model = model.to(torch.float16) if choice == "fp16" else model
