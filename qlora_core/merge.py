"""`merge`: an adapter written into its base in 16 bit, and the proof that the result answers as the two did.

The base is loaded anew, not quantised: a merge into 4-bit weights rounds them once more, differently from what the
adapter was trained against. Each weight is merged in float32 and rounded once.
"""

from __future__ import annotations

import gc
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_core.chat import same_model
from qlora_core.checkpoints import atomic_folder
from qlora_core.errors import NotVerified, show_size
from qlora_core.saved_adapter import SavedAdapter, read_adapter
from qlora_doctor.errors import UsageError
from qlora_doctor.families import BY_TYPE

# The largest difference of two logits that is put down to rounding, as a share of the largest logit: bfloat16 keeps 8 bits
# and float16 11, and the unmerged model rounds the sum of two products where the merged one rounds one. Seen in bfloat16:
# 0.01 with 2 layers, 0.032 with the 30 of SmolLM2-135M, where an adapter that is lost makes 0.46.
TOLERANCES = {"bfloat16": 6e-2, "float16": 8e-3, "float32": 1e-3}
PROBES = ("What is in this picture? Describe it.", "Name three colours and one number.")
SHARD = "5GB"


@dataclass(frozen=True, slots=True)
class Merged:
    """`difference`: the largest between merged logits and those of base + adapter, as a share of the largest logit;
    `effect`: the same between base and base + adapter, which shows that there was something to merge."""

    output: Path
    base: str
    dtype: str
    layers: int
    bytes: int
    difference: float
    effect: float
    tolerance: float
    gguf: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        moved = f"the adapter itself moves them by {self.effect:.2g}"
        lines = [
            f"merged    {self.layers} layers into {self.base} in {self.dtype}",
            f"verified  logits differ by {self.difference:.2g} of the largest (tolerance {self.tolerance:g}); {moved}",
            f"saved     {self.output} ({show_size(self.bytes)})",
            *(f"warning   {text}" for text in self.warnings),
        ]
        if self.gguf:
            lines += ["for GGUF, in a checkout of llama.cpp:", *(f"  {line}" for line in self.gguf)]
        return "\n".join(lines)


def merge(
    adapter: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    device: Any = "cpu",
    other_base: bool = False,
    say: Callable[[str], None] = lambda text: None,
    **load: Any,
) -> Merged:
    """Merges a LoRA adapter into its base and saves the whole model, with tokenizer and processor.

    Args:
        adapter: the adapter folder.
        output: a new or empty folder; it is there when the merge was verified, and not before.
        base: the base model; None takes the one that the adapter names.
        dtype: bfloat16 or float16; None takes the base's own, bfloat16 for a float32 base.
        device: where the merge is computed; a GPU must hold the model in 16 bit.
        other_base: allows a base of another name than the adapter's.
        load: goes to `load_quantized` (revision, endpoint, gate, ...).

    Raises:
        UsageError: a folder that cannot be used, too little disk or memory, or another base than the adapter's.
        NotVerified: the adapter does not fit the base, or the merged model does not answer as the two did.
    """
    saved = read_adapter(os.fspath(adapter))
    _mergeable(saved)
    place = Path(output).expanduser()
    _empty(place)
    name = _base(saved, base, other_base)
    word = _dtype(name, dtype)
    _room_before(name, place, word)
    told = []
    say(f"loading {name} in {word}")
    merged, processor, layers, expected, plain = _merged(saved, name, word, device, load, say)
    need = sum(t.numel() * t.element_size() for t in merged.state_dict().values())
    _room(place, need)
    with atomic_folder(place) as folder:
        say("saving")
        merged.save_pretrained(str(folder), max_shard_size=SHARD)
        processor.save_pretrained(str(folder))
        config = merged.config
        del merged
        gc.collect()
        say("loading what was saved, to compare")
        got = _logits_of(folder, word, device)
        tolerance = TOLERANCES[word]
        difference, effect = _apart(got, expected), _apart(plain, expected)
        if not difference <= tolerance:
            what = f"differ by {difference:.2g} of the largest from those of base + adapter"
            raise NotVerified(
                [f"the merged model's logits {what} (tolerance {tolerance:g} for {word}); nothing was kept in {place}"]
            )
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    if effect <= tolerance:
        told.append(
            f"the adapter moves the logits by {effect:.2g} only, no more than {word} rounds: it learned little, or not "
            "about the questions used here"
        )
    return Merged(
        place,
        name,
        word,
        layers,
        size,
        difference,
        effect,
        tolerance,
        gguf_commands(config, place, word),
        tuple(told),
    )


