import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

tok = AutoTokenizer.from_pretrained("meta-llama/Llama-2-7b-hf", padding_side="left")
tok.pad_token = tok.eos_token  # only for generating in batches
model = AutoModelForCausalLM.from_pretrained(
    "meta-llama/Llama-2-7b-hf",
    quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16),
    torch_dtype=torch.float16, device_map="auto",
)
batch = tok(["a", "b c"], return_tensors="pt", padding=True).to("cuda")
batch["labels"] = batch["input_ids"].clone()
with torch.no_grad():
    print(tok.batch_decode(model.generate(**{k: v for k, v in batch.items() if k != "labels"})))
