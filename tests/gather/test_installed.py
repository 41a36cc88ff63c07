from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.facts import Distribution, Installed, Packages, Signature
from qlora_doctor.gather.installed import DEFAULT_SIGNATURES, read_installed
from qlora_doctor.gather.interpreters import here
from tests.gather.environments import module

TRAINING_ARGS = '''from dataclasses import dataclass, field
from typing import ClassVar

class OptimizerNames(ExplicitEnum):
    ADAMW_TORCH = "adamw_torch"
    PAGED = "paged_adamw_8bit"

@dataclass
class TrainingArguments:
    """
    Not the constructor:

    def __init__(self, not_this_one): ...
    """
    framework: ClassVar[str] = "pt"
    output_dir: str
    eval_strategy: str = "no"
    _n_gpu: int = field(init=False, default=-1)
    optim: str = field(default="adamw_torch", metadata={"help": "x"})

    def to_dict(self):
        return {}
'''
TRANSFORMERS = {
    "__init__.py": """
        from typing import TYPE_CHECKING
        _import_structure = {"training_args": ["TrainingArguments"]}
        if TYPE_CHECKING:
            from .models import *
            from .training_args import (
                TrainingArguments as TrainingArguments,  # (the arguments)
            )
            from .trainer import Trainer
        """,
    "training_args.py": TRAINING_ARGS,
    "trainer.py": """
        class Trainer:
            @deprecate_kwarg("tokenizer", new_name="processing_class")
            def __init__(self, model=None, args=None, *, processing_class=None):
                pass

            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                pass
        """,
    "utils/__init__.py": "",
    "utils/import_utils.py": """
        ACCELERATE_MIN_VERSION = "1.1.0"
        FSDP_MIN_VERSION = "1.12.0"
        BITSANDBYTES_MIN_VERSION: str = '0.46.1'
        def is_torch_available():
            logger.warning_once(f"Disabling PyTorch because PyTorch >= 2.6 is required but found {torch_version}")
        """,
    "integrations/peft.py": 'MIN_PEFT_VERSION = "0.20.0"\n',
    "dependency_versions_table.py": 'deps = {"numpy": "numpy>=1.17", "accelerate": "accelerate>=1.1", "torch": "torch>=2"}\n',
    "dependency_versions_check.py": """
        pkgs_to_check_at_runtime = [
            "numpy",  # first
            "accelerate",
        ]
        """,
    "models/__init__.py": "from .llama import *\n",
    "models/auto/auto_mappings.py": 'CONFIG_MAPPING_NAMES = OrderedDict([("llama", "LlamaConfig"), ("qwen2_vl", "Q")])\n',
    "models/auto/configuration_auto.py": """
        from .auto_mappings import CONFIG_MAPPING_NAMES
        CONFIG_MAPPING_NAMES.update(
            {
                "mlcd": "MLCDVisionConfig",
            }
        )
        CONFIG_MAPPING_NAMES = OrderedDict(**{"gpt-sw3": "GPT2Config"}, **CONFIG_MAPPING_NAMES)
        """,
    "models/llama/__init__.py": "",
    "models/llama/modeling_llama.py": """
        from ...modeling_utils import PreTrainedModel
        class LlamaForCausalLM(PreTrainedModel):
            pass
        __all__ = ["LlamaForCausalLM"]
        """,
    "modeling_utils.py": """
        class PreTrainedModel(nn.Module):
            @classmethod
            def from_pretrained(cls, name, *model_args, config=None, **kwargs):
                dtype = kwargs.pop("dtype", None)
                subfolder = kwargs.get("subfolder")
                return cls(config, **kwargs)
        """,
}
PEFT = {
    "__init__.py": "from .tuners import LoraConfig\nfrom .mapping import get_peft_model\n",
    "tuners/__init__.py": "from .lora import LoraConfig\n",
    "tuners/lora.py": """
        from dataclasses import dataclass
        from ..config import PeftConfig
        @dataclass
        class LoraConfig(PeftConfig):
            r: int = 8
        """,
    "config.py": """
        from dataclasses import dataclass
        @dataclass
        class PeftConfig:
            task_type: str = None
        """,
    "mapping.py": """
        if TYPE_CHECKING:
            @overload
            def get_peft_model(model): ...

        def get_peft_model(model, peft_config, adapter_name="default"):
            pass
        """,
    "utils/constants.py": 'TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING = {\n    "llama": ["q_proj"],\n    "t5": ["q"],\n}\n',
}
TRL = {
    "__init__.py": "from .config import SFTConfig, Loose, Leaf\nfrom elsewhere import Foreign\n",
    "config.py": """
        from dataclasses import dataclass
        import transformers
        from transformers import TrainingArguments
        @dataclass
        class SFTConfig(TrainingArguments):
            eval_strategy: str = "steps"
            packing: bool = False
        class Loose(transformers.TrainingArguments):
            not_a_field: int = 1
        @dataclass
        class Leaf(Loose):
            depth: int = 1
        """,
}


