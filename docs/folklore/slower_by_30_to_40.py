"""Claim: QLoRA is 30 to 40 % slower than LoRA.

The extra work is turning each 4-bit weight back into 16 bit, once for every time it is used, whatever the batch. So the
share falls as the batch grows. This counts how often that happens in one step, and times one layer on this machine.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import bitsandbytes
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from qlora_core.tiny import build


class Uses(TorchDispatchMode):
    """Counts the products with a packed weight (forward) and the weights unpacked for one (backward)."""

    NAMES = ("bitsandbytes::gemm_4bit", "bitsandbytes::dequantize_4bit")

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition(".")[0]
        # On the CPU the product unpacks the weight by the other operator: that is one use, not two.
        outer, self.inside = self.inside, self.inside or name in self.NAMES
        self.seen[name] += name in self.NAMES and not outer
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.inside = outer


def uses(folder: Any, *, checkpointing: bool, tokens: int) -> dict[str, float]:
    """How often each packed weight is used in one training step."""
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=four, dtype=torch.bfloat16, device_map="cpu"
    )
    linears = sum(isinstance(m, bitsandbytes.nn.Linear4bit) for m in model.modules())
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear")).train()
    model.enable_input_require_grads()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(10, 200, (1, tokens), generator=torch.Generator().manual_seed(0))
    with Uses() as forward:
        loss = adapted(input_ids=ids, labels=ids).loss
    with Uses() as backward:
        loss.backward()
    counts = (sum(one.seen[name] for name in Uses.NAMES) for one in (forward, backward))
    return dict(zip(("forward", "backward"), (count / linears for count in counts), strict=True))


def measure(work: Any) -> dict[str, dict[str, float]]:
    """Times each 4-bit weight is unpacked in a step."""
    folder = build("llama", work / "model")
    return {
        f"{tokens} tokens, checkpointing {'on' if on else 'off'}": uses(folder, checkpointing=on, tokens=tokens)
        for tokens in (16, 256)
        for on in (False, True)
    }


def timings(size: int = 2048) -> dict[int, float]:
    """How much longer the forward of a 4-bit linear takes than that of a 16-bit one, by the number of tokens."""
    plain = torch.nn.Linear(size, size, bias=False).to(torch.bfloat16)
    four = bitsandbytes.nn.Linear4bit(size, size, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    four.load_state_dict(plain.state_dict())
    four = four.to("cpu").train()
    seen = {}
    for tokens in (16, 128, 1024, 4096):
        batch = torch.randn(tokens, size, dtype=torch.bfloat16, requires_grad=True)
        best = []
        for layer in (plain, four):
            took = []
            for _ in range(5):
                began = time.perf_counter()
                layer(batch)
                took.append(time.perf_counter() - began)
            best.append(min(took))
        seen[tokens] = round(best[1] / best[0], 2)
    return seen


if __name__ == "__main__":
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as work:
        for case, seen in measure(Path(work)).items():
            print(f"times each packed weight is unpacked, {case}: {seen}")
    for tokens, ratio in timings().items():
        print(f"{tokens} tokens: a 4-bit linear takes {ratio} times as long as a 16-bit one, on this CPU")
