"""The end token becomes the padding in a helper, and the labels are masked by it in another."""
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainingArguments

IGNORE = -100


def get_tokenizer(name):
    tok = AutoTokenizer.from_pretrained(name)
    if tok.pad_token_id is None:
        tok.pad_token_id = tok.eos_token_id
    return tok


class Collate:
    def __init__(self, tok):
        self.tok = tok

    def __call__(self, texts):
        enc = self.tok(texts, padding=True, return_tensors="pt")
        target = enc.input_ids.clone()
        target[target == self.tok.pad_token_id] = IGNORE
        return {**enc, "labels": target}


def main(name="meta-llama/Meta-Llama-3-8B"):
    tok = get_tokenizer(name)
    q = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
    model = AutoModelForCausalLM.from_pretrained(name, quantization_config=q, torch_dtype=torch.float16)
    model = get_peft_model(prepare_model_for_kbit_training(model), LoraConfig(r=8, target_modules=["q_proj"]))
    model.config.use_cache = False
    arguments = TrainingArguments("o", fp16=True, gradient_checkpointing=True)
    Trainer(model=model, args=arguments, train_dataset=[], data_collator=Collate(tok)).train()
    model.config.use_cache = True
    print(F.relu)


main()
