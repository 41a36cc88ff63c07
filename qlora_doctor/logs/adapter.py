"""What a saved adapter says of itself, read without torch: untrained, not finite, made with another chat template.

The weights are read as bytes. What its answers say is in `qlora_doctor.logs.answers`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_doctor.errors import UsageError
from qlora_doctor.finding import Finding
from qlora_doctor.gather.safetensors import Refused, read_header, strict_json
from qlora_doctor.logs.answers import Sample, judge_samples

WEIGHTS = "adapter_model.safetensors"
LARGEST_TENSOR = 1 << 30


def adapter_findings(folder: str, base: str = "", samples: Sequence[Sample] = ()) -> tuple[Finding, ...]:
    """What is wrong with the adapter in `folder`; `base` is the folder of its base model, where it is not the one it names.

    Raises:
        UsageError: there is no adapter there, or a file of it cannot be read.
    """
    path = Path(folder).expanduser()
    config = _json(path / "adapter_config.json")
    if config is None:
        raise UsageError(f"--adapter {folder}: no adapter_config.json in it; give the folder that training saved")
    named = base or str(config.get("base_model_name_or_path") or "")
    return (
        *_weights(path),
        *_template(path, Path(named).expanduser()),
        *judge_samples(samples),
    )


def _json(path: Path) -> Mapping[str, Any] | None:
    try:
        data = strict_json(path.read_bytes()[: 1 << 24])
    except FileNotFoundError:
        return None
    except (OSError, Refused) as error:
        raise UsageError(f"{path}: {error}") from None
    return data if isinstance(data, Mapping) else None


# ---- the weights


def _weights(path: Path) -> Iterator[Finding]:
    file = path / WEIGHTS
    if not file.is_file():
        other = (
            " (adapter_model.bin is there: it is a pickle and is not read)"
            if (path / "adapter_model.bin").is_file()
            else ""
        )
        yield Finding(
            "the adapter has no {file}{other}; save it with save_pretrained",
            {"file": WEIGHTS, "other": other},
            "warning" if other else "error",
            name="adapter-without-weights",
        )
        return
    zero, seconds, broken = [], 0, []
    with file.open("rb") as stream:
        size = file.stat().st_size
        stored, tensors = read_header(stream, WEIGHTS, size)
        if stored.fault:
            yield Finding(
                "{file} is {fault}: {detail}; copy or save it again",
                {"file": WEIGHTS, "fault": stored.fault, "detail": stored.detail},
                "error",
                name="adapter-file-damaged",
            )
            return
        for name, dtype, data in _tensors(stream):
            if not finite(data, dtype):
                broken.append(name)
            if "lora_B" in name or "lora_embedding_B" in name:
                seconds += 1
                if not data.strip(b"\0\x80"):  # 0.0 and -0.0
                    zero.append(name)
    if broken:
        yield Finding(
            "{count} of {all} tensors of the adapter hold NaN or infinity, such as {name}: the training diverged. Take an "
            "earlier checkpoint; train with bf16 (or a lower learning rate), never pure fp16",
            {"count": len(broken), "all": len(tensors), "name": broken[0]},
            "error",
            name="adapter-not-finite",
        )
    if seconds and len(zero) == seconds:
        yield Finding(
            "all {count} lora_B matrices are zero, so the adapter changes nothing: it was saved before a step was made, or "
            "no gradient reached it. Look at the loss (does it move?) and save after training",
            {"count": seconds},
            "error",
            name="adapter-untrained",
        )
    elif len(zero) > 0:
        yield Finding(
            "{count} of {all} lora_B matrices are zero, such as {name}: these layers were never trained. Are they used in the "
            "forward (a vision tower without images in the data)?",
            {"count": len(zero), "all": seconds, "name": zero[0]},
            "warning",
            name="adapter-partly-untrained",
        )


def _tensors(stream: Any) -> Iterator[tuple[str, str, bytes]]:
    """Each tensor of a sound file: its name, dtype and bytes."""
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    header = json.loads(stream.read(length))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        stream.seek(8 + length + start)
        yield name, str(entry["dtype"]), stream.read(min(end - start, LARGEST_TENSOR))


_HIGH = {"F32": (4, 3, 2), "BF16": (2, 1, 0), "F64": (8, 7, 6)}
_F16 = bytes(c & 0x7C == 0x7C for c in range(256))


def finite(data: bytes, dtype: str) -> bool:
    """Whether no number of little-endian floats is NaN or infinite. Other dtypes are finite by nature."""
    if dtype == "F16":
        return not any(data[1::2].translate(_F16))
    if dtype not in _HIGH:
        return True
    step, high, low = _HIGH[dtype]
    limit = 0xF0 if dtype == "F64" else 0x80
    tops, nexts = data[high::step], data[low::step]
    for top in (b"\x7f", b"\xff"):
        at = tops.find(top)
        while at >= 0:
            if nexts[at] >= limit:
                return False
            at = tops.find(top, at + 1)
    return True


# ---- the template


def _template(adapter: Path, base: Path) -> Iterator[Finding]:
    if not base.is_dir():
        return
    mine, theirs = _chat_template(adapter), _chat_template(base)
    if mine and theirs and _plain(mine) != _plain(theirs):
        yield Finding(
            "the adapter was saved with another chat template than its base's ({base}): prompts that the base's tokenizer "
            "makes are not those that it was trained on. Load the tokenizer from the adapter's folder",
            {"base": base.name},
            "warning",
            name="adapter-template-differs",
        )
    # Another pad token says nothing: the loader gives a model one that is not its eos.
    one, other = _token(adapter, "eos_token"), _token(base, "eos_token")
    if one and other and one != other:
        yield Finding(
            "the adapter's tokenizer has {token} {mine}, its base's {theirs}: generation stops at the wrong token. Load "
            "the tokenizer from the adapter's folder, and set the generation config's token ids from it",
            {"token": "eos_token", "mine": one, "theirs": other},
            "warning",
            name="adapter-token-differs",
        )


def _chat_template(folder: Path) -> str:
    for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        if name.endswith(".jinja"):
            return path.read_text(encoding="utf-8", errors="replace")
        found = (_json(path) or {}).get("chat_template")
        if isinstance(found, str):
            return found
    return ""


def _plain(template: str) -> str:
    return re.sub(r"\s+", " ", template).strip()


def _token(folder: Path, name: str) -> str:
    found = (_json(folder / "tokenizer_config.json") or {}).get(name)
    return str(found.get("content", "")) if isinstance(found, Mapping) else str(found or "")
