"""Claim: where AutoProcessor fails, the tokenizer is enough for LLaVA, and the warning is normal.

Gives the tokenizer two different pictures and looks at what arrives at the model; then the same with the processor.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from qlora_core.tiny import build

TEXT = "USER: What is in this picture? ASSISTANT: a red cat"
RED, BLUE = (Image.new("RGB", (28, 28), colour) for colour in ((220, 20, 20), (20, 20, 220)))


def loss(model: Any, made: Any) -> float:
    """The training loss of one row."""
    with torch.no_grad():
        return float(model(**made, labels=made["input_ids"]).loss)


def measure(work: Path) -> dict[str, Any]:
    """What reaches the model, and whether the picture changes the loss."""
    # A fresh vision tower sees little; the contrast lets this random one tell red from blue.
    folder = build("llava", work / "model", dtype="float32", contrast=10.0)
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    words, processor = AutoTokenizer.from_pretrained(folder), AutoProcessor.from_pretrained(folder)

    def by_words(picture: Any) -> Any:
        return words(TEXT, images=picture, return_tensors="pt")

    def by_processor(picture: Any) -> Any:
        return processor(text=TEXT.replace("What", "<image> What"), images=picture, return_tensors="pt")

    return {
        "tokenizer: what it makes": sorted(by_words(RED)),
        "tokenizer: losses of a red and a blue picture": [loss(model, by_words(p)) for p in (RED, BLUE)],
        "processor: what it makes": sorted(by_processor(RED)),
        "processor: losses of a red and a blue picture": [loss(model, by_processor(p)) for p in (RED, BLUE)],
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        for case, seen in measure(Path(work)).items():
            print(f"{case}: {seen}")
