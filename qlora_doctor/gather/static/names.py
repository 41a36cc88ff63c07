"""The names of the stack: what is a model class, a trainer, its settings; which calls matter; positional parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping

STACK = frozenset(
    {
        "transformers", "peft", "trl", "accelerate", "bitsandbytes", "unsloth", "unsloth_zoo", "modelscope", "swift",
        "optimum", "auto_gptq", "awq", "deepspeed", "huggingface_hub", "qlora_core", "llava", "lavis", "qwen_vl_utils",
        "liger_kernel", "axolotl", "llamafactory", "auto_round", "hqq", "flash_attn", "xformers",
    }
)  # fmt: skip
_RECORDED = (
    "torch.optim.", "torch.distributed.", "torch.nn.parallel.", "torch.nn.DataParallel", "torch.compile",
    "torch.autocast", "torch.amp.", "torch.cuda.amp.", "torch.set_default_dtype", "torch.set_default_tensor_type",
    "torch.cuda.set_device", "torch.multiprocessing.", "datasets.load_dataset", "datasets.load_from_disk",
    "torch.cuda.set_per_process_memory_fraction", "torch.manual_seed", "torch.set_float32_matmul_precision",
)  # fmt: skip
SELF_METHODS = frozenset(
    {
        "half",
        "float",
        "bfloat16",
        "double",
        "to",
        "cuda",
        "cpu",
        "eval",
        "train",
        "requires_grad_",
        "xpu",
        "npu",
        "type",
    }
)
TRACKED_METHODS = frozenset(
    {
        "half", "float", "bfloat16", "double", "to", "cuda", "gradient_checkpointing_enable", "merge_and_unload",
        "gradient_checkpointing_disable", "enable_input_require_grads", "resize_token_embeddings", "generate",
        "add_special_tokens", "add_tokens", "add_adapter", "load_adapter", "merge_adapter", "apply_chat_template",
        "save_pretrained", "push_to_hub", "from_pretrained", "backward", "batch_encode_plus", "encode_plus", "encode",
        "pad", "requires_grad_", "type", "register_forward_hook", "set_adapter", "disable_adapter", "unload",
    }
)  # fmt: skip
CASTS = frozenset({"half", "float", "bfloat16", "double", "to", "cuda", "type"})
MODULE_METHODS = frozenset({"get_base_model", "get_submodule", "get_input_embeddings", "get_output_embeddings"})
MAKERS = frozenset(
    {
        "get_peft_model", "prepare_model_for_kbit_training", "prepare_model_for_int8_training", "load_dataset", "compile",
        "load_from_disk", "pipeline", "prepare_model_for_training", "snapshot_download", "from_pretrained", "from_config",
        "from_dict", "from_hf_config", "load_quantized", "field",
    }
)  # fmt: skip
PREPARERS = frozenset(
    {"prepare_model_for_kbit_training", "prepare_model_for_int8_training", "prepare_model_for_training"}
)
_NOT_MODEL = re.compile(
    r"Tokenizer|Processor|Config$|Extractor|Pipeline|Scheduler|^PeftModel|Trainer|Collator|Dataset|Streamer|Adapter$|"
    r"^SentenceTransformer|Evaluat|Mixin$|Criteria|^LoraModel"
)
_MODEL = re.compile(
    r"^(TF|Flax)?Auto(Peft)?Model|For[A-Z]\w*$|LMHeadModel|Model$|^Fast\w*Model$|LMModel|ForCausalLM|^(Llava|Qwen)\w+"
)
_FOREIGN = frozenset(
    {"diffusers", "sentence_transformers", "open_clip", "timm", "keras", "tensorflow", "spacy", "fastai"}
)
_SETTINGS = re.compile(
    r"TrainingArguments$|^(SFT|DPO|ORPO|KTO|CPO|GRPO|PPO|PPOv2|Reward|RLOO|GKD|OnlineDPO|XPO|NashMD|BCO|PRM|"
    r"IterativeSFT|SimPO|ORPO)Config$"
)
_CONFIG = re.compile(r"(Config|Arguments|Args|Plugin|Kwargs)$")

_FROM_PRETRAINED = ("pretrained_model_name_or_path",)
_TRAINER = ("model", "args", "data_collator", "train_dataset", "eval_dataset")
_PAIR = ("model", "ref_model", "args", "data_collator", "train_dataset", "eval_dataset")
_POSITIONAL: Mapping[str, tuple[str, ...]] = {
    "Trainer": _TRAINER,
    "Seq2SeqTrainer": _TRAINER,
    "SFTTrainer": _TRAINER,
    "DPOTrainer": _PAIR,
    "KTOTrainer": _PAIR,
    "ORPOTrainer": _TRAINER,
    "CPOTrainer": _TRAINER,
    "RewardTrainer": _TRAINER,
    "get_peft_model": ("model", "peft_config", "adapter_name"),
    "prepare_model_for_kbit_training": ("model", "use_gradient_checkpointing", "gradient_checkpointing_kwargs"),
    "prepare_model_for_int8_training": ("model", "use_gradient_checkpointing"),
    "BitsAndBytesConfig": ("load_in_8bit", "load_in_4bit", "llm_int8_threshold", "llm_int8_skip_modules"),
    "load_dataset": ("path", "name", "data_dir", "data_files", "split"),
    "DataCollatorForLanguageModeling": ("tokenizer", "mlm", "mlm_probability"),
    "DataCollatorForSeq2Seq": ("tokenizer", "model", "padding", "max_length"),
    "DataCollatorWithPadding": ("tokenizer", "padding", "max_length"),
    "AdamW": ("params", "lr"),
    "Adam": ("params", "lr"),
    "SGD": ("params", "lr"),
    "resize_token_embeddings": ("new_num_tokens", "pad_to_multiple_of"),
    "load_quantized": _FROM_PRETRAINED,
    "snapshot_download": ("repo_id",),
    "pipeline": ("task", "model"),
}

# Arguments whose presence no check asks for: a script is not split into cases over them.
DULL = frozenset(
    {
        "cache_dir", "token", "revision", "subfolder", "local_files_only", "code_revision", "offload_folder", "max_memory",
        "proxies", "force_download", "variant", "use_safetensors", "low_cpu_mem_usage", "offload_state_dict", "seed",
        "output_dir", "run_name", "report_to", "push_to_hub", "hub_model_id", "hub_token", "logging_dir", "logging_steps",
        "save_steps", "save_total_limit", "overwrite_output_dir", "max_steps", "num_train_epochs", "learning_rate",
        "compute_metrics", "callbacks", "preprocess_logits_for_metrics", "dataloader_num_workers", "logging_strategy",
        "resume_download", "num_proc", "batch_size", "attn_implementation", "_attn_implementation",
    }
)  # fmt: skip


def last(function: str) -> str:
    """`from_pretrained` of `transformers.X.from_pretrained`."""
    return function.rpartition(".")[2]


def owner(function: str) -> str:
    """`X` of `transformers.X.from_pretrained`."""
    return last(function.rpartition(".")[0])


def top(function: str) -> str:
    """`transformers` of `transformers.X.from_pretrained`."""
    return function.partition(".")[0]


def in_stack(function: str) -> bool:
    """Whether a call of this import path is worth a look by some check."""
    if top(function) in STACK or function.startswith(_RECORDED):
        return True
    name = last(function)
    return name == "from_pretrained" or name in PREPARERS or name in ("get_peft_model", "load_quantized")


def is_trainer(function: str) -> bool:
    """Whether an import path is a Trainer class (Lightning's, which is another thing, left out)."""
    name = last(function)
    return name.endswith("Trainer") and top(function) not in ("pytorch_lightning", "lightning", "keras", "builtins")


def is_settings(function: str) -> bool:
    """Whether an import path is a class of training arguments."""
    return bool(_SETTINGS.search(last(function)))


def is_configuration(function: str) -> bool:
    """Whether a call makes a record of arguments, whose attributes are its arguments."""
    return bool(_CONFIG.search(last(function)))


def is_model_class(path: str) -> bool:
    """Whether an import path is a model class, by its name."""
    name = last(path)
    return bool(_MODEL.search(name)) and not _NOT_MODEL.search(name) and top(path) not in _FOREIGN


def is_load(function: str) -> bool:
    """Whether a call loads a model (not a tokenizer, a configuration or an adapter)."""
    if last(function) == "load_quantized" and top(function) == "qlora_core":
        return True
    return last(function) == "from_pretrained" and is_model_class(function.rpartition(".")[0])


def is_maker(function: str) -> bool:
    """Whether a library call returns an object that is worth following."""
    name = last(function)
    return name[:1].isupper() or name in MAKERS


def parameters(function: str) -> tuple[str, ...]:
    """The names of the positional parameters of a call, as far as they are the same in all versions."""
    name = last(function)
    if name == "from_pretrained":
        if owner(function).startswith("PeftM") or owner(function) == "PeftMixedModel":
            return ("model", "model_id", "adapter_name")
        return _FROM_PRETRAINED
    if is_settings(function):
        return ("output_dir",)
    if name == "get_peft_model" and owner(function).startswith("Fast"):
        return ("model", "r", "target_modules", "lora_alpha", "lora_dropout", "bias")
    if name in _POSITIONAL:
        return _POSITIONAL[name]
    if name.endswith(("AdamW", "Adam", "AdamW8bit", "Adam8bit", "AdamW32bit", "Lion")):
        return ("params", "lr")
    return _TRAINER if is_trainer(function) and top(function) == "transformers" else ()


def keyword(function: str, name: str) -> str:
    """The name under which a keyword is kept: unsloth writes `model_name` for the model's path."""
    if name == "model_name" and last(function) == "from_pretrained" and owner(function).startswith("Fast"):
        return "pretrained_model_name_or_path"
    return name
