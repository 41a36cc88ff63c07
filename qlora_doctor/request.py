"""Requests: what the user is about to ask for. One LoadRequest a load call, one TrainRequest a trainer.

They come from a script, from a configuration file, from the command line (`--model`) or from `load_quantized`.
A call that an if/else gives different arguments becomes several requests, one a branch; `when` names the branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qlora_doctor.errors import UnknownArgument
from qlora_doctor.source import Call, Dotted, Site, Value


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a BitsAndBytesConfig (or its keyword shorthand) asks for. `config` is the call itself, where there is one.

    `bits` is 4, 8 or None for neither; `method` is `bitsandbytes`, or another quantizer's name (`gptq`, `awq`).
    """

    bits: int | None
    method: str = "bitsandbytes"
    config: Call | None = None


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One load of a model (not of a tokenizer or processor).

    `call.function` is the import path with the method: `transformers.AutoModelForCausalLM.from_pretrained`.
    `source`: `script`, `config`, `command line`, `api`.
    """

    call: Call
    source: str = "script"
    when: str = ""

    @property
    def site(self) -> Site | None:
        return self.call.site

    @property
    def class_name(self) -> str:
        """`AutoModelForCausalLM`."""
        parts = self.call.function.split(".")
        return parts[-2] if len(parts) > 1 else parts[-1]

    @property
    def model(self) -> str:
        """The model's id or path.

        Raises:
            UnknownArgument: it cannot be known without running the script.
        """
        value = self.call.get("pretrained_model_name_or_path")
        if isinstance(value, str):
            return value
        raise UnknownArgument("model", "its name is not a plain string here")

    @property
    def model_or(self) -> str:
        """The model's id for a message; `the model` where it is not known."""
        value = self.call.seen("pretrained_model_name_or_path")
        return value if isinstance(value, str) else "the model"

    @property
    def quantization(self) -> Quantization | None:
        """What quantisation this load asks for; None for none.

        Raises:
            UnknownArgument: it cannot be known (a config built elsewhere, `**kwargs` of a function).
        """
        config = self.call.arguments.get("quantization_config")
        if isinstance(config, Call):
            return _quantization(config)
        if isinstance(config, Mapping):
            return _quantization(Call("transformers.BitsAndBytesConfig", arguments=config, site=self.call.site))
        if config is None:
            for bits in (4, 8):
                if f"load_in_{bits}bit" in self.call.arguments and self.call.get(f"load_in_{bits}bit") is True:
                    return Quantization(bits)
            if "quantization_config" not in self.call.arguments:
                self.call.has("quantization_config")
            return self._by_name
        self.call.get("quantization_config")
        raise UnknownArgument("quantization_config", "it is not a call that can be read here")

    @property
    def _by_name(self) -> Quantization | None:
        """What a checkpoint brings that was saved quantised, where its name says so (`...-bnb-4bit`)."""
        name = self.model_or.rstrip("/").lower()
        return next((Quantization(bits) for bits in (4, 8) if name.endswith(f"-bnb-{bits}bit")), None)

    @property
    def dtype(self) -> str | None:
        """The dtype that the call names, as `bfloat16`; None where it names none.

        Raises:
            UnknownArgument: it cannot be known.
        """
        for name in ("dtype", "torch_dtype"):
            if name in self.call.arguments:
                return dtype_name(self.call.get(name))
        self.call.has("dtype")
        return None


def dtype_name(value: Value) -> str | None:
    """`torch.bfloat16`, `"bfloat16"`, `"bf16"` as `bfloat16`; None stays None; anything else raises UnknownArgument."""
    if value is None:
        return None
    if isinstance(value, Dotted):
        name = value.name.rpartition(".")[2]
        return {"half": "float16", "float": "float32", "double": "float64"}.get(name, name)
    if isinstance(value, str):
        return {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}.get(value, value.removeprefix("torch."))
    raise UnknownArgument("dtype", "it is not a name that can be read here")


def _quantization(config: Call) -> Quantization | None:
    name = config.function.rpartition(".")[2]
    if name != "BitsAndBytesConfig":
        return Quantization(None, method=name.removesuffix("Config").lower())
    for bits in (4, 8):
        if f"load_in_{bits}bit" in config.arguments and config.get(f"load_in_{bits}bit") is True:
            return Quantization(bits, config=config)
    config.has("load_in_4bit")
    return None


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """One trainer, with what feeds it.

    `trainer.function` is `transformers.Trainer`, `trl.SFTTrainer`, a subclass by its base's import path, or `loop`
    for a training loop of the script's own. `settings` is the TrainingArguments/SFTConfig call (or a config file's
    settings under the same names). `lora` is the LoraConfig call. `prepared`: prepare_model_for_kbit_training, or an
    equivalent, ran on the model; None where that cannot be seen. `peft`: the model was given adapters; None unknown.
    `load` is the load whose model is trained, where that can be followed.
    """

    trainer: Call
    settings: Call | None = None
    lora: Call | None = None
    load: LoadRequest | None = None
    prepared: bool | None = None
    peft: bool | None = None
    subclass: str = ""
    source: str = "script"
    when: str = ""

    @property
    def site(self) -> Site | None:
        return self.trainer.site

    def setting(self, name: str, default: Value = None) -> Value:
        """One training setting, or `default`. Raises UnknownArgument where it cannot be known."""
        if self.settings is None:
            raise UnknownArgument(name, "the training arguments are not built where they can be read")
        return self.settings.get(name, default)


@dataclass(frozen=True, slots=True)
class Requests:
    """Everything one script, or one command, asks for. A check that looks at the whole run takes this."""

    loads: tuple[LoadRequest, ...] = ()
    trains: tuple[TrainRequest, ...] = ()
    imports: tuple[str, ...] = field(default=())

    def takes(self, path: str) -> bool:
        """Whether the run takes a path: `import:PACKAGE`, `4-bit`, `8-bit`, `quantized`, `training`, `adapters`, `merge`.

        What cannot be known counts as not taken: a path is a reason to be strict, never an excuse to be silent.
        """
        return path in self.paths

    @property
    def paths(self) -> frozenset[str]:
        """All paths that the run takes, as far as can be seen."""
        found = {f"import:{name}" for name in self.imports}
        for load in self.loads:
            try:
                quantization = load.quantization
            except UnknownArgument:
                continue
            if quantization is not None and quantization.bits:
                found |= {f"{quantization.bits}-bit", "quantized"}
        if self.trains:
            found.add("training")
        if any(t.lora is not None or t.peft for t in self.trains) or "import:peft" in found:
            found.add("adapters")
        return frozenset(found)
