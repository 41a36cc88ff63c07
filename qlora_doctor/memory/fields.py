"""Reading a config.json field by field: a value, or transformers' default and a word about it, or a clear error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_doctor.errors import UsageError

# The defaults of the configuration classes in transformers 5.23, for the fields that published files leave out.
_LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32,
}  # fmt: skip
_QWEN = {**_LLAMA, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32}
_VL_TEXT = {
    "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8,
}  # fmt: skip
_GEMMA2 = {
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True,
}  # fmt: skip
_VIT = {
    "hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16, "image_size": 224,
    "patch_size": 14,
}  # fmt: skip
_QFORMER = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "max_position_embeddings": 512, "cross_attention_frequency": 2,
    "encoder_hidden_size": 1408,
}  # fmt: skip
_QWEN_VISION = {"depth": 32, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8},
    "gemma": {
        "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "tie_word_embeddings": True,
    },
    "gemma2": _GEMMA2,
    "gemma3_text": {**_GEMMA2, "vocab_size": 262208},
    "phi": {
        "vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
        "num_attention_heads": 32,
    },
    "phi3": {**_LLAMA, "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192},
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
    "opt": {
        "vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12, "ffn_dim": 3072, "num_attention_heads": 12,
        "max_position_embeddings": 2048,
    },
    "t5": {"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "clip_vision_model": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 32,
    },
    # What LlavaConfig puts in place of a missing vision_config: CLIP ViT-L/14 at 336 pixels.
    "llava_vision": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 336, "patch_size": 14,
    },
    "instructblip_vision_model": _VIT,
    "blip_2_vision_model": _VIT,
    "instructblip_qformer": _QFORMER,
    "blip_2_qformer": _QFORMER,
    "instructblip": {"num_query_tokens": 32},
    "blip-2": {"num_query_tokens": 32},
    "qwen2_vl_text": _VL_TEXT,
    "qwen2_5_vl_text": _VL_TEXT,
    "qwen3_vl_text": {**_QWEN, "head_dim": 128},
    "qwen2_vl_vision": {**_QWEN_VISION, "embed_dim": 1280, "hidden_size": 3584},
    "qwen2_5_vl_vision": {**_QWEN_VISION, "hidden_size": 3584, "intermediate_size": 3420, "out_hidden_size": 3584},
    "qwen3_vl_vision": {
        **_QWEN_VISION, "depth": 27, "patch_size": 16, "hidden_size": 1152, "intermediate_size": 4304,
        "out_hidden_size": 3584, "num_position_embeddings": 2304,
    },
}  # fmt: skip
_MOST = 2**24


class Fields:
    """One (sub-)configuration. Remembers what it had to assume; `where` is its place for messages."""

    def __init__(self, data: Mapping[str, Any], where: str, defaults: str = "") -> None:
        self.data = data
        self.where = where
        self._assumed: list[str] = []
        raw = data.get("model_type", defaults)
        self.model_type = raw if isinstance(raw, str) else ""
        self._defaults = DEFAULTS.get(defaults or self.model_type, {})

    @property
    def assumed(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._assumed))

    def given(self, name: str) -> bool:
        return self.data.get(name) is not None

    def raw(self, name: str) -> Any:
        return self.data.get(name)

    def default(self, name: str) -> Any:
        return self._defaults.get(name)

    def wrong(self, name: str, why: str) -> UsageError:
        return UsageError(f"{self.where}: {name} = {self.data.get(name)!r}: {why}")

    def size(
        self, name: str, most: int = _MOST, *, default: int | None = None, quiet: bool = False, least: int = 1
    ) -> int:
        """A whole number from `least` to `most`; where it is missing, the class's default, else `default`.

        Raises:
            UsageError: it is no such number, or it is missing and no default is known.
        """
        value = self.data.get(name)
        if value is None:
            value = self._defaults.get(name, default)
            if value is None:
                raise UsageError(f"{self.where}: {name} is missing, and nothing sensible can be assumed for it")
            if not quiet:
                self._assumed.append(f"{self.where}: {name} is missing; {value} is assumed, transformers' default")
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, "expected a whole number")
        if not least <= value <= most:
            raise self.wrong(name, f"expected a number from {least} to {most}")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.data.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1000:
            raise self.wrong(name, "expected a number from 0 to 1000")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.data.get(name)
        if value is None:
            value = self._defaults.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "expected true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self.data.get(name, default)
        if value is None:
            raise UsageError(f"{self.where}: {name} is missing")
        if not isinstance(value, str):
            raise self.wrong(name, "expected a string")
        return value

    def inside(self, name: str, kind: str, empty: str = "", *, flat: bool = False) -> Fields:
        """The sub-configuration `name` of the default kind `kind`; `empty` names the defaults where it is not there.

        With `flat`, a configuration whose text fields lie at the top (Qwen2-VL's files) is its own sub-configuration.
        """
        value = self.data.get(name)
        if value is None:
            if flat and self.given("hidden_size"):
                data = {k: v for k, v in self.data.items() if k != "model_type"}
                return Fields({**data, "model_type": kind}, self.where, kind)
            self._assumed.append(f"{self.where}: {name} is missing; transformers' defaults are assumed")
            return Fields({"model_type": kind}, f"{self.where}: {name}", empty or kind)
        if not isinstance(value, Mapping):
            raise self.wrong(name, "expected an object")
        given = value.get("model_type")
        if not isinstance(given, str):
            return Fields({**value, "model_type": kind}, f"{self.where}: {name}", kind)
        # Published vision configurations carry the parent's type (`qwen2_vl`), which is not the sub-configuration's.
        if given == self.model_type or given in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
            return Fields({**value, "model_type": kind}, f"{self.where}: {name}", kind)
        return Fields(value, f"{self.where}: {name}", given if given in DEFAULTS else kind)
