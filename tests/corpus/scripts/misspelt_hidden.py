import torch
import yaml
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

base_args = dict(output_dir="o", per_device_train_batch_size=1)
base_args |= {"gradient_acumulation_steps": 4}
extra = {"max_seq_len": 512, **base_args}
bnb = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4")
bnb["bnb_4bit_computedtype"] = torch.float16
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B", quantization_config=BitsAndBytesConfig(**bnb), use_cache=False, dtype=torch.float16)
with open("more.yaml") as f:
    more = yaml.safe_load(f)
trainer = SFTTrainer(model, SFTConfig(**extra), train_dataset=[], peft_config=LoraConfig(r=8, target_module=["q_proj"], **more))
trainer.train()
