import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

# 4-bit the old way, without a config object
model = AutoModelForCausalLM.from_pretrained(
    "tiiuae/falcon-7b",
    load_in_4bit=True,
    bnb_4bit_compute_dtype=torch.float16,
    torch_dtype=torch.float16,
    device_map="auto",
)
plain = AutoModelForCausalLM.from_pretrained("gpt2", load_in_8bit=False)
tokenizer = AutoTokenizer.from_pretrained("tiiuae/falcon-7b")
ids = tokenizer("hello", return_tensors="pt").input_ids.to("cuda")
print(tokenizer.decode(model.generate(ids)[0]), plain.num_parameters())
