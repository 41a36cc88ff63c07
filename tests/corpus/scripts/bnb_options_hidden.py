import json
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

SETTINGS = json.loads('{"nf4": true}')


def compute_dtype(name="bfloat16"):
    return getattr(torch, name)


def make(kind):
    table = {
        "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute_dtype("float16")},
        "int8": {"load_in_8bit": True},
    }
    return BitsAndBytesConfig(**table[kind])


good = make("nf4")
later = BitsAndBytesConfig(load_in_4bit=True)
later.bnb_4bit_compute_dtype = torch.float16
later.bnb_4bit_quant_type = "nf4"
m1 = AutoModelForCausalLM.from_pretrained("mistralai/Mistral-7B-v0.1", quantization_config=good, torch_dtype=torch.float16)
m2 = AutoModelForCausalLM.from_pretrained("mistralai/Mistral-7B-v0.1", quantization_config=later, torch_dtype=torch.float16)
m3 = AutoModelForCausalLM.from_pretrained(
    "mistralai/Mistral-7B-v0.1", quantization_config={"load_in_4bit": True, "bnb_4bit_compute_dtype": "float16", "bnb_4bit_quant_type": "nf4"}
)
