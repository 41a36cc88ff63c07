"""Provokes failures of the stack for real, and prints each traceback as one JSON line: name, the cause it has, the text.

One process for all, because importing the stack takes most of the time. No GPU and no network is needed.
"""

from __future__ import annotations

import json
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
ROOT = Path(tempfile.mkdtemp())
CASES: dict[str, tuple[str, Callable[[], Any]]] = {}


def provokes(cause: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def add(function: Callable[[], Any]) -> Callable[[], Any]:
        CASES[function.__name__] = (cause, function)
        return function

    return add


def folder(name: str, **files: Any) -> str:
    path = ROOT / name
    path.mkdir(exist_ok=True)
    for file, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / file.replace("__", ".")).write_text(text, encoding="utf-8")
    return str(path)


def statement(text: str) -> Callable[[], Any]:
    return lambda: exec(text, {})  # noqa: S102 - the text stands below


def tiny(hidden: int = 32, vocabulary: int = 64) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=hidden,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=vocabulary,
        )
    )


def saved() -> str:
    path = ROOT / "tiny"
    if not path.exists():
        tiny().save_pretrained(path)
    return str(path)


def four_bit() -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(saved(), quantization_config=config, dtype=torch.float32)


def tokenizer(**more: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", **more)


def lora(**arguments: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(tiny(), LoraConfig(**arguments))


def trainer(model: Any, rows: list[dict[str, Any]], **arguments: Any) -> Any:
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    settings = TrainingArguments(output_dir=str(ROOT / "out"), report_to="none", use_cpu=True, max_steps=1)
    return Trainer(model=model, args=settings, train_dataset=Dataset.from_list(rows), **arguments)


for name, (cause, code) in {
    "cuda_without_cuda": ("torch_cpu_build", "import torch; torch.zeros(1).cuda()"),
    "import_adamw": ("name_removed_new_transformers", "from transformers import AdamW"),
    "import_vision2seq": ("name_removed_new_transformers", "from transformers import AutoModelForVision2Seq"),
    "import_misspelt": ("class_name_typo", "from transformers import Qwen2_5VLForConditionalGeneration"),
    "import_int8_helper": ("peft_int8_helper_removed", "from peft import prepare_model_for_int8_training"),
    "import_private": (
        "private_class_removed_new_transformers",
        "from transformers.models.llama.modeling_llama import LLAMA_ATTENTION_CLASSES",
    ),
    "sft_old_argument": (
        "trl_args_moved_to_config",
        "from trl import SFTTrainer; SFTTrainer(dataset_text_field='text')",
    ),
    "old_strategy": (
        "evaluation_strategy_removed",
        "from transformers import TrainingArguments; TrainingArguments('x', evaluation_strategy='no')",
    ),
    "old_no_cuda": (
        "training_argument_removed",
        "from transformers import TrainingArguments; TrainingArguments('x', no_cuda=True)",
    ),
    "tf32": ("tf32_unsupported_gpu", "from transformers import TrainingArguments; TrainingArguments('x', tf32=True)"),
    "meta_to_cpu": ("meta_tensor_to_call", "import torch; torch.nn.Linear(2, 2, device='meta').to('cpu')"),
    "token_outside": ("vocab_not_resized", "import torch; torch.nn.Embedding(4, 2)(torch.tensor([4]))"),
    "integer_gradient": (
        "requires_grad_on_quantised",
        "import torch; torch.zeros(1, dtype=torch.uint8).requires_grad_()",
    ),
    "auto_class_called": ("auto_class_instantiated", "from transformers import AutoModel; AutoModel()"),
    "strategy_without_steps": (
        "training_arguments_contradict",
        (
            "from transformers import TrainingArguments; "
            "TrainingArguments('x', eval_strategy='steps', eval_steps=0, logging_steps=0)"
        ),
    ),
    "both_for_evaluation": (
        "training_arguments_contradict",
        "from transformers import TrainingArguments; TrainingArguments('x', use_cpu=True, fp16_full_eval=True, bf16_full_eval=True)",
    ),
    "trainer_without_model": ("trainer_model_missing", "from transformers import Trainer; Trainer()"),
    "adapter_config_of_another": (
        "adapter_config_incomplete",
        (
            "import json, pathlib, tempfile; from peft import LoraConfig; f = tempfile.mkdtemp(); "
            "pathlib.Path(f, 'adapter_config.json').write_text(json.dumps({'rank_of_mine': 8})); "
            "LoraConfig.from_pretrained(f)"
        ),
    ),
    "rows_past_the_end": (
        "dataset_index_too_large",
        "from datasets import Dataset; Dataset.from_list([{'a': 1}]).select([5])",
    ),
    "column_absent": (
        "dataset_column_missing",
        "from datasets import Dataset; Dataset.from_list([{'a': 1}]).remove_columns('text')",
    ),
    "force_and_local": (
        "hub_options_contradict",
        (
            "from huggingface_hub import hf_hub_download; "
            "hf_hub_download('a/b', 'c', force_download=True, local_files_only=True)"
        ),
    ),
    "nothing_trainable": ("no_trainable_parameters", "import torch; torch.zeros(1).backward()"),
    "half_times_float": (
        "mat_dtype_float_half_qlora",
        "import torch; torch.nn.Linear(2, 2)(torch.zeros(1, 2, dtype=torch.bfloat16))",
    ),
    "unscale_half": (
        "fp16_trainable_params",
        (
            "import torch\np = torch.nn.Parameter(torch.zeros(1, dtype=torch.float16)); p.grad = torch.zeros_like(p)\n"
            "s = torch.amp.GradScaler('cpu'); s.scale(torch.ones(1)); s.unscale_(torch.optim.SGD([p], lr=1))"
        ),
    ),
    "init_on_char": ("missing_weights_reinitialised", "import torch; torch.zeros(1, dtype=torch.int8).normal_()"),
    "label_outside": (
        "label_out_of_range",
        "import torch; torch.nn.functional.cross_entropy(torch.zeros(1, 3), torch.tensor([7]))",
    ),
    "labels_longer": (
        "labels_length_mismatch",
        "import torch; torch.nn.functional.cross_entropy(torch.zeros(2, 3), torch.tensor([1, 1, 1]))",
    ),
    "sample_nan": ("generate_nan_after_qlora", "import torch; torch.multinomial(torch.tensor([float('nan'), 1.0]), 1)"),
    "both_bits": (
        "quant_both_bits",
        "from transformers import BitsAndBytesConfig; BitsAndBytesConfig(load_in_4bit=True, load_in_8bit=True)",
    ),
    "bits_as_text": (
        "quant_config_value_invalid",
        "from transformers import BitsAndBytesConfig; BitsAndBytesConfig(load_in_4bit='yes')",
    ),
    "quantise_twice": (
        "quantised_twice",
        "import torch, bitsandbytes as b; b.functional.quantize_4bit(torch.zeros(64, 64, dtype=torch.uint8))",
    ),
    "lora_unknown_key": ("adapter_config_newer_peft", "from peft import LoraConfig; LoraConfig(brand_new_key=1)"),
    "lora_misspelt": ("lora_config_misspelt", "from peft import LoraConfig; LoraConfig(lora_r=8)"),
    "task_type": ("peft_task_type_invalid", "from peft import LoraConfig; LoraConfig(task_type='CAUSAL')"),
    "full_disk": ("disk_full_on_save", "import torch; torch.save(torch.zeros(99999), '/dev/full')"),
    "offline": (
        "hub_offline_not_cached",
        "from transformers import AutoConfig; AutoConfig.from_pretrained('no/such-model')",
    ),
    "path_as_name": (
        "local_path_not_found",
        "from huggingface_hub import hf_hub_download; hf_hub_download('/data/no/where', 'x')",
    ),
    "scipy_or_other": ("package_not_in_this_interpreter", "import deepspeed"),
    "optimizer_other": (
        "resume_other_parameters",
        (
            "import torch\nmake = lambda n: torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1)) for _ in range(n)])\n"
            "make(1).load_state_dict(make(2).state_dict())"
        ),
    ),
    "shared_tensors": (
        "tied_weights_save",
        "import torch; from safetensors.torch import save_file; t = torch.zeros(2); save_file({'a': t, 'b': t}, '/dev/null')",
    ),
    "different_sizes": ("shape_mismatch_model_parts", "import torch; torch.zeros(3) + torch.zeros(4)"),
    "packed_weight": ("bnb_remote_code_raw_weight", "import torch; torch.zeros(4, 64) @ torch.zeros(2048, 1)"),
    "numpy_alias": ("numpy_alias_removed", "import numpy; numpy.float_"),
    "gbk_data": ("data_not_utf8", "'中文'.encode('gbk').decode('utf-8')"),
}.items():
    CASES[name] = (cause, statement(code))


@provokes("load_in_4bit_kwarg_removed")
def load_in_4bit() -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(saved(), load_in_4bit=True)


@provokes("no_adapter_attached")
def train_without_adapter() -> None:
    trainer(four_bit(), [{"input_ids": [1, 2], "labels": [1, 2]}])


@provokes("bnb_to_in_script")
def half_on_quantised() -> None:
    four_bit().half()


@provokes("bnb_to_in_script")
def cast_on_quantised() -> None:
    import torch

    four_bit().to(torch.float16)


@provokes("loss_missing_labels")
def train_without_labels() -> None:
    trainer(tiny(), [{"input_ids": [1, 2]}, {"input_ids": [1, 2]}]).train()


@provokes("dataset_not_tokenised")
def train_on_text() -> None:
    trainer(tiny(), [{"text": "a"}]).train()


@provokes("checkpoint_to_resume_missing")
def resume_from_nothing() -> None:
    trainer(tiny(), [{"input_ids": [1], "labels": [1]}]).train(resume_from_checkpoint=folder("nothing"))


@provokes("lora_targets_other_architecture")
def wrong_targets() -> None:
    lora(target_modules=["c_attn"])


@provokes("lora_targets_container_module")
def container_targets() -> None:
    lora(target_modules=["mlp"])


@provokes("empty_weight_file")
def empty_file() -> None:
    from safetensors.torch import load_file

    load_file(folder("empty", model__safetensors="") + "/model.safetensors")


@provokes("html_page_saved_as_weights")
def html_file() -> None:
    from safetensors.torch import load_file

    load_file(
        folder("html", model__safetensors="<!DOCTYPE html><html><body>Log in</body></html>") + "/model.safetensors"
    )


@provokes("truncated_safetensors")
def truncated_file() -> None:
    from safetensors.torch import load_file

    whole = Path(saved(), "model.safetensors").read_bytes()
    path = ROOT / "cut.safetensors"
    path.write_bytes(whole[:-100])
    load_file(path)


@provokes("lfs_pointer_pickle")
def lfs_pointer() -> None:
    import torch

    torch.load(folder("lfs", x__bin="version https://git-lfs.github.com/spec/v1\noid sha256:0\n") + "/x.bin")


@provokes("truncated_bin")
def truncated_zip() -> None:
    import torch

    path = ROOT / "cut.bin"
    torch.save(torch.zeros(9999), path)
    path.write_bytes(path.read_bytes()[:-200])
    torch.load(path)


@provokes("config_without_model_type")
def no_config() -> None:
    from transformers import AutoConfig

    AutoConfig.from_pretrained(folder("no-config"))


@provokes("weights_file_missing")
def no_weights() -> None:
    from transformers import AutoModelForCausalLM

    text = Path(saved(), "config.json").read_text(encoding="utf-8")
    AutoModelForCausalLM.from_pretrained(folder("no-weights", config__json=text))


@provokes("model_type_newer_than_transformers")
def unknown_type() -> None:
    from transformers import AutoConfig

    AutoConfig.from_pretrained(folder("unknown-type", config__json={"model_type": "qwen9"}))


@provokes("config_without_model_type")
def no_type() -> None:
    from transformers import AutoConfig

    AutoConfig.from_pretrained(folder("no-type", config__json={"hidden_size": 3}))


@provokes("trust_remote_code_missing")
def remote_code() -> None:
    from transformers import AutoConfig

    AutoConfig.from_pretrained(
        folder("remote", config__json={"model_type": "mine", "auto_map": {"AutoConfig": "c.C"}}),
        trust_remote_code=False,
    )


@provokes("wrong_auto_class")
def wrong_class() -> None:
    from transformers import AutoModelForCausalLM, LlavaConfig

    AutoModelForCausalLM.from_config(LlavaConfig())


@provokes("flash_attn_missing")
def no_flash_attention() -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(saved(), attn_implementation="flash_attention_2")


@provokes("processor_not_saved_after_training")
def no_processor() -> None:
    from transformers import AutoImageProcessor

    AutoImageProcessor.from_pretrained(saved())


@provokes("pad_token_missing")
def no_pad_token() -> None:
    tokenizer()(["a", "a b"], padding=True)


@provokes("chat_template_missing_base")
def no_chat_template() -> None:
    tokenizer().apply_chat_template([{"role": "user", "content": "a"}])


@provokes("collator_labels_not_padded")
def labels_not_padded() -> None:
    from transformers import DataCollatorWithPadding

    rows = [{"input_ids": [1], "labels": [1]}, {"input_ids": [1, 1], "labels": [1, 1]}]
    DataCollatorWithPadding(tokenizer(pad_token="<unk>"))(rows)


@provokes("data_file_not_found")
def no_data_file() -> None:
    from datasets import load_dataset

    load_dataset("json", data_files=str(ROOT / "absent.jsonl"))


@provokes("dataset_file_malformed")
def malformed_data() -> None:
    from datasets import load_dataset

    load_dataset("json", data_files=folder("bad", rows__jsonl='{"a": 1}\n{"a": \n') + "/rows.jsonl")


@provokes("adapter_files_missing")
def no_adapter() -> None:
    from peft import PeftModel

    PeftModel.from_pretrained(tiny(), folder("no-adapter"))


@provokes("adapter_other_base_shape")
def other_base() -> None:
    from peft import PeftModel

    path = ROOT / "adapter"
    lora(target_modules=["q_proj"]).save_pretrained(path)
    PeftModel.from_pretrained(tiny(hidden=48), path)


@provokes("model_is_not_peft")
def merge_plain_model() -> None:
    tiny().merge_and_unload()


def main() -> None:
    for name, (cause, function) in CASES.items():
        try:
            function()
        except BaseException:  # noqa: BLE001 - whatever is raised is the harvest
            text = traceback.format_exc()
        else:
            text = ""
        print("PROVOKED " + json.dumps({"name": name, "cause": cause, "text": text}), flush=True)


if __name__ == "__main__":
    main()
