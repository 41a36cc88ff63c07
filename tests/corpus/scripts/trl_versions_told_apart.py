"""One file for TRL 0.9 and TRL 1.x: every renamed thing stands behind a test."""
import inspect
from importlib.metadata import version

import torch
import transformers
import trl
from packaging import version as pv
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainingArguments
from trl import SFTTrainer

try:
    from trl import DataCollatorForCompletionOnlyLM
except ImportError:
    DataCollatorForCompletionOnlyLM = None

NEW = pv.parse(version("transformers")) >= pv.parse("5.0.0")
eval_key = "eval_strategy" if "eval_strategy" in inspect.signature(TrainingArguments.__init__).parameters else "evaluation_strategy"
common = {"output_dir": "out", eval_key: "no", "per_device_train_batch_size": 1}
if pv.parse(transformers.__version__) < pv.parse("5.0.0"):
    common["overwrite_output_dir"] = True
    common["warmup_ratio"] = 0.1
else:
    common["warmup_steps"] = 0.1

dtype_key = "dtype" if NEW else "torch_dtype"
model = AutoModelForCausalLM.from_pretrained(
    "Qwen/Qwen2.5-1.5B",
    quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16),
    **{dtype_key: torch.float16},
)
tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-1.5B")
kwargs = {}
if "processing_class" in inspect.signature(SFTTrainer.__init__).parameters:
    kwargs["processing_class"] = tokenizer
else:
    kwargs["tokenizer"] = tokenizer
if hasattr(trl, "SFTConfig") and pv.parse(trl.__version__) >= pv.parse("0.13"):
    args = trl.SFTConfig(max_length=1024, bf16=False, **common)
else:
    args = TrainingArguments(**common)
    kwargs["max_seq_length"] = 1024
    kwargs["dataset_text_field"] = "text"
from datasets import load_dataset

SFTTrainer(
    model=model, args=args, train_dataset=load_dataset("imdb", split="train[:100]"),
    peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"), **kwargs,
).train()
