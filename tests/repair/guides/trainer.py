# LLaMA/Qwen QLoRA 微调脚手架（NF4 + Paged Optim + Grad Checkpointing）
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

MODEL = "Qwen/Qwen3-4b"
TEXTS = ["### 指令:\n解释 LoRA\n### 回答:\nLoRA 通过低秩增量", "### 指令:\n写诗\n### 回答:\n床前明月光"]

bnb_config = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_use_double_quant=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_compute_dtype=torch.bfloat16,
)
base_model = AutoModelForCausalLM.from_pretrained(
    MODEL,
    quantization_config=bnb_config,
    device_map="auto",
    trust_remote_code=True,
)
tokenizer = AutoTokenizer.from_pretrained(MODEL, trust_remote_code=True)
base_model = prepare_model_for_kbit_training(base_model)
lora_config = LoraConfig(
    r=64,
    lora_alpha=16,
    lora_dropout=0.05,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
    bias="none",
    task_type="CAUSAL_LM",
)
model = get_peft_model(base_model, lora_config)
model.print_trainable_parameters()
model.gradient_checkpointing_enable()
model.config.use_cache = False

dataset = Dataset.from_dict({"text": TEXTS}).map(
    lambda row: tokenizer(row["text"], truncation=True, max_length=64), remove_columns=["text"]
)
training_args = TrainingArguments(
    output_dir="./outputs/llama_qlora",
    per_device_train_batch_size=1,
    gradient_accumulation_steps=1,
    learning_rate=1e-4,
    max_steps=2,
    logging_steps=10,
    evaluation_strategy="steps",  # 每 50 步评估
    eval_steps=50,
    save_steps=50,
    save_total_limit=2,
    report_to=[],
    optim="paged_adamw_32bit",
    bf16=True,
    gradient_checkpointing=True,
    dataloader_num_workers=0,
)
trainer = Trainer(
    model=model,
    args=training_args,
    train_dataset=dataset,
    eval_dataset=dataset,
    tokenizer=tokenizer,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
trainer.train()
