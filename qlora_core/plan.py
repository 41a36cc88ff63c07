"""The load plan: what the user asked for, with our defaults, in the form that checks judge and transformers takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qlora_core import hardware
from qlora_core.checkpoint import Checkpoint
from qlora_core.distributed import sharded
from qlora_core.errors import ModelProblem
from qlora_core.report import Change, LoadReport
from qlora_core.values import to_python, to_value
from qlora_doctor.errors import UsageError
from qlora_doctor.facts import Facts
from qlora_doctor.families import Family
from qlora_doctor.request import LoadRequest
from qlora_doctor.source import Call, Dotted, Unresolved, Value, show

HUB_ARGUMENTS = ("revision", "token", "local_files_only", "force_download", "proxies")
CONFIG = "transformers.BitsAndBytesConfig"


@dataclass(slots=True)
class Plan:
    """One load in the making. `dtype` None: to be chosen from the card. `kwargs` go to from_pretrained.

    `quantization` holds what a user's own config, or the gate, says of the BitsAndBytesConfig, over our defaults.
    """

    name: str
    bits: int
    dtype: str | None
    family: Family | None = None
    quantize_vision: bool = False
    for_training: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Value] = field(default_factory=dict)
    prequantized: bool = False
    dtype_keyword: str = "dtype"

    @property
    def kept(self) -> tuple[str, ...] | None:
        """The names that stay in 16 bit; None leaves them to transformers."""
        own = self.quantization.get("llm_int8_skip_modules")
        if isinstance(own, tuple):
            return tuple(str(name) for name in own)
        return self.family.kept(self.quantize_vision) if self.family else None

    @property
    def class_name(self) -> str:
        """The class that loads it: the family's own, so that no code of a repository can take its place."""
        return self.family.classes[0] if self.family else "AutoModelForCausalLM"

    def config_call(self, dtype: str, bits: int | None = None) -> Call | None:
        """The BitsAndBytesConfig for this dtype; None for 16 bits."""
        bits = self.bits if bits is None else bits
        if bits == 16:
            return None
        arguments: dict[str, Value] = {f"load_in_{bits}bit": True}
        if bits == 4:
            arguments |= {
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": True,
                "bnb_4bit_compute_dtype": Dotted(f"torch.{dtype}"),
            }
        if bits == 4 and self.for_training and sharded():
            arguments["bnb_4bit_quant_storage"] = Dotted(f"torch.{dtype}")
        if self.kept is not None:
            arguments["llm_int8_skip_modules"] = self.kept
        return Call(CONFIG, arguments={**arguments, **self.quantization} if bits == self.bits else arguments)

    def request(self, dtype: str, device_map: Value, bits: int | None = None) -> LoadRequest:
        """The load as the checks see it, every default filled in."""
        arguments: dict[str, Value] = {"pretrained_model_name_or_path": self.name}
        config = self.config_call(dtype, bits)
        if config is not None:
            arguments["quantization_config"] = config
        arguments[self.dtype_keyword] = Dotted(f"torch.{dtype}")
        arguments["device_map"] = device_map
        arguments |= {name: to_value(value) for name, value in self.kwargs.items() if name != "device_map"}
        return LoadRequest(Call(f"transformers.{self.class_name}.from_pretrained", arguments=arguments), source="api")

    def take_back(self, before: LoadRequest, after: LoadRequest) -> None:
        """Takes over what the gate changed, and only that."""
        old, new = before.call.arguments, after.call.arguments
        for name in {*old, *new}:
            if name in old and name in new and old[name] == new[name]:
                continue
            if name in ("dtype", "torch_dtype"):
                if name in new:
                    self.dtype_keyword, self.dtype = name, hardware.dtype_word(_word(new[name]))
            elif name == "pretrained_model_name_or_path":
                self.name = str(new[name])
            elif name == "quantization_config":
                self._take_config(old.get(name), new.get(name))
            elif name not in new:
                self.kwargs.pop(name, None)
            elif not isinstance(new[name], Unresolved):
                self.kwargs[name] = to_python(new[name])

    def _take_config(self, old: Value, new: Value) -> None:
        if not isinstance(new, Call):
            raise UsageError("a check took the quantization_config away; say bits=16 where no quantisation is wanted")
        before: Mapping[str, Value] = old.arguments if isinstance(old, Call) else {}
        self.quantization |= {k: v for k, v in new.arguments.items() if k not in before or before[k] != v}

    def final(self, dtype: str, device_map: Any) -> dict[str, Any]:
        """The arguments of from_pretrained for a local folder, as Python objects."""
        kwargs = {k: v for k, v in self.kwargs.items() if k not in HUB_ARGUMENTS}
        config = None if self.prequantized else self.config_call(dtype)
        if config is not None:
            kwargs["quantization_config"] = to_python(config)
        kwargs[self.dtype_keyword] = to_python(Dotted(f"torch.{dtype}"))
        kwargs["device_map"] = device_map
        return kwargs


