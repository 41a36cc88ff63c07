"""Makes a tiny model, runs each pair of scripts it is given, and prints the error of each as JSON. Needs the stack."""

from __future__ import annotations

import json
import os
import runpy
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""


def tiny(folder: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    os.makedirs("unknown", exist_ok=True)
    with open("unknown/config.json", "w", encoding="utf-8") as file:
        json.dump({"model_type": "qwen99_vl"}, file)


def error_of(path: str) -> str:
    try:
        runpy.run_path(path, run_name="__main__")
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is what is asked for
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    tiny("tiny")
    for path in sys.argv[1:]:
        print("ERROR", json.dumps([path, error_of(path)]), flush=True)
