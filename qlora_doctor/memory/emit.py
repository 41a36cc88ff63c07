"""A plain transformers + peft training script with the settings of a plan."""

from __future__ import annotations

import json

from qlora_doctor.families import BY_TYPE
from qlora_doctor.memory.settings import Settings
from qlora_doctor.memory.shapes import Shape

_OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw-8bit": "adamw_bnb_8bit",
    "paged-adamw-8bit": "paged_adamw_8bit",
    "paged-adamw": "paged_adamw_32bit",
    "sgd": "sgd",
}
_TEXT = '''"""4-bit fine-tuning of {title}, written by `qlora-doctor plan`. Rows: {{"text": "..."}} in train.jsonl."""

import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

MODEL = {model}
LENGTH = {length}

tokenizer = AutoTokenizer.from_pretrained(MODEL)
if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(
    MODEL,
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant={double},
        bnb_4bit_compute_dtype=torch.{dtype},
    ),
    dtype=torch.{dtype},
    attn_implementation="{attention}",
    device_map={{"": 0 if torch.cuda.is_available() else "cpu"}},
)
model.config.use_cache = False
model = get_peft_model(
    model,
    LoraConfig(r={rank}, lora_alpha={alpha}, target_modules=r"{targets}", task_type="CAUSAL_LM"),
)
model.print_trainable_parameters()


def encode(row):
    return tokenizer(row["text"], truncation=True, max_length=LENGTH)


data = load_dataset("json", data_files="train.jsonl", split="train")
data = data.map(encode, remove_columns=data.column_names)
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="out",
        per_device_train_batch_size={batch},
        gradient_accumulation_steps={accumulation},
        gradient_checkpointing={checkpointing},{kind}
        optim="{optimizer}",
        {half}=True,
        use_cpu=not torch.cuda.is_available(),{liger}
        learning_rate=2e-4,
        num_train_epochs=1,
        logging_steps=1,
    ),
    train_dataset=data,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
trainer.train()
model.save_pretrained("out/adapter")
'''
_KIND = '\n        gradient_checkpointing_kwargs={"use_reentrant": False},'


def script(name: str, shape: Shape, s: Settings, accumulation: int, bfloat16: bool = True) -> str:
    """The script as text. `bfloat16`: whether the card computes in it (capability 8.0 and newer).

    Raises:
        UsageError: the model takes images; its batches need the family's own collator, which `qlora-core train` has.
    """
    from qlora_doctor.errors import UsageError

    if shape.images is not None or shape.decoder is not None or s.bits != 4:
        raise UsageError(f"--emit writes 4-bit scripts for text models; {name} with these settings is not one")
    family = BY_TYPE.get(shape.model_type)
    targets = family.lora_targets if family else r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    if s.targets == "q,v":
        targets = r".*\.(q_proj|v_proj)"
    elif s.targets == "attention":
        targets = r".*\.(q_proj|k_proj|v_proj|o_proj)"
    return _TEXT.format(
        title=name.replace("\\", "/").replace('"', "'"),
        model=json.dumps(name, ensure_ascii=False),
        length=s.length,
        dtype="bfloat16" if bfloat16 else "float16",
        half="bf16" if bfloat16 else "fp16",
        double=s.double_quant,
        attention={"flash": "flash_attention_2"}.get(s.attention, s.attention),
        rank=s.rank,
        alpha=2 * s.rank,
        targets=targets,
        batch=s.batch,
        accumulation=accumulation,
        checkpointing=s.checkpointing,
        kind=_KIND if s.checkpointing else "",
        optimizer=_OPTIMIZERS[s.optimizer],
        liger="\n        use_liger_kernel=True," if s.loss == "chunked" else "",
    )