def gguf_commands(config: Any, folder: Path, dtype: str) -> tuple[str, ...]:
    """The commands of llama.cpp that turn a saved model into GGUF; none for a family that it cannot convert."""
    family = BY_TYPE.get(str(getattr(config, "model_type", "")))
    if family is not None and family.layout.qformer:
        return ()
    out = {"bfloat16": "bf16", "float16": "f16"}.get(dtype, "f32")
    name = folder.resolve().name
    lines = [f"python convert_hf_to_gguf.py {folder} --outfile {name}-{out}.gguf --outtype {out}"]
    if family is not None and "vl" in family.model_type:
        lines.append(f"python convert_hf_to_gguf.py {folder} --outfile mmproj-{name}.gguf --mmproj")
    elif family is not None and family.vision:
        lines.append(
            f"# that is {family.title}'s language model; tools/mtmd of llama.cpp says how its vision tower is converted"
        )
    return (*lines, f"llama-quantize {name}-{out}.gguf {name}-q4_k_m.gguf Q4_K_M")


# ---------------------------------------------------------------------------------------------- before the load


def _mergeable(saved: SavedAdapter) -> None:
    kind = str(saved.config.get("peft_type", "LORA"))
    if kind not in ("LORA", "ADALORA"):
        raise UsageError(f"{saved.folder} is a {kind} adapter; only LoRA (with DoRA and rsLoRA) is merged into weights")


