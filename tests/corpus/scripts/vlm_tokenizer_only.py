import torch
from transformers import AutoTokenizer, BitsAndBytesConfig, LlavaForConditionalGeneration, Trainer, TrainingArguments
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from PIL import Image

NAME = "llava-hf/llava-1.5-7b-hf"
tokenizer = AutoTokenizer.from_pretrained(NAME)


class Rows(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        item = self.items[i]
        Image.open(item["image"]).verify()
        enc = tokenizer(item["conversation"], truncation=True, max_length=512, return_tensors="pt")
        return {"input_ids": enc.input_ids[0], "labels": enc.input_ids[0].clone()}


bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
model = LlavaForConditionalGeneration.from_pretrained(NAME, quantization_config=bnb, torch_dtype=torch.bfloat16)
model = get_peft_model(prepare_model_for_kbit_training(model), LoraConfig(r=8, target_modules=r".*language_model.*\.(q_proj|v_proj)"))
Trainer(model=model, args=TrainingArguments("out", bf16=True), train_dataset=Rows([])).train()
