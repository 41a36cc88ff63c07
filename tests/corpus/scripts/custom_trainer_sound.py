from typing import Any, Dict, Optional, Union

import torch
import transformers
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers import Trainer as HFTrainer


class LossTrainer(HFTrainer):
    def __init__(self, *args, alpha=0.5, tokenizer=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.alpha, self.tokenizer_ = alpha, tokenizer

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        out = model(**inputs)
        return (out.loss * self.alpha, out) if return_outputs else out.loss * self.alpha

    def training_step(self, *args, **kwargs):
        return super().training_step(*args, **kwargs)

    def log(self, logs: Dict[str, float], start_time: Optional[float] = None) -> None:
        super().log({**logs, "alpha": self.alpha}, start_time)

    def get_eval_dataloader(self, eval_dataset: Union[str, Any, None] = None):
        return torch.utils.data.DataLoader([])


class Ours:
    """Not a Trainer of transformers."""

    def compute_loss(self, model, inputs):
        return model(inputs)


quant = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B", quantization_config=quant)
model = get_peft_model(prepare_model_for_kbit_training(model), LoraConfig(r=8, target_modules=["q_proj"]))
args = transformers.TrainingArguments("out", fp16=True, eval_strategy="steps", eval_steps=10)
trainer = LossTrainer(model=model, args=args, train_dataset=[], alpha=0.3, tokenizer=None)
trainer.train()