def _empty(place: Path) -> None:
    if place.exists() and not place.is_dir():
        raise UsageError(f"{place} is a file; give a new folder for the merged model")
    held = sorted(p.name for p in place.iterdir())[:4] if place.is_dir() else []
    if held:
        raise UsageError(f"{place} is not empty ({', '.join(held)}); give another folder, nothing is overwritten")
    there = next(p for p in (place, *place.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"{place} cannot be written: no right to write in {there}")


def _base(saved: SavedAdapter, base: str | os.PathLike[str] | None, other: bool) -> str:
    if base is None:
        if not saved.base:
            raise UsageError(f"{saved.folder} does not name its base model; give it with --base")
        if Path(saved.base).is_absolute() and not Path(saved.base).is_dir():
            raise UsageError(
                f"{saved.folder} was trained on {saved.base}, which is not here; say where it is with --base"
            )
        return saved.base
    given = os.fspath(base)
    if not other and saved.base and _hub_name(saved.base) and _hub_name(given) and not same_model(saved.base, given):
        raise UsageError(
            f"{saved.folder} was trained on {saved.base}, not on {given}; merged into that it means nothing. Leave --base "
            "away, or say --other-base if the two hold the same weights"
        )
    return given


def _hub_name(name: str) -> bool:
    return not Path(name).expanduser().exists() and not Path(name).is_absolute() and name.count("/") == 1


def _dtype(name: str, dtype: str | None) -> str:
    from qlora_core.hardware import dtype_word

    word = dtype_word(dtype)
    if word is not None:
        return word
    path = Path(name).expanduser() / "config.json"
    if path.is_file():
        from qlora_core.tensors import read_json

        config = read_json(path)
        own = str(config.get("dtype") or config.get("torch_dtype") or "")
        if own == "float16":
            return own
    return "bfloat16"


def _room_before(name: str, place: Path, dtype: str) -> None:
    """The disk, where the base lies here and its size is known before anything is loaded."""
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        return
    from qlora_core.checkpoint import read_folder

    need = read_folder(name, folder, original_too=True).bytes(16, (), dtype)
    if need is not None:
        _room(place, need)


def _room(place: Path, need: int) -> None:
    there = next(p for p in (place, *place.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    # Shards are written whole, and a full disk is found by the safetensors writer only when it is too late.
    if need * 1.02 + 2**26 > free:
        raise UsageError(
            f"the merged model takes about {show_size(need)}, and {there} has {show_size(free)} free; give an --output "
            "on another disk, or free some"
        )


# ---------------------------------------------------------------------------------------------- the merge


def _merged(
    saved: SavedAdapter, name: str, dtype: str, device: Any, load: dict[str, Any], say: Callable[[str], None]
) -> tuple[Any, Any, int, Any, Any]:
    """The merged model, its processor, the number of merged layers, the logits of base + adapter and of the base."""
    from qlora_core.adapters import load_adapter
    from qlora_core.load import load_quantized

    loaded = load_quantized(name, bits=16, dtype=dtype, device=device, **load)
    model, processor = loaded.model, loaded.processor
    batches = _probes(processor, model)
    plain = _logits(model, batches)
    wrapped = load_adapter(model, str(saved.folder), trainable=False)
    wrapped.eval()
    expected = _logits(wrapped, batches)
    say("merging")
    layers = 0
    for layer in _lora_layers(wrapped):
        _merge_layer(layer)
        layers += 1
    with warnings.catch_warnings():
        # PEFT says so of layers that are merged already; here they are meant to be.
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        return wrapped.merge_and_unload(), processor, layers, expected, plain


def _lora_layers(model: Any) -> Iterator[Any]:
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            yield module


def _merge_layer(layer: Any) -> None:
    import torch

    base = layer.get_base_layer()
    kinds = {name: p.dtype for name, p in base.named_parameters(recurse=False)}
    # PEFT would round the update to 16 bit, add it, and round the sum again.
    for name in kinds:
        getattr(base, name).data = getattr(base, name).data.float()
    for part in layer.adapter_layer_names:
        weights = getattr(layer, part, None)
        if isinstance(weights, torch.nn.Module):
            weights.float()
    layer.merge(safe_merge=True)
    for name, kind in kinds.items():
        getattr(base, name).data = getattr(base, name).data.to(kind)


# ---------------------------------------------------------------------------------------------- the proof


def _probes(processor: Any, model: Any) -> list[dict[str, Any]]:
    """What both models are asked: a picture where the model sees, text else."""
    from qlora_core.answers import placed
    from qlora_core.chat import question
    from qlora_core.data.encode import make_encoder
    from qlora_core.data.rows import Image, Row
    from qlora_core.demo import picture

    encoder = make_encoder(processor, model.config)
    images = [Image(picture())] if hasattr(processor, "image_processor") else []
    device = next(model.parameters()).device
    made = [encoder.prompt(Row((question(text, images),))) for text in PROBES]
    return [{k: placed(v, device, model) for k, v in one.items()} for one in made]


def _logits(model: Any, batches: Sequence[dict[str, Any]]) -> list[Any]:
    import torch

    found = []
    for batch in batches:
        more = {}
        if getattr(model.config, "is_encoder_decoder", False) or _inner_decoder(model.config):
            more["decoder_input_ids"] = torch.zeros((1, 4), dtype=torch.long, device=batch["input_ids"].device)
        with torch.no_grad():
            found.append(model(**batch, **more).logits[0].float().cpu())
    return found


def _inner_decoder(config: Any) -> bool:
    return bool(getattr(getattr(config, "text_config", None), "is_encoder_decoder", False))


def _logits_of(folder: Path, dtype: str, device: Any) -> list[Any]:
    from qlora_core.load import load_quantized

    loaded = load_quantized(folder, bits=16, dtype=dtype, device=device, gate="off")
    return _logits(loaded.model, _probes(loaded.processor, loaded.model))


def _apart(one: Sequence[Any], other: Sequence[Any]) -> float:
    """The largest difference, as a share of the largest logit; infinite where the shapes differ or a value is NaN."""
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape:
            return float("inf")
        share = float((a - b).abs().max() / b.abs().max().clamp_min(1e-6))
        worst = max(worst, float("inf") if math.isnan(share) else share)
    return worst
