import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainingArguments

tok = AutoTokenizer.from_pretrained("meta-llama/Llama-2-7b-hf", pad_token="</s>")


class Causal(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        ids = inputs["input_ids"]
        labels = torch.where(ids == tok.pad_token_id, torch.full_like(ids, -100), ids)
        out = model(**inputs)
        loss = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return (loss, out) if return_outputs else loss


q = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
model = AutoModelForCausalLM.from_pretrained("meta-llama/Llama-2-7b-hf", quantization_config=q, torch_dtype=torch.float16)
model = get_peft_model(prepare_model_for_kbit_training(model), LoraConfig(r=8, target_modules=["q_proj"]))
Causal(model=model, args=TrainingArguments("o", fp16=True), train_dataset=[]).train()