def make_plan(
    name: str,
    bits: int,
    dtype: Any,
    family: Family | None,
    kwargs: Mapping[str, Any],
    report: LoadReport,
    *,
    quantize_vision: bool = False,
    for_training: bool = False,
) -> Plan:
    """The plan from the arguments of `load_quantized`; old spellings are translated and reported.

    Raises:
        UsageError: two arguments that contradict each other.
    """
    kwargs = dict(kwargs)
    if "torch_dtype" in kwargs:
        old = kwargs.pop("torch_dtype")
        if dtype is not None and hardware.dtype_word(old) != hardware.dtype_word(dtype):
            raise UsageError(f"dtype={dtype} and torch_dtype={old} contradict each other; give dtype alone")
        dtype = old
        report.changes.append(_renamed("torch_dtype", "dtype", old))
    for width in (4, 8):
        if kwargs.get(f"load_in_{width}bit"):
            if width != bits:
                raise UsageError(f"load_in_{width}bit=True and bits={bits} contradict each other; give bits={width}")
            report.changes.append(_renamed(f"load_in_{width}bit", "bits", width))
        kwargs.pop(f"load_in_{width}bit", None)
    given = kwargs.pop("quantization_config", None)
    plan = Plan(name, bits, hardware.dtype_word(dtype), family, quantize_vision, for_training, kwargs)
    if given is not None:
        plan.quantization = _own_config(given, bits)
    return plan


def _own_config(given: Any, bits: int) -> dict[str, Value]:
    """What a user's quantization_config says, where it is one for bitsandbytes and for these bits."""
    value = to_value(given)
    arguments = (
        dict(value) if isinstance(value, Mapping) else dict(value.arguments) if isinstance(value, Call) else None
    )
    if arguments is None:
        raise UsageError(
            f"quantization_config is a {type(given).__name__}; load_quantized quantises with bitsandbytes. "
            "Leave it out, or give a BitsAndBytesConfig"
        )
    asked = 4 if arguments.get("load_in_4bit") else 8 if arguments.get("load_in_8bit") else bits
    if asked != bits:
        raise UsageError(f"quantization_config asks for {asked}-bit and bits={bits}; give bits={asked} alone")
    return arguments


def settle_checkpoint(plan: Plan, checkpoint: Checkpoint) -> None:
    """Holds the plan against the folder: one that was saved in 4-bit is loaded as it is.

    Raises:
        ModelProblem: it was saved in other bits than are asked for.
    """
    plan.family = checkpoint.family
    saved = checkpoint.quantized
    if saved is None:
        return
    if saved != plan.bits:
        raise ModelProblem(
            f"{checkpoint.name} was saved in {saved}-bit and bits={plan.bits}; give bits={saved}, or load the "
            "16-bit model that it was made from"
        )
    plan.prequantized = True
    config = checkpoint.config["quantization_config"]
    plan.quantization = {k: to_value(v) for k, v in config.items() if k == "llm_int8_skip_modules" and v is not None}


def dtype_keyword(facts: Facts | None) -> str:
    """What from_pretrained of the installed transformers calls the dtype: `dtype` from 4.56 on."""
    if facts is None:
        from importlib.metadata import version

        major, minor = (int(part) for part in version("transformers").split(".")[:2])
        return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"
    installed = facts.version("transformers")
    return "dtype" if installed is None or installed.release >= (4, 56) else "torch_dtype"


def _renamed(old: str, new: str, value: Any) -> Change:
    return Change("old-arguments", old, f"{old}={value}", f"{new}={value}", f"load_quantized calls it {new}")


def _word(value: Value) -> str:
    return show(value).strip("'\"")
