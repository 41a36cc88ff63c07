"""gradio demo in a class with a cached model."""
import functools
import threading

import gradio as gr
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TextIteratorStreamer


@functools.lru_cache(maxsize=1)
def get(base, adapter, four_bit):
    kwargs = {}
    if four_bit:
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16
        )
    model = AutoModelForCausalLM.from_pretrained(base, device_map="auto", torch_dtype=torch.float16, **kwargs)
    model = PeftModel.from_pretrained(model, adapter)
    if not four_bit:
        model = model.merge_and_unload()
        model.half()
    model.eval()
    if torch.__version__ >= "2":
        model = torch.compile(model)
    return model, AutoTokenizer.from_pretrained(base)


def chat(message, history, four_bit=True):
    model, tokenizer = get("Qwen/Qwen2.5-7B-Instruct", "adapter", four_bit)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    inputs = tokenizer(message, return_tensors="pt").to(model.device)
    threading.Thread(target=model.generate, kwargs={**inputs, "streamer": streamer}).start()
    yield from streamer


gr.ChatInterface(chat, additional_inputs=[gr.Checkbox(value=True)]).launch()
