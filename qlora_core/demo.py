"""`qlora-core demo`: three tiny models with the faults that guides plant, loaded in real NF4, each answering a prompt.

The models are random, so the answers are noise: what is shown is the way from a call that fails to a proven load.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import click

MODELS = (("llava", "LLaVA"), ("qwen3", "Qwen3"), ("instructblip_t5", "InstructBLIP"))
DEAD = "http://127.0.0.1:9"
FAULTS = "no processor files, no dtype, trust_remote_code=True, HF_ENDPOINT at a dead address"


def run(out: str | None, device: str | None) -> None:
    """Builds, loads and prompts the three models; prints what was changed and a table of bytes."""
    start = perf_counter()
    if out is not None:
        return _run(Path(out), device, start)
    with tempfile.TemporaryDirectory(prefix="qlora-demo-") as folder:
        _run(Path(folder), device, start)


def _run(folder: Path, device: str | None, start: float) -> None:
    from qlora_core import load_quantized, tiny

    _quiet()
    click.echo(f"Three tiny models with the usual faults: {FAULTS}.")
    rows = []
    with _environment("HF_ENDPOINT", DEAD):
        for kind, title in MODELS:
            path = tiny.build(kind, folder / kind, processor=False)
            click.echo(f'\n== {title}: load_quantized("{path.name}", trust_remote_code=True)')
            loaded = load_quantized(path, device=device, trust_remote_code=True)
            click.echo(str(loaded.report))
            click.echo(f"  answer   {_answer(loaded.model, loaded.processor, kind)!a}")
            assert loaded.report.verification is not None
            rows.append((title, loaded.report.verification))
    click.echo(f"\n{'model':<14}{'4-bit linears':>14}{'kept':>6}{'bytes':>11}{'formula':>11}{'16 bit':>11}")
    for title, seen in rows:
        click.echo(
            f"{title:<14}{seen.quantized:>14}{seen.kept:>6}{seen.bytes:>11,}{seen.expected_bytes:>11,}"
            f"{seen.sixteen_bit_bytes:>11,}"
        )
    click.echo(f"\nAll three are 4-bit to the byte, none of their weights is random; {perf_counter() - start:.1f} s.")


def picture() -> Any:
    """A small picture: a red square on white."""
    from PIL import Image

    image = Image.new("RGB", (48, 36), "white")
    image.paste((220, 30, 30), (12, 8, 32, 28))
    return image


def _answer(model: Any, processor: Any, kind: str) -> str:
    import torch

    from qlora_core.tiny import SPECIAL, placeholder

    question = "What is in this picture?"
    if hasattr(processor, "image_processor"):
        asked = f"{placeholder(kind)}\n{question}".strip()
        inputs = processor(text=f"USER: {asked} ASSISTANT:", images=picture(), return_tensors="pt")
    else:
        inputs = processor(f"USER: {question} ASSISTANT:", return_tensors="pt")
    inputs = {k: v.to(model.device) for k, v in inputs.items() if k != "token_type_ids"}
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(
            next(p.dtype for p in model.parameters() if p.is_floating_point())
        )
    with torch.no_grad():
        # Without the special tokens: a random model says little else.
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False, suppress_tokens=list(range(len(SPECIAL))))
    # A decoder repeats the prompt before its answer; an encoder-decoder does not.
    prompt = inputs["input_ids"][0]
    start = len(prompt) if torch.equal(ids[0][: len(prompt)], prompt) else 0
    words = getattr(processor, "tokenizer", processor)
    text: str = words.decode(ids[0][start:], skip_special_tokens=True)
    return text


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    old = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if old is not None:
            os.environ[name] = old


def _quiet() -> None:
    """No progress bars and no notices of libraries between our lines."""
    import logging
    import warnings

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
