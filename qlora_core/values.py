"""Arguments in the doctor's words (`Value`) and back to Python's, so that checks judge what will really be passed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_doctor.source import Call, Dotted, Unresolved, Value


def to_value(thing: Any) -> Value:
    """A Python argument as a value; what has no such form is `Unresolved` with its class."""
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if type(thing).__module__ == "torch" and type(thing).__name__ == "dtype":
        return Dotted(str(thing))
    if isinstance(thing, (list, tuple)):
        return tuple(to_value(item) for item in thing)
    if isinstance(thing, Mapping) and all(isinstance(key, str) for key in thing):
        return {key: to_value(item) for key, item in thing.items()}
    if type(thing).__name__ == "BitsAndBytesConfig":
        return Call("transformers.BitsAndBytesConfig", arguments={k: to_value(v) for k, v in _fields(thing).items()})
    return Unresolved(f"it is an object of the class {type(thing).__name__}")


def to_python(value: Value) -> Any:
    """The inverse; torch and transformers are imported where a value names them."""
    if isinstance(value, Dotted):
        import torch

        return getattr(torch, value.name.rpartition(".")[2])
    if isinstance(value, tuple):
        return [to_python(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_python(item) for key, item in value.items()}
    if isinstance(value, Call):
        import transformers

        cls = getattr(transformers, value.function.rpartition(".")[2])
        return cls(**{key: to_python(item) for key, item in value.arguments.items()})
    if isinstance(value, Unresolved):
        raise TypeError(f"cannot be rebuilt: {value.reason}")
    return value


def _fields(config: Any) -> dict[str, Any]:
    """What a BitsAndBytesConfig object says beyond its defaults."""
    raw: Mapping[str, Any] = config.to_diff_dict() if hasattr(config, "to_diff_dict") else config.to_dict()
    fields = {k: v for k, v in raw.items() if not k.startswith("_") and k != "quant_method" and v is not None}
    for key in ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"):
        if isinstance(fields.get(key), str):
            fields[key] = getattr(config, key)
    return fields
