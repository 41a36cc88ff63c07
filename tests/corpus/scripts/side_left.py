import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, DataCollatorForSeq2Seq, Trainer, TrainingArguments

tok = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-0.5B", padding_side="left", truncation_side="left")
model = AutoModelForCausalLM.from_pretrained(
    "Qwen/Qwen2.5-0.5B",
    quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16),
    torch_dtype=torch.float16,
)
model.config.use_cache = True
model = get_peft_model(prepare_model_for_kbit_training(model), LoraConfig(r=8, target_modules="all-linear"))
args = TrainingArguments("out", fp16=True, gradient_checkpointing=True, optim="paged_adamw_8bit")
trainer = Trainer(model=model, args=args, train_dataset=[tok("a")], data_collator=DataCollatorForSeq2Seq(tok))
trainer.train()
