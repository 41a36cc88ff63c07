"""Much that looks wrong and is right."""
# DeepSpeed / custom loop / GPTQ / dataset traps
import os, torch, sys
sys.path.append(os.path.dirname(__file__))
from datasets import load_dataset, Dataset
from transformers import (AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GPTQConfig, AwqConfig,
    Trainer, TrainingArguments, EarlyStoppingCallback, DataCollatorForSeq2Seq, AutoConfig)
from peft import LoraConfig, get_peft_model, PeftModel, TaskType, prepare_model_for_kbit_training
import bitsandbytes as bnb

cfg = AutoConfig.from_pretrained("Qwen/Qwen2.5-7B", trust_remote_code=True)
gptq = AutoModelForCausalLM.from_pretrained("TheBloke/Llama-2-7B-GPTQ", device_map="auto", quantization_config=GPTQConfig(bits=4, disable_exllama=True), trust_remote_code=False, revision="main")
gptq = gptq.half()
tok = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-7B", use_fast=False, trust_remote_code=True, padding_side="left", use_auth_token=True)
tok.pad_token_id = tok.eod_id if hasattr(tok, "eod_id") else tok.pad_token_id
prequant = AutoModelForCausalLM.from_pretrained("unsloth/Qwen2.5-7B-bnb-4bit", device_map={"": 0})
prequant = prequant.half()

def find_all_linear_names(model, add_lm_head=False):
    cls = bnb.nn.Linear4bit
    names = set()
    for name, module in model.named_modules():
        if isinstance(module, cls):
            parts = name.split('.')
            names.add(parts[0] if len(parts) == 1 else parts[-1])
    if 'lm_head' in names: names.remove('lm_head')
    return list(names)

q = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype="float16", bnb_4bit_quant_type="nf4", llm_int8_threshold=6.0, llm_int8_has_fp16_weight=False)
model = AutoModelForCausalLM.from_pretrained(cfg._name_or_path or "Qwen/Qwen2.5-7B", config=cfg, quantization_config=q, torch_dtype="auto")
model.config.use_cache = False
model.enable_input_require_grads()
for name, module in model.named_modules():
    if 'norm' in name:
        module = module.to(torch.float32)
model = get_peft_model(model, LoraConfig(task_type=TaskType.CAUSAL_LM, r=8, target_modules=find_all_linear_names(model), modules_to_save=["embed_tokens"]))
for n, p in model.named_parameters():
    if "lora" in n:
        p.data = p.data.float()
for n, m in model.named_modules():
    if 'lora_' in n or 'ranknum' in n:
        m = m.to(torch.bfloat16)
model.print_trainable_parameters()
args = TrainingArguments("o", deepspeed="ds_config.json", bf16=True, gradient_checkpointing=True, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="loss")
ds = load_dataset("json", data_files={"train": "a.json", "test": "b.json"})
trainer = Trainer(model=model, args=args, train_dataset=ds["train"], eval_dataset=ds["test"], data_collator=DataCollatorForSeq2Seq(tok, model=model, label_pad_token_id=-100), callbacks=[EarlyStoppingCallback(3)])
trainer.train()
trainer.model.save_pretrained("x")
base = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", torch_dtype=torch.float16)
PeftModel.from_pretrained(base, "x").merge_and_unload().half().save_pretrained("m")
with torch.cuda.amp.autocast(dtype=torch.float16):
    out = trainer.model(torch.ones(1,1).long())
out.logits.float().half()
