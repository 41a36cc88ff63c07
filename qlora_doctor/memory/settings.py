"""The settings of a run that decide its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qlora_doctor.errors import UsageError

Loss = Literal["plain", "plain16", "shifted", "chunked"]
OPTIMIZERS = ("adamw", "adamw-8bit", "paged-adamw-8bit", "paged-adamw", "sgd")
TARGETS = ("language model", "attention", "q,v", "all-linear", "Q-Former")
METHODS = ("qlora", "lora", "full")


@dataclass(frozen=True, slots=True)
class Settings:
    """One run. `length` is the text's tokens in the longest row; those of images come on top of it.

    `bits`: 4, 8, or 16 for a load that is not quantised. `method`: `qlora`, `lora`, or `full` (all weights learn).
    `kept`: the parts that stay in 16 bit besides the head; None is what `load_quantized` keeps (all but the language
    model). `prepared`: PEFT's prepare_model_for_kbit_training made what stays in 16 bit float32. `autocast`: the Trainer's
    bf16=True or fp16=True. `images` an example, of `width` x `height` pixels; `max_pixels` caps them (Qwen-VL).
    `loss`: `plain` (transformers: float32 logits), `shifted` (before 4.46: float32 logits and a shifted copy), `plain16`
    (a copy, no upcast), `chunked` (never all logits at once). `keeps_inputs`: bitsandbytes before 0.43.2, which keeps the
    input of every frozen matrix for a backward that never reads it.
    `attention`: `sdpa`, `flash` or `eager`. `answer`: tokens that an encoder-decoder model learns to write.
    `world`: GPUs; `sharded`: the weights are spread over them (FSDP, ZeRO-3). `device`: `cuda` or `cpu`.
    `unpacks`: a GPTQ base, whose matrices plain tensor operations unpack, so that autograd keeps each 16-bit matrix of the
    layer at work. `masters`: 16-bit adapters with float32 masters beside them, and `buckets`: bytes of the gradient buckets
    while the backward runs (DeepSpeed's fp16 and bf16 engines: ZeRO 1 and 2).
    `held`: the script's own loop keeps `outputs` while it runs the backward.
    """

    batch: int = 1
    length: int = 512
    rank: int = 16
    images: int | None = None
    width: int = 0
    height: int = 0
    max_pixels: int = 0
    bits: int = 4
    double_quant: bool = True
    method: str = "qlora"
    kept: tuple[str, ...] | None = None
    targets: str = "language model"
    adapter_bytes: int = 4
    lora_dropout: float = 0.0
    stream_bytes: int = 2
    autocast: bool = True
    prepared: bool = False
    checkpointing: bool = True
    optimizer: str = "adamw"
    loss: Loss = "plain"
    attention: str = "sdpa"
    answer: int = 128
    world: int = 1
    sharded: bool = False
    device: str = "cuda"
    held: bool = False
    padded: bool = False
    keeps_inputs: bool = False
    unpacks: bool = False
    masters: bool = False
    buckets: int = 0

    def __post_init__(self) -> None:
        for name, most in (
            ("batch", 100_000),
            ("length", 10**8),
            ("rank", 65536),
            ("world", 100_000),
            ("answer", 10**7),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise UsageError(f"{name} = {value!r}: expected a whole number from 1 to {most}")
        for name, words in (("optimizer", OPTIMIZERS), ("targets", TARGETS), ("method", METHODS)):
            if getattr(self, name) not in words:
                raise UsageError(f"{name} = {getattr(self, name)!r}: expected one of {', '.join(words)}")
        if self.bits not in (4, 8, 16):
            raise UsageError(f"bits = {self.bits!r}: expected 4, 8, or 16 (not quantised)")
        if self.images is not None and not 0 <= self.images <= 10_000:
            raise UsageError(f"images = {self.images!r}: expected a number from 0 to 10000")
