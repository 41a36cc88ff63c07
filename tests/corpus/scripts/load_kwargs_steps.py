import functools

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

MODEL_ID = "Qwen/Qwen3-8B"

load_kwargs = dict(device_map="auto", low_cpu_mem_usage=True)
load_kwargs["quantization_config"] = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_use_double_quant=True
)
if torch.cuda.is_available():
    load_kwargs["attn_implementation"] = "sdpa"
load_kwargs.update({"dtype": torch.bfloat16})
loader = functools.partial(AutoModelForCausalLM.from_pretrained, MODEL_ID, **load_kwargs)

model = loader()
model.eval()
tokenizer = AutoTokenizer.from_pretrained(MODEL_ID, padding_side="left")


def ask(question):
    text = tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True)
    batch = tokenizer([text], return_tensors="pt").to(model.device)
    with torch.inference_mode():
        out = model.generate(**batch, max_new_tokens=256)
    return tokenizer.decode(out[0][batch["input_ids"].shape[1] :], skip_special_tokens=True)


if __name__ == "__main__":
    print(ask("What is a rank?"))
