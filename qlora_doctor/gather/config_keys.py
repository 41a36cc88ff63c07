"""The key names of settings files, by layout, and the names that transformers, PEFT and TRL give the same things.

Read off the projects' own examples and argument classes: LLaMA-Factory ff6d4d1, axolotl 067b021, ms-swift 3602360.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_doctor.source import Value

LAYOUTS = ("llama-factory", "axolotl", "ms-swift", "transformers")

# Keys that only this layout has; two of them decide.
_MARKS: Mapping[str, frozenset[str]] = {
    "llama-factory": frozenset(
        {
            "finetuning_type", "stage", "quantization_bit", "template", "cutoff_len", "lora_target", "dataset_dir",
            "plot_loss", "quantization_method", "double_quantization", "visual_inputs", "freeze_vision_tower",
        }
    ),
    "axolotl": frozenset(
        {
            "base_model", "sequence_len", "micro_batch_size", "lora_target_modules", "lora_target_linear", "adapter",
            "sample_packing", "dataset_prepared_path", "val_set_size", "num_epochs", "tokenizer_type",
        }
    ),
    "ms-swift": frozenset(
        {
            "train_type", "tuner_type", "quant_bits", "quant_method", "sft_type", "model_type", "freeze_vit", "model_id_or_path",
            "bnb_4bit_comp_dtype", "train_dataset", "split_dataset_ratio", "system", "freeze_aligner", "target_regex",
        }
    ),
}  # fmt: skip

_COMMON_LOAD = {
    "pretrained_model_name_or_path": "model_name_or_path",
    "trust_remote_code": "trust_remote_code",
    "torch_dtype": "torch_dtype",
    "dtype": "dtype",
    "device_map": "device_map",
    "attn_implementation": "attn_implementation",
    "load_in_4bit": "load_in_4bit",
    "load_in_8bit": "load_in_8bit",
    "revision": "revision",
}
LOAD: Mapping[str, Mapping[str, str]] = {
    "transformers": _COMMON_LOAD,
    "llama-factory": {
        "pretrained_model_name_or_path": "model_name_or_path",
        "trust_remote_code": "trust_remote_code",
        "revision": "model_revision",
    },
    "axolotl": {
        "pretrained_model_name_or_path": "base_model",
        "trust_remote_code": "trust_remote_code",
        "torch_dtype": "torch_dtype",
        "device_map": "device_map",
        "attn_implementation": "attn_implementation",
        "revision": "revision_of_model",
    },
    "ms-swift": {
        "pretrained_model_name_or_path": "model",
        "torch_dtype": "torch_dtype",
        "device_map": "device_map",
        "attn_implementation": "attn_impl",
        "revision": "model_revision",
    },
}
# Names of the model in files of no known project, the guides' among them.
MODEL_NAMES = (
    "model_name_or_path",
    "model_name",
    "model_id",
    "base_model",
    "pretrained_model_name_or_path",
    "base_model_name",
)

SETTINGS = frozenset(
    {
        "output_dir", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
        "learning_rate", "num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_ratio", "warmup_steps", "bf16",
        "fp16", "tf32", "optim", "weight_decay", "max_grad_norm", "logging_steps", "save_steps", "save_strategy",
        "save_total_limit", "eval_strategy", "evaluation_strategy", "eval_steps", "gradient_checkpointing",
        "gradient_checkpointing_kwargs", "dataloader_num_workers", "dataloader_pin_memory", "remove_unused_columns",
        "report_to", "seed", "deepspeed", "fsdp", "fsdp_config", "group_by_length", "load_best_model_at_end",
        "max_seq_length", "max_length", "packing", "dataset_text_field", "save_only_model", "overwrite_output_dir",
        "dataloader_prefetch_factor", "ddp_find_unused_parameters", "neftune_noise_alpha", "half_precision_backend",
        "no_cuda", "use_cpu", "bf16_full_eval", "fp16_full_eval", "logging_dir", "do_train", "do_eval", "do_predict",
        "push_to_hub", "hub_model_id", "run_name", "ddp_timeout", "metric_for_best_model", "save_safetensors",
        "logging_first_step", "use_liger_kernel", "torch_compile", "predict_with_generate", "include_tokens_per_second",
    }
)  # fmt: skip
# Keys that many other files have too: alone they do not make a file training settings.
WEAK = frozenset({"seed", "max_length", "output_dir", "learning_rate", "report_to", "run_name", "packing", "max_steps"})

_OWN_SETTINGS: Mapping[str, Mapping[str, str]] = {
    "llama-factory": {"max_length": "cutoff_len"},
    "axolotl": {
        "per_device_train_batch_size": "micro_batch_size",
        "num_train_epochs": "num_epochs",
        "optim": "optimizer",
        "lr_scheduler_type": "lr_scheduler",
        "max_length": "sequence_len",
        "packing": "sample_packing",
    },
    "ms-swift": {},
    "transformers": {},
}
LORA: Mapping[str, Mapping[str, str]] = {
    "transformers": {
        "r": "lora_r",
        "lora_alpha": "lora_alpha",
        "lora_dropout": "lora_dropout",
        "target_modules": "lora_target_modules",
        "modules_to_save": "lora_modules_to_save",
        "task_type": "lora_task_type",
        "bias": "lora_bias",
    },
    "llama-factory": {
        "r": "lora_rank",
        "lora_alpha": "lora_alpha",
        "lora_dropout": "lora_dropout",
        "target_modules": "lora_target",
        "modules_to_save": "additional_target",
    },
    "axolotl": {
        "r": "lora_r",
        "lora_alpha": "lora_alpha",
        "lora_dropout": "lora_dropout",
        "target_modules": "lora_target_modules",
        "target_linear": "lora_target_linear",
        "modules_to_save": "lora_modules_to_save",
    },
    "ms-swift": {
        "r": "lora_rank",
        "lora_alpha": "lora_alpha",
        "lora_dropout": "lora_dropout",
        "target_modules": "target_modules",
        "modules_to_save": "modules_to_save",
    },
}
BNB = frozenset(
    {
        "load_in_4bit", "load_in_8bit", "bnb_4bit_compute_dtype", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant",
        "bnb_4bit_quant_storage", "llm_int8_threshold", "llm_int8_skip_modules", "llm_int8_enable_fp32_cpu_offload",
        "llm_int8_has_fp16_weight",
    }
)  # fmt: skip
BNB_OWN: Mapping[str, Mapping[str, str]] = {
    "llama-factory": {"bnb_4bit_use_double_quant": "double_quantization", "bnb_4bit_quant_type": "quantization_type"},
    "ms-swift": {"bnb_4bit_compute_dtype": "bnb_4bit_comp_dtype"},
}
BITS: Mapping[str, str] = {"llama-factory": "quantization_bit", "ms-swift": "quant_bits"}
LOADER: Mapping[str, str] = {
    "llama-factory": "llamafactory.train",
    "axolotl": "axolotl.train",
    "ms-swift": "swift.train",
    "transformers": ".from_pretrained",
}
FUNCTION: Mapping[str, tuple[str, str, str]] = {
    "llama-factory": ("llamafactory.train", "peft.LoraConfig", "transformers.Seq2SeqTrainingArguments"),
    "axolotl": ("axolotl.train", "peft.LoraConfig", "transformers.TrainingArguments"),
    "ms-swift": ("swift.train", "peft.LoraConfig", "transformers.Seq2SeqTrainingArguments"),
    "transformers": ("transformers.Trainer", "peft.LoraConfig", "transformers.TrainingArguments"),
}
SECTIONS = frozenset(
    {
        "quantization_config", "quantization", "bnb_config", "gradient_checkpointing_kwargs", "fsdp_config", "deepspeed",
        "device_map", "rope_scaling",
    }
)  # fmt: skip
# The files of accelerate and DeepSpeed, and a model's own config.json, share key names with settings but are none.
_OTHERS = frozenset(
    {
        "compute_environment", "distributed_type", "zero_optimization", "train_micro_batch_size_per_gpu", "architectures",
        "fsdp_version", "num_machines", "peft_type", "model_max_length", "best_model_checkpoint",
    }
)  # fmt: skip
ALL = frozenset(
    set(SETTINGS)
    | set(BNB)
    | SECTIONS
    | set(MODEL_NAMES)
    | {name for marks in _MARKS.values() for name in marks}
    | {old for table in (LOAD, LORA, _OWN_SETTINGS, BNB_OWN) for names in table.values() for old in names.values()}
    | set(BITS.values())
)


def layout_of(flat: Mapping[str, Any]) -> str:
    """Which project's key names a file uses; "" where it is no file of settings."""
    present = set(flat)
    scores = {name: len(marks & present) for name, marks in _MARKS.items()}
    best = max(scores, key=lambda name: scores[name])
    if "base_model" in present and ("micro_batch_size" in present or "sequence_len" in present):
        return "axolotl"
    if scores[best] >= 2 and any(scores[best] > scores[n] for n in scores if n != best):
        model = LOAD[best]["pretrained_model_name_or_path"]
        if model in present or scores[best] >= 3:
            return best
    if present & _OTHERS:
        return ""
    present = {name for name in present if not isinstance(flat[name], Mapping)}
    if len((SETTINGS - WEAK) & present) >= 2 or (
        (SETTINGS - WEAK) & present and any(n in present for n in MODEL_NAMES)
    ):
        return "transformers"
    if {"load_in_4bit", "load_in_8bit"} & present or _quantization_section(flat):
        return "transformers"
    return ""


