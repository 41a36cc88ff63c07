"""LoRA on VLMs."""
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoProcessor, BitsAndBytesConfig, Qwen2VLForConditionalGeneration, InstructBlipForConditionalGeneration
from transformers import Trainer, TrainingArguments

processor = AutoProcessor.from_pretrained("Qwen/Qwen2-VL-2B-Instruct")
q = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
qwen = Qwen2VLForConditionalGeneration.from_pretrained("Qwen/Qwen2-VL-2B-Instruct", quantization_config=q, torch_dtype=torch.float16)
qwen = get_peft_model(prepare_model_for_kbit_training(qwen), LoraConfig(target_modules="all-linear", r=8))
t1 = Trainer(model=qwen, args=TrainingArguments("a", remove_unused_columns=False), train_dataset=[], data_collator=lambda rows: rows)
blip = InstructBlipForConditionalGeneration.from_pretrained("Salesforce/instructblip-flan-t5-xl", quantization_config=q, torch_dtype=torch.bfloat16)
blip_lora = LoraConfig(target_modules=["q_proj", "v_proj"], r=8)
blip = get_peft_model(prepare_model_for_kbit_training(blip), blip_lora)
t2 = Trainer(model=blip, args=TrainingArguments("b"), train_dataset=[])
string = LoraConfig(r=8, target_modules="v_proj")
qwen2 = Qwen2VLForConditionalGeneration.from_pretrained("Qwen/Qwen2-VL-2B-Instruct", quantization_config=q, torch_dtype=torch.float16)
t3 = Trainer(model=get_peft_model(prepare_model_for_kbit_training(qwen2), string), args=TrainingArguments("c"), train_dataset=[])
