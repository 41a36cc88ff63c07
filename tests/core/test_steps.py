"""Each of the loader's own changes, switched off once: this is the failure that it prevents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_core import attach, load_quantized

Copied = Callable[..., Path]
Batch = Callable[..., dict[str, Any]]


def codes(loaded: Any) -> set[str]:
    return {c.code for c in loaded.report.changes}


def repacks() -> bool:
    try:
        from bitsandbytes.functional import has_avx512bf16
    except ImportError:
        return False
    return bool(has_avx512bf16())


def test_without_avx512_repack_an_eval_forward_breaks_training(tiny: Callable[..., Path], batch: Batch) -> None:
    if not repacks():
        pytest.skip("this CPU has no AVX512-BF16, or this bitsandbytes does not repack for it")
    from qlora_core.demo import _answer

    def train(fixes: dict[str, bool]) -> Any:
        model, processor = load_quantized(tiny("qwen3"), for_training=True, gate="off", fixes=fixes, device="cpu")
        model = attach(model, r=4)
        model.eval()
        _answer(model, processor, "qwen3")
        model.train()
        model(**batch("qwen3", model, processor)).loss.backward()
        return model

    train({})
    # With some graphs torch raises, with others it only warns that gradients may be wrong; warnings are errors here.
    with pytest.raises((RuntimeError, UserWarning), match=r"in-place|autograd kernel was not registered"):
        train({"avx512-repack": False})


def with_own_code(folder: Path) -> Path:
    """The folder with code of its own that would replace the native class, and leaves a mark when it runs."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "own.OwnForCausalLM"}
    path.write_text(json.dumps(config))
    (folder / "own.py").write_text(
        "from pathlib import Path\nfrom transformers import Qwen3ForCausalLM\n\n\n"
        f"Path({str(folder / 'it-ran')!r}).touch()\n\n\nclass OwnForCausalLM(Qwen3ForCausalLM):\n    pass\n"
    )
    return folder


def test_code_of_a_repository_does_not_replace_a_native_class(copied: Copied, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = with_own_code(copied("qwen3"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder / "modules"))
    loaded = load_quantized(folder, trust_remote_code=True, gate="off")
    assert "native-class" in codes(loaded) and not (folder / "it-ran").exists()
    free = load_quantized(folder, trust_remote_code=True, gate="off", fixes={"native-class": False})
    assert (folder / "it-ran").exists() and type(free.model).__name__ == "OwnForCausalLM"


def test_without_training_settings_the_cache_of_every_key_is_kept_in_training(
    tiny: Callable[..., Path], batch: Batch
) -> None:
    def cache(fixes: dict[str, bool]) -> Any:
        model, processor = load_quantized(tiny("qwen3"), for_training=True, gate="off", fixes=fixes)
        model = attach(model, r=4)
        return model(**batch("qwen3", model, processor)).past_key_values

    assert cache({}) is None
    assert cache({"training-settings": False}) is not None


def test_training_takes_one_device_even_where_a_map_of_several_is_given(tiny: Callable[..., Path]) -> None:
    given = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "lm_head": "cpu"}
    loaded = load_quantized(tiny("qwen3"), for_training=True, gate="off", device_map=given, device="cpu")
    assert "device-map" in codes(loaded)
    with pytest.raises((ValueError, NotImplementedError, RuntimeError)):
        load_quantized(
            tiny("qwen3"), for_training=True, gate="off", device_map=given, device="cpu", fixes={"device-map": False}
        )


def test_an_adapter_as_model_is_refused_without_its_step(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from qlora_core import ModelProblem

    model, _ = load_quantized(tiny("qwen3"), for_training=True, gate="off")
    attach(model, r=4).save_pretrained(tmp_path)
    with pytest.raises(ModelProblem, match="adapter="):
        load_quantized(tmp_path, gate="off", fixes={"adapter-base": False})


def test_adapters_in_float16_turn_to_nan_and_ours_do_not(tiny: Callable[..., Path], batch: Batch) -> None:
    import torch

    def adapters(half: bool) -> list[Any]:
        model, processor = load_quantized(tiny("llama"), dtype="float32", for_training=True, gate="off")
        model = attach(model, r=4)
        if half:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.half()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        for _ in range(3):
            model(**batch("llama", model, processor)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return trained

    assert all(torch.isfinite(p).all() for p in adapters(half=False))
    assert not all(torch.isfinite(p).all() for p in adapters(half=True))


def test_peft_s_preparation_makes_float32_of_what_ours_leaves_in_16_bit(tiny: Callable[..., Path]) -> None:
    import peft

    from qlora_core import prepare, verify

    ours, _ = load_quantized(tiny("qwen3"), dtype="bfloat16", gate="off")
    theirs, _ = load_quantized(tiny("qwen3"), dtype="bfloat16", gate="off")
    peft.prepare_model_for_kbit_training(theirs, use_gradient_checkpointing=False)
    assert "float32" not in verify(prepare(ours)).dtypes
    assert verify(theirs).dtypes["float32"] > verify(ours).dtypes["bfloat16"]
