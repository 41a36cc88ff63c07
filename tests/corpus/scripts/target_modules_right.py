"""Target modules that look odd, and are right."""
import re
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def linears(model):
    return sorted({n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"})


q = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
falcon = AutoModelForCausalLM.from_pretrained("tiiuae/falcon-7b", quantization_config=q)
falcon = get_peft_model(prepare_model_for_kbit_training(falcon), LoraConfig(target_modules=["query_key_value"]))
qwen = AutoModelForCausalLM.from_pretrained("Qwen/Qwen-7B", trust_remote_code=True)
qwen = get_peft_model(qwen, LoraConfig(target_modules=["c_attn", "c_proj", "w1", "w2"]))
mixed = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", quantization_config=q)
mixed = get_peft_model(prepare_model_for_kbit_training(mixed), LoraConfig(target_modules=["q_proj", "query_key_value"]))
pattern = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", quantization_config=q)
pattern = get_peft_model(prepare_model_for_kbit_training(pattern), LoraConfig(target_modules=r".*\.(q|v)_proj$"))
found = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", quantization_config=q)
found = get_peft_model(prepare_model_for_kbit_training(found), LoraConfig(target_modules=linears(found)))
plain = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", quantization_config=q)
plain = get_peft_model(prepare_model_for_kbit_training(plain), LoraConfig(r=4, task_type="CAUSAL_LM"))
for model in (falcon, qwen, mixed, pattern, found, plain):
    for batch in []:
        model(**batch).loss.backward()
print(re.__name__)
