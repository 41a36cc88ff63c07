"""Training arguments with fields of the project's own, built directly and by the parser."""
from dataclasses import dataclass, field

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, HfArgumentParser, Trainer, TrainingArguments


@dataclass
class LoraFields:
    lora_r: int = 8
    targets: str = "q_proj,v_proj"


@dataclass
class OurArguments(LoraFields, TrainingArguments):
    evaluation_strategy: str = "no"
    tokenizer: str = ""
    output_dir: str = "o"
    fp16: bool = True


@dataclass
class LaterArguments(OurArguments):
    stage: int = field(default=1)


direct = LaterArguments(output_dir="x", evaluation_strategy="no", lora_r=4, targets="q_proj", stage=2, max_steps=3)
wrong = LaterArguments(output_dir="x", lora_r=4, warmup_ratio=0.1, stages=3)
(parsed,) = HfArgumentParser(OurArguments).parse_args_into_dataclasses()
q = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B", quantization_config=q)
lora = LoraConfig(r=direct.lora_r, target_modules=direct.targets.split(","))
model = get_peft_model(prepare_model_for_kbit_training(model), lora)
for args in (direct, parsed, wrong):
    Trainer(model=model, args=args, train_dataset=[]).train()