def dedent(text: str) -> str:
    from textwrap import dedent as plain

    return plain(text.lstrip("\n")) if text.startswith("\n") else text


def make(site: Path, name: str, files: dict[str, str]) -> None:
    module(site, name, {file: dedent(text) for file, text in files.items()})


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packages:
    """Small transformers, peft and trl, and a cache of their own."""
    monkeypatch.setenv("QLORA_DOCTOR_CACHE", str(tmp_path / "cache"))
    site = tmp_path / "site-packages"
    make(site, "transformers", TRANSFORMERS)
    make(site, "peft", PEFT)
    make(site, "trl", TRL)
    return Packages(tuple(Distribution(n, "1.0", location=str(site)) for n in ("transformers", "peft", "trl")))


def signature(stack: Packages, name: str) -> Signature | None:
    read = read_installed(stack, [name])
    assert name not in read.problems, read.problems
    return read.signatures[name]


def site(stack: Packages) -> Path:
    return Path(stack.distributions[0].location)


# ---- what the packages state


def test_floors_and_requirements_are_those_that_the_installed_source_states(stack: Packages) -> None:
    read = read_installed(stack)
    assert read.minimums == {
        "transformers": {"accelerate": "1.1.0", "bitsandbytes": "0.46.1", "peft": "0.20.0", "torch": "2.6"}
    }
    assert read.import_requirements == {"transformers": ("numpy>=1.17",)}


def test_architectures_names_optimizers_and_lora_defaults_are_read(stack: Packages) -> None:
    read = read_installed(stack)
    assert read.model_types == ("gpt-sw3", "llama", "mlcd", "qwen2_vl")
    assert {"TrainingArguments", "Trainer", "LlamaForCausalLM"} <= set(read.classes)
    assert "PreTrainedModel" not in read.classes
    assert read.optimizers == ("adamw_torch", "paged_adamw_8bit")
    assert read.lora_defaults == ("llama", "t5")


def test_nothing_installed_states_nothing(tmp_path: Path) -> None:
    assert read_installed(Packages()) == Installed()


def test_metadata_without_source_is_a_problem_not_an_absence(tmp_path: Path) -> None:
    read = read_installed(Packages((Distribution("transformers", "5.23.0", location=str(tmp_path)),)))
    assert read.signatures == {}
    assert "transformers" in read.problems


# ---- signatures


def test_a_dataclass_takes_its_fields(stack: Packages) -> None:
    found = signature(stack, "transformers.TrainingArguments")
    assert found == Signature(
        ("output_dir", "eval_strategy", "optim"), ("output_dir",), source=found.source if found else ""
    )
    assert found and found.source == "transformers/training_args.py:9"


def test_a_dataclass_takes_the_fields_of_its_bases_first_also_from_another_package(stack: Packages) -> None:
    found = signature(stack, "trl.SFTConfig")
    assert found and found.parameters == ("output_dir", "eval_strategy", "optim", "packing")
    lora = signature(stack, "peft.LoraConfig")
    assert lora and lora.parameters == ("task_type", "r")


