"""The memory estimate against real shapes whose tensors hold no data: transformers' and PEFT's own code under FakeTensorMode.

    python benchmarks/memory_fake.py [--depths 1,3] [--json FILE]

The steps of benchmarks/memory.py, counted the same way, for the real widths of Qwen3-8B and LLaVA-1.5-7B at two small
depths; what a layer adds is carried on to the full depth. bitsandbytes' Linear4bit cannot be made of fake tensors, so a
matrix of the same bytes stands in for it. Which image token goes where depends on data, so LLaVA's image is as many text
tokens, after its vision tower was run. Needs the train extra and about a minute a row.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from memory import counter  # type: ignore[import-not-found]

from qlora_doctor.families import BY_TYPE
from qlora_doctor.memory.formula import estimate, packed_bytes, quantised
from qlora_doctor.memory.known import MODELS
from qlora_doctor.memory.settings import Settings
from qlora_doctor.memory.shapes import Shape, shape_of

BASE = Settings(device="cpu", rank=16, adapter_bytes=4)
ROWS = (
    ("qwen3-8b", replace(BASE, length=512, autocast=False)),
    ("qwen3-8b", replace(BASE, length=2048, autocast=True)),
    ("qwen3-8b", replace(BASE, length=512, autocast=False, checkpointing=False)),
    ("llava-1.5-7b-hf", replace(BASE, length=512, autocast=False)),
    ("llava-1.5-7b-hf", replace(BASE, length=512, batch=2, autocast=True)),
    ("llava-1.5-7b-hf", replace(BASE, length=512, autocast=False, checkpointing=False)),
)


def config_of(stem: str, layers: int) -> dict[str, Any]:
    """A shipped configuration with so many layers of the language model; 0 for all."""
    config: dict[str, Any] = json.loads((MODELS / f"{stem}.json").read_text(encoding="utf-8"))["config"]
    text = config.get("text_config", config)
    if layers:
        text["num_hidden_layers"] = layers
    return config


def packed_linear() -> Any:
    """The class that stands in for bitsandbytes' Linear4bit: packed bytes and scales, unpacked for a moment in the backward."""
    import torch

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, outputs: int) -> Any:
            ctx.shape = (outputs, x.shape[-1])
            return x.new_empty((*x.shape[:-1], outputs))

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            return gradient @ gradient.new_empty(ctx.shape, dtype=torch.bfloat16).to(gradient.dtype), None

    class Packed(torch.nn.Linear):
        def __init__(self, inputs: int, outputs: int) -> None:
            torch.nn.Module.__init__(self)
            self.in_features, self.out_features, self.bias = inputs, outputs, None
            self.weight = torch.nn.Parameter(
                torch.empty(packed_bytes(inputs * outputs), dtype=torch.uint8), requires_grad=False
            )

        def forward(self, x: Any) -> Any:
            return Product.apply(x.to(torch.bfloat16), self.out_features).to(x.dtype)

    return Packed


def build(config: dict[str, Any], shape: Shape, s: Settings) -> Any:
    """The model on the meta device, quantised and with LoRA as in a real run."""
    import torch
    import transformers as t
    from peft import LoraConfig, get_peft_model

    kind = config["model_type"]
    made = t.CONFIG_MAPPING[kind](**{k: v for k, v in config.items() if k != "model_type"})
    made._attn_implementation = "sdpa"
    family = BY_TYPE[kind]
    packed, names = packed_linear(), {x.name for p in shape.parts for x in quantised(p, s)}
    parts = tuple(word for name in family.kept() if (word := name.strip(".*")).isidentifier())
    with torch.device("meta"):
        model = getattr(t, family.classes[0])(made)
        for path, module in list(model.named_modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, torch.nn.Linear) and name in names and not any(p in path for p in parts):
                    setattr(module, name, packed(child.in_features, child.out_features))
        lora = LoraConfig(r=s.rank, lora_alpha=2 * s.rank, target_modules=family.lora_targets)
        model.requires_grad_(False)
        adapted = get_peft_model(model, lora, low_cpu_mem_usage=True).train()
    if s.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.config.use_cache = False
    return adapted


def fill(model: Any) -> None:
    """Puts fake tensors in the place of those on the meta device; `.to()` cannot do that."""
    import torch

    for module in model.modules():
        for name, value in list(module._parameters.items()):
            if value is None:
                continue
            frozen = value.dtype.is_floating_point and not value.requires_grad
            fake = torch.empty(value.shape, dtype=torch.bfloat16 if frozen else value.dtype)
            module._parameters[name] = torch.nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, value in list(module._buffers.items()):
            if value is not None:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype)


def measure(config: dict[str, Any], shape: Shape, s: Settings) -> int:
    """The peak of the second step in bytes."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = build(config, shape, s)
    with FakeTensorMode():
        fill(model)
        learnt = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learnt, lr=1e-4)
        tokens = s.length + (shape.images.tokens if shape.images else 0)
        ids = torch.zeros(s.batch, tokens, dtype=torch.long)
        pixels = None
        if shape.images is not None:
            pixels = torch.zeros(s.batch, 3, shape.images.side, shape.images.side, dtype=torch.bfloat16)
        gc.collect()
        mode = counter()
        with mode:
            for value in (*model.parameters(), *model.buffers(), ids, *([pixels] if pixels is not None else [])):
                mode.add(value)
            for _ in range(2):
                mode.peak = mode.live
                with torch.autocast("cpu", torch.bfloat16, enabled=s.autocast):
                    seen = model.base_model.model.model.get_image_features(pixels) if pixels is not None else None
                    loss = model(input_ids=ids, labels=ids).loss
                loss.backward()
                del loss, seen
                optimizer.step()
                optimizer.zero_grad()
        return int(mode.peak)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--depths", default="1,3")
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import logging

    logging.disable(logging.WARNING)
    few, many = (int(word) for word in options.depths.split(","))
    rows = []
    for stem, s in ROWS:
        sizes = {}
        for layers in (few, many):
            config = config_of(stem, layers)
            shape = shape_of(config, stem)
            sizes[layers] = (measure(config, shape, s), estimate(shape, s).allocated)
        whole = shape_of(config_of(stem, 0), stem)
        slope = (sizes[many][0] - sizes[few][0]) / (many - few)
        carried = int(sizes[few][0] + slope * (whole.text.layers - few))
        guess = estimate(whole, s).allocated
        words = f"{stem} b{s.batch} s{s.length}" + (" ckpt" * s.checkpointing) + (" autocast" * s.autocast)
        rows.append(
            {
                "run": words,
                "layers": whole.text.layers,
                "measured": carried,
                "expected": guess,
                "error": guess / carried - 1,
                "depths": {str(k): v for k, v in sizes.items()},
            }
        )
        near = ", ".join(f"{k} layers {b / a - 1:+.1%}" for k, (a, b) in sizes.items())
        print(
            f"{words:44} {carried / 2**30:7.2f} {guess / 2**30:7.2f} GiB {guess / carried - 1:+.1%} ({near})",
            flush=True,
        )
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
