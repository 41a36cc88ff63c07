"""A plain transformers + peft training script with the settings of a plan."""

from __future__ import annotations

import json
import re

from qlora_doctor.errors import UsageError
from qlora_doctor.families import BY_TYPE
from qlora_doctor.memory.formula import Breakdown, adapter_linears
from qlora_doctor.memory.settings import Settings
from qlora_doctor.memory.shapes import Shape

# transformers' names.
OPTIMIZERS = {
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
    LoraConfig(r={rank}, lora_alpha={alpha}, target_modules={targets}, task_type="CAUSAL_LM"),
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
_SEEING = '''"""4-bit fine-tuning of {title}, written by `qlora-doctor plan`.

Rows of train.jsonl: {{"image": "cat.jpg", "question": "...", "answer": "..."}}. Only the answers are learned.
"""

import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, Trainer, TrainingArguments

MODEL = {model}
# Text tokens of a row; those of its image come on top.
LENGTH = {length}

processor = AutoProcessor.from_pretrained(MODEL{pixels})
tokenizer = processor.tokenizer
if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
model = AutoModelForImageTextToText.from_pretrained(
    MODEL,
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant={double},
        bnb_4bit_compute_dtype=torch.{dtype},
        llm_int8_skip_modules={skip},
    ),
    dtype=torch.{dtype},{attention}
    device_map={{"": 0 if torch.cuda.is_available() else "cpu"}},
)
model.config.use_cache = False
model = get_peft_model(model, LoraConfig(r={rank}, lora_alpha={alpha}, target_modules={targets}{task}))
model.print_trainable_parameters()
PADS = {{"input_ids": tokenizer.pad_token_id, "labels": -100, "attention_mask": 0, "mm_token_type_ids": 0}}
PADS |= {{"qformer_input_ids": 0, "qformer_attention_mask": 0}}


def encode(row):
{prompt}
    with Image.open(row["image"]) as file:
        image = file.convert("RGB")
    asked = dict(processor(text=prompt, images=image, return_tensors="pt"))
{labels}


def fill(value, shape, pad):
    """A tensor made as large as the largest of its batch, behind its end."""
    full = value.new_full(shape, pad)
    full[tuple(slice(size) for size in value.shape)] = value
    return full


def collate(rows):
    rows = [encode(row) for row in rows]
    batch = {{}}
    for name in [name for name in rows[0] if name in PADS or name.startswith(("pixel", "image"))]:
        values = [row[name] for row in rows]
        if name in PADS or values[0].dim() == 5:
            largest = [max(sizes) for sizes in zip(*(value.shape for value in values))]
            values = [fill(value, [value.shape[0], *largest[1:]], PADS.get(name, 0)) for value in values]
        batch[name] = torch.cat(values)
    return batch


def short(row):
    return len(tokenizer(row["question"] + row["answer"])["input_ids"]) <= LENGTH


data = load_dataset("json", data_files="train.jsonl", split="train").filter(short)
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
        remove_unused_columns=False,
    ),
    train_dataset=data,
    data_collator=collate,
)
trainer.train()
model.save_pretrained("out/adapter")
processor.save_pretrained("out/adapter")
'''
_CHAT = """    content = [{"type": "image"}, {"type": "text", "text": row["question"]}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)"""
_PLAIN = '    prompt = row["question"]'
_ANSWERS = """    both = dict(processor(text=prompt + " " + row["answer"] + tokenizer.eos_token, images=image, return_tensors="pt"))
    labels = both["input_ids"].clone()
    labels[:, : asked["input_ids"].shape[1]] = -100
    # The Q-Former, where there is one, sees the question alone.
    return {**both, **{name: value for name, value in asked.items() if name.startswith("qformer")}, "labels": labels}"""
_SEQ2SEQ = """    return {**asked, "labels": tokenizer(row["answer"], return_tensors="pt")["input_ids"]}"""
_KIND = '\n        gradient_checkpointing_kwargs={"use_reentrant": False},'
_NAMES = re.compile(r"\(((?:\w+\|)+\w+)\)$")


def script(name: str, shape: Shape, s: Settings, accumulation: int, bfloat16: bool = True) -> str:
    """The script as text. `bfloat16`: whether the card computes in it (capability 8.0 and newer).

    Raises:
        UsageError: no such script is written: not a 4-bit run, T5 alone, several images a row, PEFT's preparation.
    """
    if s.bits != 4 or s.method != "qlora":
        raise UsageError("--emit writes 4-bit scripts; leave --bits out")
    if s.prepared:
        raise UsageError(
            "--emit writes no prepare_model_for_kbit_training, which takes memory for nothing; leave --prepared out"
        )
    if shape.images is None and shape.decoder is not None:
        raise UsageError(
            f"--emit writes scripts for models that take images or write on from a text; {name} is neither"
        )
    if shape.images is not None and s.images not in (None, 1):
        raise UsageError("--emit writes scripts for one image a row; leave --images out")
    half = "bfloat16" if bfloat16 else "float16"
    attention = {"flash": "flash_attention_2"}.get(s.attention, s.attention)
    common: dict[str, object] = {
        "title": name.replace("\\", "/").replace('"', "'"),
        "model": json.dumps(name, ensure_ascii=False),
        "length": s.length,
        "dtype": half,
        "half": "bf16" if bfloat16 else "fp16",
        "double": s.double_quant,
        "rank": s.rank,
        "alpha": 2 * s.rank,
        "batch": s.batch,
        "accumulation": accumulation,
        "checkpointing": s.checkpointing,
        "kind": _KIND if s.checkpointing else "",
        "optimizer": OPTIMIZERS[s.optimizer],
        "liger": "\n        use_liger_kernel=True," if s.loss == "chunked" else "",
        "targets": _targets(shape, s),
    }
    if shape.images is None:
        return _TEXT.format(**common, attention=attention)
    family = BY_TYPE[shape.model_type]
    blip = shape.images.rule == "queries"
    return _SEEING.format(
        **common,
        attention=f'\n    attn_implementation="{attention}",' if not blip or attention != "sdpa" else "",
        pixels=f", max_pixels={s.max_pixels}" if s.max_pixels else "",
        skip=json.dumps([*family.kept(s.kept is not None and "vision tower" not in s.kept)]),
        task=f', task_type="{family.task_type}"' if family.task_type else "",
        prompt=_PLAIN if blip else _CHAT,
        labels=_SEQ2SEQ if shape.decoder is not None else _ANSWERS,
    )


def _targets(shape: Shape, s: Settings) -> str:
    """The matrices that carry LoRA, as the script writes them: what the estimate counted, and no other."""
    if s.targets == "all-linear":
        return '"all-linear"'
    if s.targets == "Q-Former":
        return r'r".*qformer\..*\.(query|key|value)"'
    names = dict.fromkeys(x.name for x in adapter_linears(shape, s))
    family = BY_TYPE.get(shape.model_type)
    pattern = family.lora_targets if family else r".*\.(_|_)"
    return 'r"' + _NAMES.sub(lambda _: f"({'|'.join(names)})", pattern) + '"'


def train_words(s: Settings, b: Breakdown, accumulation: int, images: bool) -> list[tuple[str, str]]:
    """The settings of `qlora-core train --set NAME=VALUE` that mean this plan.

    `max_length` counts the tokens of images too, as they lie in the row.
    """
    words: list[tuple[str, object]] = [
        ("per_device_train_batch_size", s.batch),
        ("gradient_accumulation_steps", accumulation),
        ("max_length", s.length + b.image_tokens),
        ("lora_r", s.rank),
        ("optim", OPTIMIZERS[s.optimizer]),
        ("loss", "chunked" if s.loss == "chunked" else "plain"),
    ]
    words += [] if s.checkpointing else [("gradient_checkpointing", "false")]
    words += [("bits", s.bits)] if s.bits != 4 else []
    words += [("quantize_vision", "true")] if images and s.kept is not None and "vision tower" not in s.kept else []
    words += [("max_pixels", s.max_pixels)] if s.max_pixels else []
    words += [("train", "qformer")] if s.targets == "Q-Former" else []
    words += [("attn_implementation", "eager" if s.attention == "eager" else "flash_attention_2")] * (
        s.attention != "sdpa"
    )
    return [(name, str(value)) for name, value in words]
