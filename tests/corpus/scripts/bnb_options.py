import torch
import transformers as hf

a = hf.BitsAndBytesConfig(load_in_4bit=True, load_in_8bit=True, bnb_4bit_compute_dtype=torch.float16)
b = hf.BitsAndBytesConfig(bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
c = hf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float16)
d = hf.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6)
e = hf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="fp16", bnb_4bit_double_quant=True)
NAME = "mistralai/Mistral-7B-v0.1"
ma = hf.AutoModelForCausalLM.from_pretrained(NAME, quantization_config=a)
mb = hf.AutoModelForCausalLM.from_pretrained(NAME, quantization_config=b)
mc = hf.AutoModelForCausalLM.from_pretrained(NAME, quantization_config=c)
md = hf.AutoModelForCausalLM.from_pretrained(NAME, quantization_config=d)
me = hf.AutoModelForCausalLM.from_pretrained(NAME, quantization_config=e)
