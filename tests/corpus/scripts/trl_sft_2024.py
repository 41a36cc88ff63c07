import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainingArguments
from trl import DataCollatorForCompletionOnlyLM, SFTTrainer, setup_chat_format

# 1. model
model_id = "mistralai/Mistral-7B-Instruct-v0.2"
bnb_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
model = AutoModelForCausalLM.from_pretrained(model_id, quantization_config=bnb_config, use_flash_attention_2=True, device_map={"": 0})
tokenizer = AutoTokenizer.from_pretrained(model_id)
tokenizer.pad_token = tokenizer.eos_token
model, tokenizer = setup_chat_format(model, tokenizer)

# 2. adapters
peft_config = LoraConfig(r=64, lora_alpha=16, lora_dropout=0.1, bias="none", task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
model = prepare_model_for_kbit_training(model)
model = get_peft_model(model, peft_config)

# 3. trainer
args = TrainingArguments(
    output_dir="mistral-int4",
    num_train_epochs=3,
    per_device_train_batch_size=4,
    gradient_checkpointing=True,
    optim="paged_adamw_32bit",
    fp16=True,
    evaluation_strategy="epoch",
    disable_tqdm=True,
)
dataset = load_dataset("databricks/databricks-dolly-15k", split="train")


def formatting(sample):
    return f"### Instruction\n{sample['instruction']}\n### Response\n{sample['response']}"


trainer = SFTTrainer(
    model=model,
    train_dataset=dataset,
    peft_config=peft_config,
    max_seq_length=2048,
    tokenizer=tokenizer,
    packing=False,
    formatting_func=formatting,
    data_collator=DataCollatorForCompletionOnlyLM("### Response", tokenizer=tokenizer),
    args=args,
)
trainer.train()
