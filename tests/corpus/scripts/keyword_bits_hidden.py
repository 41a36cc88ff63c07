import argparse

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="google/flan-t5-xl")
parser.add_argument("--load_in_8bit", action="store_true")
opts = parser.parse_args()


def kwargs_for(opts):
    out = {"device_map": "auto"}
    out["load_in_8bit"] = opts.load_in_8bit
    out["torch_dtype"] = torch.bfloat16
    return out


def get_class(name):
    return AutoModelForSeq2SeqLM if "t5" in name else AutoModelForCausalLM


model = get_class(opts.model).from_pretrained(opts.model, **kwargs_for(opts))
print(model.get_memory_footprint())