def _quantization_section(flat: Mapping[str, Any]) -> bool:
    section = flat.get("quantization_config", flat.get("quantization"))
    return isinstance(section, Mapping) and bool(BNB & set(section))


def settings(layout: str) -> dict[str, str]:
    """Training settings: transformers' name to the file's."""
    own = _OWN_SETTINGS[layout]
    taken = set(own)
    return {**{name: name for name in SETTINGS if name not in taken}, **own}


def adapters(flat: Mapping[str, Any], layout: str) -> bool | None:
    """Whether the file asks for adapters; None where it does not say."""
    key = {"llama-factory": "finetuning_type", "axolotl": "adapter"}.get(layout, "")
    if layout == "ms-swift":
        key = next((k for k in ("tuner_type", "train_type", "sft_type") if k in flat), "")
        if not key:
            return True
    if layout == "transformers":
        asked = flat.get("use_peft", flat.get("use_lora"))
        return asked if isinstance(asked, bool) else None
    if key not in flat:
        return None if layout == "axolotl" else True
    return flat[key] in ("lora", "qlora", "longlora", "adalora", "dora", "oft")


def bitsandbytes(flat: Mapping[str, Any], layout: str) -> bool:
    """Whether the bits that are asked for mean bitsandbytes."""
    key = {"llama-factory": "quantization_method", "ms-swift": "quant_method"}.get(layout, "")
    return flat.get(key, "bnb") in ("bnb", "bitsandbytes", None)


def tidy_lora(values: dict[str, Value]) -> dict[str, Value]:
    """LoRA settings in PEFT's terms: `all` and `lora_target_linear` are `all-linear`, a list in a string is a list."""
    targets = values.get("target_modules")
    linear = values.pop("target_linear", None)
    if targets == "all" or (linear is True and not targets):
        values["target_modules"] = "all-linear"
    elif isinstance(targets, str) and "," in targets:
        values["target_modules"] = tuple(t.strip() for t in targets.split(","))
    return values
