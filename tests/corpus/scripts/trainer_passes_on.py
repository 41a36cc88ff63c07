"""Subclasses that hand everything on."""
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM as LM
from transformers import AutoTokenizer, BitsAndBytesConfig
from transformers.trainer import Trainer as Base
from transformers.training_args import TrainingArguments as Args


class Contrastive(Base):
    def __init__(self, *args, margin=0.1, **kwargs):
        super().__init__(*args, **kwargs)
        self.margin = margin

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class Nested(Contrastive):
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        return None, None, None


name = "Qwen/Qwen2.5-0.5B"
model = LM.from_pretrained(name, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16))
model = get_peft_model(prepare_model_for_kbit_training(model), LoraConfig(r=8, target_modules=["q_proj"]))
args = Args(output_dir="o", fp16=True, save_safetensors=True)
trainer = Nested(model=model, args=args, train_dataset=[], tokenizer=AutoTokenizer.from_pretrained(name), margin=0.5)
trainer.train()
