"""Padding tokens that are not the end token, written as one would write the other."""
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, DataCollatorForLanguageModeling, Trainer, TrainingArguments

name = "meta-llama/Meta-Llama-3-8B"
tok = AutoTokenizer.from_pretrained(name)
if tok.pad_token is None:
    tok.add_special_tokens({"pad_token": "<|reserved_special_token_0|>"})
eos = tok.eos_token
tok.eos_token_id_of_chat = tok.convert_tokens_to_ids("<|eot_id|>")
q = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
model = AutoModelForCausalLM.from_pretrained(name, quantization_config=q, torch_dtype=torch.float16)
model.config.pad_token_id = tok.pad_token_id
model.generation_config.pad_token_id = model.config.eos_token_id
model = get_peft_model(prepare_model_for_kbit_training(model), LoraConfig(r=8, target_modules=["q_proj"]))
collate = DataCollatorForLanguageModeling(tok, False)
Trainer(model=model, args=TrainingArguments("o", fp16=True), train_dataset=[], data_collator=collate).train()
print(model.generate(torch.ones(1, 1).long(), pad_token_id=tok.eos_token_id), eos)
