"""The settings of a training run: one typed set, with the names of transformers' TrainingArguments where they exist.

`docs/settings.md` is generated from this file (`python -m qlora_core.settings_file`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from qlora_doctor.errors import UsageError

SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial")
SCOPES = ("language", "qformer", "projector", "vision")
# What other trainers call a setting of ours.
OTHER_NAMES = {
    "batch_size": "per_device_train_batch_size",
    "batch": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "accumulation": "gradient_accumulation_steps",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "lr": "learning_rate",
    "rank": "lora_r",
    "r": "lora_r",
    "alpha": "lora_alpha",
    "max_seq_length": "max_length",
    "cutoff_len": "max_length",
    "length": "max_length",
    "seq_len": "max_length",
    "sequence_len": "max_length",
    "optimizer": "optim",
    "warmup_ratio": "warmup_steps",
    "val_size": "eval_split",
    "evaluation_strategy": "eval_strategy",
    "activation_checkpointing": "gradient_checkpointing",
    "load_in_4bit": "bits",
    "torch_dtype": "dtype",
    "lora_target": "target_modules",
    "group_by_length": "train_sampling_strategy",
}


def _set(
    default: Any,
    kind: str,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    words: Sequence[str] = (),
    group: str = "",
    empty: bool = False,
) -> Any:
    about = {
        "empty": empty,
        "kind": kind,
        "text": text,
        "low": low,
        "high": high,
        "words": tuple(words),
        "group": group,
    }
    return field(default=default, metadata=about)


@dataclass(frozen=True, slots=True)
class Settings:
    """All that a run can be told besides the model, the data and the output folder. None: chosen by the run, and said.

    Raises:
        UsageError: a value of another kind, or out of the range in which anything is learned.
    """

    # ------------------------------------------------------------------ learning
    num_train_epochs: float = _set(
        3.0,
        "float",
        "How often the data are gone through. Fractions are allowed. Three is usual for a few thousand rows; more rows need fewer.",
        low=0.001,
        high=10_000,
        group="Learning",
    )
    max_steps: int = _set(
        -1, "int", "Stop after this many optimizer steps; -1 leaves it to num_train_epochs.", low=-1, group="Learning"
    )
    learning_rate: float = _set(
        2e-4,
        "float",
        "2e-4 is the QLoRA paper's for 7B and 13B; ten times that of full fine-tuning, because only the adapter learns.",
        low=1e-8,
        high=0.1,
        group="Learning",
    )
    lr_scheduler_type: str = _set("cosine", "str", "How the learning rate falls.", words=SCHEDULERS, group="Learning")
    warmup_steps: float = _set(
        0.03,
        "float",
        "Steps (or, below 1, the share of all steps) in which the learning rate rises: AdamW's first steps are its noisiest.",
        low=0,
        group="Learning",
    )
    weight_decay: float = _set(
        0.0,
        "float",
        "An adapter is small and starts at zero; pulling it back there gains nothing.",
        low=0,
        high=1,
        group="Learning",
    )
    max_grad_norm: float = _set(
        1.0, "float", "Gradients are scaled down to this norm; 0 switches it off.", low=0, group="Learning"
    )
    optim: str = _set(
        "paged_adamw_8bit",
        "str",
        "AdamW with its state in 8 bit, moved to host memory under pressure: a quarter of the memory, no loss that is seen. Any `optim` of transformers.",
        group="Learning",
    )
    seed: int = _set(
        42, "int", "Of the adapter's first values, dropout and the order of the data.", low=0, group="Learning"
    )
    data_seed: int | None = _set(
        None, "int", "Of the order of the data alone; None takes `seed`.", low=0, group="Learning"
    )
    neftune_noise_alpha: float | None = _set(
        None,
        "float",
        "Noise on the embeddings (NEFTune); 5 is usual where it is wanted.",
        low=0,
        high=100,
        group="Learning",
    )
    # ------------------------------------------------------------------ batches and memory
    per_device_train_batch_size: int | None = _set(
        None,
        "int",
        "Rows at a time on one device. None: as many as the memory plan says fit, at most `total_batch_size`.",
        low=1,
        high=100_000,
        group="Batches and memory",
    )
    gradient_accumulation_steps: int | None = _set(
        None,
        "int",
        "Batches for one optimizer step. None: what makes `total_batch_size`.",
        low=1,
        high=100_000,
        group="Batches and memory",
    )
    total_batch_size: int | None = _set(
        None,
        "int",
        "Rows of one optimizer step over all devices, for what the two above leave open. None: 16, and fewer where there are few rows.",
        low=1,
        high=1_000_000,
        group="Batches and memory",
    )
    max_length: int | None = _set(
        None,
        "int",
        "Tokens of the longest row that is trained on, image tokens included. None: as long as the memory plan allows, at most 2048 and what images add.",
        low=8,
        high=10_000_000,
        group="Batches and memory",
    )
    too_long: str = _set(
        "drop",
        "str",
        "Rows over max_length are left out (`drop`) or stop the run (`refuse`). They are never cut: a cut goes through answers and images.",
        words=("drop", "refuse"),
        group="Batches and memory",
    )
    gradient_checkpointing: bool = _set(
        True,
        "bool",
        "Keep one layer's activations and compute the rest again (non-reentrant): a third more time, a fraction of the memory.",
        group="Batches and memory",
    )
    loss: str = _set(
        "auto",
        "str",
        "`chunked` never holds all logits at once, `answers` only those of the answers, `plain` is transformers' own; `auto` takes the first that the model can.",
        words=("auto", "plain", "chunked", "answers"),
        group="Batches and memory",
    )
    train_sampling_strategy: str = _set(
        "group_by_length",
        "str",
        "Rows of about one length go into one batch, so that little is padded; `random` and `sequential` are transformers'.",
        words=("group_by_length", "random", "sequential"),
        group="Batches and memory",
    )
    max_memory: float | None = _set(
        None,
        "float",
        "GiB that this run may take on the GPU: caps the allocator, and the plan is made for it.",
        low=0.1,
        high=100_000,
        group="Batches and memory",
    )
    dataloader_num_workers: int = _set(
        0,
        "int",
        "Processes that prepare batches. 0 is right for text; images gain from 2 to 4.",
        low=0,
        high=256,
        group="Batches and memory",
    )
    # ------------------------------------------------------------------ the adapter
    lora_r: int | None = _set(
        None,
        "int",
        "Rank of the adapter. None: 16, or less where the memory plan says so.",
        low=1,
        high=65_536,
        group="The adapter",
    )
    lora_alpha: int | None = _set(
        None, "int", "Scale: the adapter counts alpha/r. None: twice the rank.", low=1, group="The adapter"
    )
    lora_dropout: float = _set(
        0.0,
        "float",
        "Dropout before the adapter; 0.05 to 0.1 helps with a few hundred rows.",
        low=0,
        high=0.9,
        group="The adapter",
    )
    target_modules: str | Sequence[str] | None = _set(
        None,
        "words",
        "Names or one regular expression of the linears that get an adapter. None: those of `train`.",
        group="The adapter",
    )
    train: str = _set(
        "language",
        "str",
        f"The part that learns: {', '.join(SCOPES)}, or several joined by `+`. The vision tower and the projector stay as they are unless named.",
        group="The adapter",
    )
    adapter: str | None = _set(None, "str", "Go on with this saved adapter instead of a new one.", group="The adapter")
    # ------------------------------------------------------------------ the model
    bits: int = _set(
        4,
        "int",
        "4 (NF4, double quantisation), 8, or 16 for LoRA on an unquantised model.",
        words=("4", "8", "16"),
        group="The model",
    )
    dtype: str | None = _set(
        None,
        "str",
        "Of the arithmetic and of what is not quantised. None: bfloat16 where the card has it. The adapter is float32 always.",
        words=("bfloat16", "float16", "float32"),
        group="The model",
    )
    attn_implementation: str | None = _set(
        None, "str", "As in transformers (`sdpa`, `flash_attention_2`, `eager`).", group="The model"
    )
    quantize_vision: bool | None = _set(
        None, "bool", "The vision tower in 4 bit too. None: only where the memory plan needs it.", group="The model"
    )
    max_pixels: int | None = _set(
        None,
        "int",
        "Pixels of the largest image (Qwen-VL): more are scaled down. None: the processor's own, or less where the memory plan says so.",
        low=784,
        group="The model",
    )
    revision: str | None = _set(None, "str", "Branch, tag or commit of a Hub repository.", group="The model")
    device: str | None = _set(
        None, "str", "`cuda:1`, `cpu`. None: this process's GPU, else the CPU.", group="The model"
    )
    endpoint: str | None = _set(None, "str", "The Hub to download from.", group="The model")
    cache_dir: str | None = _set(None, "str", "Where downloads are kept.", group="The model")
    gate: str = _set(
        "fix",
        "str",
        "What the doctor's checks may do before anything is loaded: change and refuse, only report, or nothing.",
        words=("fix", "report", "off"),
        group="The model",
    )
    strict: bool = _set(False, "bool", "A check that crashed or could not tell stops the run too.", group="The model")
    fixes: Mapping[str, bool] | None = _set(
        None, "map", "`{QD502 = false}` switches one check, or one step of the loader, off.", group="The model"
    )
    # ------------------------------------------------------------------ the data
    format: str | None = _set(None, "str", "The format of the data. None: recognised, and said.", group="The data")
    images: str | None = _set(
        None, "str", "The folder that image paths start from. None: that of the data file.", group="The data"
    )
    template: str | None = _set(
        None,
        "str",
        "A Jinja chat template: a file, its text, or a built-in name. None: the model's own.",
        group="The data",
    )
    enable_thinking: bool | None = _set(
        None, "bool", "Passed to the template of a thinking model (Qwen3).", group="The data"
    )
    train_on: str = _set(
        "answers",
        "str",
        "Which tokens are learned: every answer with its end, the last one alone, or everything.",
        words=("answers", "last", "all"),
        group="The data",
    )
    limit: int | None = _set(None, "int", "Read only this many rows.", low=1, group="The data")
    # ------------------------------------------------------------------ evaluation
    eval_split: float = _set(
        0.0,
        "float",
        "Rows (or, below 1, the share of rows) kept out of training to evaluate on, where there are no eval data.",
        low=0,
        group="Evaluation",
    )
    eval_strategy: str | None = _set(
        None,
        "str",
        "None: every epoch where there is something to evaluate on.",
        words=("no", "steps", "epoch"),
        group="Evaluation",
    )
    eval_steps: float | None = _set(
        None, "float", "Steps between evaluations, for eval_strategy=steps.", low=0, group="Evaluation"
    )
    per_device_eval_batch_size: int | None = _set(
        None, "int", "Rows at a time in evaluation. None: as in training.", low=1, group="Evaluation"
    )
    early_stopping_patience: int | None = _set(
        None,
        "int",
        "Stop when the eval loss has not improved for this many evaluations, and keep the best adapter.",
        low=1,
        high=1000,
        group="Evaluation",
    )
    load_best_model_at_end: bool = _set(
        False,
        "bool",
        "Keep the adapter with the best eval loss instead of the last; early stopping switches it on.",
        group="Evaluation",
    )
    metrics: Sequence[str] = _set(
        (),
        "words",
        "Measured on generated answers of the eval rows at the end: `exact_match`; `bleu` and `rouge` where `evaluate` is installed.",
        group="Evaluation",
    )
    metric_rows: int = _set(
        64, "int", "At most this many eval rows are answered for `metrics`.", low=1, group="Evaluation"
    )
    samples: int = _set(
        3, "int", "Rows that are answered before and after training, to look at.", low=0, high=100, group="Evaluation"
    )
    max_new_tokens: int = _set(
        64,
        "int",
        "Tokens of an answer that is generated for samples and metrics.",
        low=1,
        high=100_000,
        group="Evaluation",
    )
    # ------------------------------------------------------------------ saving
    save_strategy: str = _set(
        "epoch", "str", "When a checkpoint is written.", words=("no", "steps", "epoch"), group="Saving"
    )
    save_steps: float = _set(
        500,
        "float",
        "Steps between checkpoints, for save_strategy=steps; below 1 a share of all.",
        low=0,
        group="Saving",
    )
    save_epochs: int = _set(1, "int", "Epochs between checkpoints, for save_strategy=epoch.", low=1, group="Saving")
    save_total_limit: int | None = _set(
        2, "int", "Older checkpoints are removed beyond this many; None keeps all.", low=1, empty=True, group="Saving"
    )
    save_only_model: bool = _set(
        False,
        "bool",
        "Checkpoints without optimizer and random states: smaller, and they cannot be resumed.",
        group="Saving",
    )
    push_to_hub: bool = _set(False, "bool", "Upload the adapter when the run ends. Never unless asked.", group="Saving")
    hub_model_id: str | None = _set(None, "str", "The repository to upload to.", group="Saving")
    hub_private_repo: bool = _set(True, "bool", "Make that repository private.", group="Saving")
    # ------------------------------------------------------------------ reports
    logging_steps: float | None = _set(
        None,
        "float",
        "Steps between lines of the log. None: so that there are about 100, at least every 10 steps.",
        low=0,
        group="Reports",
    )
    report_to: str | Sequence[str] = _set(
        "auto",
        "words",
        "`tensorboard`, `wandb`, `none`, ... `auto`: TensorBoard where it is installed, and nothing else.",
        group="Reports",
    )
    run_name: str | None = _set(None, "str", "The name of the run for those.", group="Reports")
    progress: bool = _set(
        True, "bool", "A progress line with loss, tokens a second, memory and the time left.", group="Reports"
    )
    # ------------------------------------------------------------------ more than one GPU
    ddp_find_unused_parameters: bool | None = _set(
        None,
        "bool",
        "As in transformers. None: off, but on where text-only rows meet a vision model whose vision part learns.",
        group="More than one GPU",
    )
    fsdp: str | None = _set(
        None, "str", "As in transformers; usually it comes from `accelerate launch`.", group="More than one GPU"
    )
    fsdp_config: Mapping[str, Any] | str | None = _set(None, "any", "As in transformers.", group="More than one GPU")
    deepspeed: Mapping[str, Any] | str | None = _set(
        None, "any", "As in transformers: a file or its content.", group="More than one GPU"
    )

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            object.__setattr__(self, one.name, _checked(one, getattr(self, one.name)))
        if isinstance(self.metrics, str):
            # One regular expression is one target_modules; several metrics are several words.
            object.__setattr__(self, "metrics", tuple(word.strip() for word in self.metrics.split(",")))
        unknown = [word for word in self.train.split("+") if word not in SCOPES]
        if unknown:
            raise UsageError(f"train={self.train!r}: {_nearest(unknown[0], SCOPES)}")
        if self.save_strategy == "steps" and not self.save_steps:
            raise UsageError('save_steps=0 with save_strategy="steps": give the steps between checkpoints')
        if self.eval_strategy == "steps" and not self.eval_steps:
            raise UsageError('eval_strategy="steps" needs eval_steps, the steps between evaluations')
        if self.push_to_hub and not self.hub_model_id:
            raise UsageError("push_to_hub needs hub_model_id, the repository to upload to (owner/name)")
        if self.max_steps == 0:
            raise UsageError(
                "max_steps=0 trains nothing; -1 leaves the length to num_train_epochs, --dry-run loads no model"
            )
        if self.learning_rate > 0.01:
            raise UsageError(
                f"learning_rate={self.learning_rate:g}: with LoRA nothing above 0.01 has been seen to learn; "
                "2e-4 is usual, 2e-3 for models under a billion weights"
            )

    def but(self, **changes: Any) -> Settings:
        """A copy with some values replaced."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """JSON data of all settings."""
        return {
            f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v for f in dataclasses.fields(self)
        }


NAMES = tuple(f.name for f in dataclasses.fields(Settings))


def make_settings(values: Mapping[str, Any]) -> Settings:
    """The settings that `values` name, the rest at their defaults.

    Raises:
        UsageError: a name that is none, with the nearest that is; a value that cannot be.
    """
    for name in values:
        if name not in NAMES:
            instead = OTHER_NAMES.get(name)
            raise UsageError(
                f"there is no setting {name!r}; it is called {instead}"
                if instead
                else f"{name!r}: {_nearest(name, NAMES)}"
            )
    return Settings(**values)


def _checked(one: dataclasses.Field[Any], value: Any) -> Any:
    """The value as its kind, or a refusal that names the setting."""
    kind, words = one.metadata["kind"], one.metadata["words"]
    if value is None:
        if one.default is None or one.metadata["empty"]:
            return None
        raise UsageError(f"{one.name}: expected {_KINDS[kind]}, found nothing")
    if kind == "any":
        return value
    value = _as_kind(one.name, kind, value)
    if words and str(value) not in words:
        raise UsageError(f"{one.name}={value!r}: {_nearest(str(value), words)}")
    low, high = one.metadata["low"], one.metadata["high"]
    if (low is not None and value < low) or (high is not None and value > high):
        span = f"from {low:g} to {high:g}" if low is not None and high is not None else f"{low:g} or more"
        raise UsageError(f"{one.name}={value:g}: expected {_KINDS[kind]}, {span}")
    return value


_KINDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a word",
    "words": "a word or a list of words", "map": "a table of names and true or false", "any": "a value",
}  # fmt: skip


def _as_kind(name: str, kind: str, value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "int" and number and value == int(value if math.isfinite(value) else 0):
        return int(value)
    if kind == "float" and number and math.isfinite(value):
        return float(value)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "str" and isinstance(value, (str, Path)) and str(value):
        return str(value)
    if kind == "words":
        if isinstance(value, str):
            return value
        if isinstance(value, Sequence) and all(isinstance(v, str) for v in value):
            return tuple(value)
    if kind == "map" and isinstance(value, Mapping) and all(isinstance(v, bool) for v in value.values()):
        return dict(value)
    raise UsageError(f"{name}={value!r}: expected {_KINDS[kind]}")


def _nearest(word: str, words: Sequence[str]) -> str:
    near = get_close_matches(word, words, 1, 0.6)
    if near:
        return f"not known; did you mean {near[0]!r}?"
    return (
        f"not known; there are {', '.join(words)}"
        if len(words) < 12
        else "no such setting; docs/settings.md lists them"
    )