def test_an_annotation_in_a_class_that_is_no_dataclass_is_no_field(stack: Packages) -> None:
    found = signature(stack, "trl.Loose")
    assert found and "not_a_field" not in found.parameters and "optim" in found.parameters
    leaf = signature(stack, "trl.Leaf")
    assert leaf and leaf.parameters == ("output_dir", "eval_strategy", "optim", "depth")


def test_a_renamed_argument_that_a_decorator_still_takes_is_a_parameter(stack: Packages) -> None:
    found = signature(stack, "transformers.Trainer")
    assert found and found.parameters == ("model", "args", "processing_class", "tokenizer")


def test_methods_and_functions_are_read_without_self_and_without_overloads(stack: Packages) -> None:
    loss = signature(stack, "transformers.Trainer.compute_loss")
    assert loss and loss.parameters == ("model", "inputs", "return_outputs", "num_items_in_batch")
    assert loss.required == ("model", "inputs")
    wrap = signature(stack, "peft.get_peft_model")
    assert wrap and wrap.parameters == ("model", "peft_config", "adapter_name")


def test_a_model_class_is_found_by_the_names_that_its_file_exports_and_inherits_from_pretrained(
    stack: Packages,
) -> None:
    found = signature(stack, "transformers.LlamaForCausalLM.from_pretrained")
    assert found and found.parameters == ("name", "config", "dtype", "subfolder")
    assert found.open and not found.swallows


@pytest.mark.parametrize(
    ("body", "swallows", "open_"),
    [
        ("pass", True, False),
        ("if kwargs:\n        logger.info(f'Unused: {list(kwargs.keys())}')", True, False),
        ("self.update(kwargs)", False, True),
        ("super().__init__(**kwargs)", False, True),
        ("for key, value in kwargs.items():\n        setattr(self, key, value)", False, True),
        ("if kwargs:\n        raise TypeError(kwargs)", False, True),
        ("if len(kwargs) > 0:\n        raise TypeError(f'{kwargs}')", False, False),
        ("if 'old' in kwargs:\n        warn()", True, False),
    ],
)
def test_whether_unknown_names_are_dropped_passed_on_or_refused_is_told(
    stack: Packages, body: str, swallows: bool, open_: bool
) -> None:
    text = f"def function(a, **kwargs):\n    {body}\n"
    (site(stack) / "trl" / "__init__.py").write_text(text)
    found = signature(stack, "trl.function")
    assert found and (found.swallows, found.open) == (swallows, open_)
    assert found.parameters[0] == "a" and ("old" in found.parameters) is ("old" in body)


@pytest.mark.parametrize(
    "name", ["transformers.AdamW", "transformers.Trainer.nonsense", "peft.prepare_model_for_int8_training"]
)
def test_what_certainly_does_not_exist_is_none(stack: Packages, name: str) -> None:
    assert signature(stack, name) is None


@pytest.mark.parametrize(
    "name",
    ["trl.Foreign", "transformers.LlamaForCausalLM.nonsense", "transformers.LlamaTokenizerFast", "transformers.utils"],
)
def test_what_cannot_be_told_is_a_problem_with_its_reason(stack: Packages, name: str) -> None:
    read = read_installed(stack, [name])
    assert name not in read.signatures
    assert read.problems[name]


def test_names_of_packages_that_are_not_read_are_passed_over(stack: Packages) -> None:
    read = read_installed(stack, ["torch.nn.Linear", ".half", "numpy"])
    assert read.signatures == {} and read.problems == {}


def test_a_file_that_does_not_parse_is_a_problem_and_the_rest_is_read(stack: Packages) -> None:
    (site(stack) / "transformers" / "trainer.py").write_text("class Trainer:\n    def __init__(self, (:\n")
    read = read_installed(stack)
    assert read.signatures["transformers.TrainingArguments"] is not None
    assert "transformers.Trainer" not in read.signatures


def test_the_folder_where_an_import_would_find_a_package_is_read_for_an_editable_install(
    stack: Packages, tmp_path: Path
) -> None:
    make(tmp_path / "checkout", "peft", {**PEFT, "mapping.py": "def get_peft_model(model, mine): pass\n"})
    editable = Packages(stack.distributions, roots={"peft": str(tmp_path / "checkout" / "peft")})
    found = signature(editable, "peft.get_peft_model")
    assert found and found.parameters == ("model", "mine")


