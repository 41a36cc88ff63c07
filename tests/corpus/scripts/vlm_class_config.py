"""Settings as attributes of a class, LLaVA-NeXT and InstructBLIP."""
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training, TaskType
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, InstructBlipForConditionalGeneration, LlavaNextForConditionalGeneration, Trainer, TrainingArguments, Seq2SeqTrainingArguments
from datasets import load_dataset

COMMON = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4")
class Cfg:
    name = "llava-hf/llava-v1.6-mistral-7b-hf"
    lora = {"r": 8, "lora_alpha": 16}
    train = {"output_dir": "o", "eval_strategy": "steps", "fp16": True, "bf16": True}

def build(cfg=Cfg):
    q = BitsAndBytesConfig(**COMMON, bnb_4bit_compute_dtype=torch.float16)
    m = LlavaNextForConditionalGeneration.from_pretrained(cfg.name, quantization_config=q, torch_dtype=torch.float16)
    m.gradient_checkpointing_enable()
    return get_peft_model(m, LoraConfig(**cfg.lora))

def run(cfg=Cfg):
    args = TrainingArguments(**cfg.train)
    args.gradient_checkpointing = True
    t = Trainer(build(cfg), args, None, load_dataset("x", split="train"))
    t.train()

run()

blip = InstructBlipForConditionalGeneration.from_pretrained("Salesforce/instructblip-vicuna-7b", quantization_config=BitsAndBytesConfig(**COMMON), dtype=torch.bfloat16)
blip_cfg = {"task_type": TaskType.QUESTION_ANS if True else None}
lc = LoraConfig(r=4, target_modules=["query", "value"], **blip_cfg)
blip = get_peft_model(prepare_model_for_kbit_training(blip), lc)
a2 = Seq2SeqTrainingArguments("o2", evaluation_strategy="epoch", per_device_train_batch_size=1)
t2 = Trainer(model=blip, args=a2, train_dataset=[], data_collator=lambda r: r)
t2.train()