# ---- the cache


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "installed").glob("*"))


def test_a_second_reading_is_the_same_and_comes_from_the_cache(stack: Packages, tmp_path: Path) -> None:
    first = read_installed(stack)
    assert len(cached(tmp_path)) == 3
    for path in cached(tmp_path):
        path.write_text(path.read_text().replace("num_items_in_batch", "from_the_cache"))
    again = read_installed(stack).signatures["transformers.Trainer.compute_loss"]
    assert again and again.parameters[-1] == "from_the_cache"
    for path in cached(tmp_path):
        path.write_text(path.read_text().replace("from_the_cache", "num_items_in_batch"))
    assert read_installed(stack) == first


def test_a_source_that_changed_is_read_again(stack: Packages) -> None:
    read_installed(stack)
    (site(stack) / "peft" / "mapping.py").write_text("def get_peft_model(model, added): pass\n")
    found = read_installed(stack).signatures["peft.get_peft_model"]
    assert found and found.parameters == ("model", "added")


def test_another_version_in_the_same_place_is_read_again(stack: Packages) -> None:
    read_installed(stack, ["trl.SFTConfig"])
    path = site(stack) / "transformers" / "training_args.py"
    path.write_text(path.read_text().replace("eval_strategy", "evaluation_strategy"))
    found = signature(stack, "trl.SFTConfig")
    assert found and "evaluation_strategy" in found.parameters


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', "[" * 100_000])
def test_a_damaged_cache_is_ignored(stack: Packages, tmp_path: Path, content: str) -> None:
    first = read_installed(stack)
    for path in cached(tmp_path):
        path.write_text(content)
    assert read_installed(stack) == first


@pytest.mark.parametrize("where", ["statements", "signatures"])
def test_a_cache_of_another_shape_is_ignored(stack: Packages, tmp_path: Path, where: str) -> None:
    first = read_installed(stack)
    for path in cached(tmp_path):
        entry = json.loads(path.read_text())
        entry["data"][where] = {k: 7 for k in entry["data"][where]}
        path.write_text(json.dumps(entry))
    assert read_installed(stack) == first


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    stack: Packages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QLORA_DOCTOR_CACHE", str(tmp_path / "file" / "below"))
    assert read_installed(stack).optimizers


# ---- the packages as they are

COMPARE = """
import importlib, inspect, json, sys
out = {}
for name in sys.argv[1:]:
    package, *rest = name.split(".")
    thing = importlib.import_module(package)
    for part in rest:
        thing = getattr(thing, part)
    kinds = inspect.Parameter
    given = inspect.signature(thing).parameters.values()
    named = [p for p in given if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD) and p.name != "self"]
    out[name] = [[p.name for p in named], [p.name for p in named if p.default is p.empty]]
print(json.dumps(out))
"""


@pytest.mark.torch
@pytest.mark.slow
def test_what_is_read_is_what_the_imported_packages_say(tmp_path: Path, monkeypatch: Any) -> None:
    for package in ("torch", "transformers", "peft", "trl", "accelerate"):
        pytest.importorskip(package, reason=f"compares with the real {package}", exc_type=ImportError)
    monkeypatch.setenv("QLORA_DOCTOR_CACHE", str(tmp_path))
    read = read_installed(here(("packages",)).packages)
    command = [sys.executable, "-W", "ignore", "-c", COMPARE, *DEFAULT_SIGNATURES]
    environ = {**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1"}
    real = json.loads(subprocess.run(command, capture_output=True, check=True, env=environ).stdout)
    for name, (parameters, required) in real.items():
        found = read.signatures[name]
        assert found is not None, name
        if name == "transformers.PreTrainedModel.from_pretrained":
            assert set(parameters) < set(found.parameters) and "dtype" in found.parameters
        else:
            assert (list(found.parameters), list(found.required)) == (parameters, required), name
