"""Shapes of real scripts in which a reader easily says what is not so."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from qlora_doctor.gather.script import read_script
from qlora_doctor.request import LoadRequest, Requests
from qlora_doctor.source import Call, Dotted, Script, Unresolved

HEAD = """
import os, sys, torch, transformers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments
from peft import LoraConfig, get_peft_model
"""


def read(folder: Path, source: str) -> tuple[Script, Requests]:
    path = folder / "train.py"
    path.write_text(HEAD + dedent(source))
    script, requests = read_script(path)
    assert not script.problem, script.problem
    return script, requests


def values(loads: tuple[LoadRequest, ...], name: str) -> list[object]:
    found = [one.call.arguments.get(name) for one in loads]
    return [v.name.rpartition(".")[2] if isinstance(v, Dotted) else v for v in found]


def test_a_setting_of_a_library_is_not_decided(tmp_path: Path) -> None:
    source = """
    device = "auto" if torch.version.cuda else "cpu"
    if sys.platform == "win32":
        dtype = torch.float32
    elif torch.version.hip is not None:
        dtype = torch.float16
    else:
        dtype = torch.bfloat16
    AutoModelForCausalLM.from_pretrained("a", device_map=device, torch_dtype=dtype)
    """
    loads = read(tmp_path, source)[1].loads
    assert set(values(loads, "device_map")) == {"auto", "cpu"}
    assert set(values(loads, "torch_dtype")) == {"float32", "float16", "bfloat16"}


def test_a_dtype_is_not_a_condition(tmp_path: Path) -> None:
    source = """
    dtype = torch.float16
    bf16 = dtype == torch.bfloat16
    TrainingArguments("o", fp16=dtype == torch.float16, bf16=bf16)
    """
    (call,) = read(tmp_path, source)[0].called("TrainingArguments")
    assert (call.get("fp16"), call.get("bf16")) == (True, False)


def test_an_import_with_a_substitute_is_followed_on_both_ways(tmp_path: Path) -> None:
    source = """
    try:
        from peft import prepare_model_for_kbit_training
    except ImportError:
        from peft import prepare_model_for_int8_training as prepare_model_for_kbit_training
    model = AutoModelForCausalLM.from_pretrained("a", load_in_8bit=True)
    model = prepare_model_for_kbit_training(model)
    Trainer(model, TrainingArguments("o"))
    """
    trains = read(tmp_path, source)[1].trains
    assert [t.prepared for t in trains] == [True] * len(trains)
    assert trains[0].load is not None and trains[0].load.model == "a"


def test_a_keyword_by_the_installed_version_is_one_or_the_other(tmp_path: Path) -> None:
    source = """
    from packaging import version
    tok = transformers.AutoTokenizer.from_pretrained("a")
    kw = {}
    if version.parse(transformers.__version__) >= version.parse("4.46"):
        kw["processing_class"] = tok
    else:
        kw["tokenizer"] = tok
    Trainer(model=AutoModelForCausalLM.from_pretrained("a"), args=TrainingArguments("o"), **kw)
    """
    trains = read(tmp_path, source)[1].trains
    passed = [{"processing_class", "tokenizer"} & set(t.trainer.arguments) for t in trains]
    assert sorted(map(sorted, passed)) == [["processing_class"], ["tokenizer"]]
    assert all("version" in t.when for t in trains)


@pytest.mark.parametrize(
    "lines",
    [
        "for k, v in vars(args).items():\n    setattr(cfg, k, v)",
        "cfg.__dict__.update(vars(args))",
        "if args.model:\n    cfg.model = args.model",
        "cfg = Config(**vars(args))",
    ],
)
def test_a_configuration_that_the_command_line_may_change_is_not_known(tmp_path: Path, lines: str) -> None:
    source = (
        "from dataclasses import dataclass\nimport argparse\nargs = argparse.ArgumentParser().parse_args()\n"
        "@dataclass\nclass Config:\n    model: str = 'default'\ncfg = Config()\n"
        + lines
        + "\nAutoModelForCausalLM.from_pretrained(cfg.model)\n"
    )
    path = tmp_path / "train.py"
    path.write_text(HEAD + source)
    loads = read_script(path)[1].loads
    assert any(isinstance(one.call.arguments["pretrained_model_name_or_path"], Unresolved) for one in loads)


def test_a_configuration_class_that_nothing_changes_is_known(tmp_path: Path) -> None:
    source = """
    class Config:
        MODEL = "Qwen/Qwen2.5-7B"
        LOAD_IN_4BIT = True
        quant = BitsAndBytesConfig(load_in_4bit=LOAD_IN_4BIT, bnb_4bit_compute_dtype=torch.bfloat16)
    cfg = Config()
    AutoModelForCausalLM.from_pretrained(cfg.MODEL, quantization_config=Config.quant if cfg.LOAD_IN_4BIT else None)
    """
    (load,) = read(tmp_path, source)[1].loads
    assert load.model == "Qwen/Qwen2.5-7B"
    assert load.quantization is not None and load.quantization.bits == 4


def test_what_a_branch_makes_needs_no_condition_of_its_own(tmp_path: Path) -> None:
    source = """
    from peft import prepare_model_for_kbit_training
    import argparse
    args = argparse.ArgumentParser().parse_args()
    if args.do_train:
        kw = {}
        kw["torch_dtype"] = torch.float16
        model = AutoModelForCausalLM.from_pretrained("a", **kw)
        model = prepare_model_for_kbit_training(model)
        model.enable_input_require_grads()
    Trainer(model, TrainingArguments("o"))
    """
    (train,) = read(tmp_path, source)[1].trains
    assert train.prepared is True
    assert train.load is not None and train.load.dtype == "float16"


def test_attributes_that_are_no_settings_do_not_multiply_the_requests(tmp_path: Path) -> None:
    source = """
    import argparse
    args = argparse.ArgumentParser().parse_args()
    t = TrainingArguments("o")
    if args.x:
        t.my_own_thing = 3
    if args.y:
        t.another = 4
    Trainer(AutoModelForCausalLM.from_pretrained("a"), t)
    """
    assert len(read(tmp_path, source)[1].trains) == 1


def test_two_trainers_in_two_functions_are_two_requests(tmp_path: Path) -> None:
    source = """
    def sft(model):
        Trainer(model, TrainingArguments("sft")).train()
    def dpo(model):
        from trl import DPOTrainer, DPOConfig
        DPOTrainer(model, ref_model=None, args=DPOConfig(output_dir="dpo"), peft_config=LoraConfig(r=2)).train()
    base = AutoModelForCausalLM.from_pretrained("a")
    sft(base)
    dpo(base)
    """
    one, two = read(tmp_path, source)[1].trains
    assert (one.trainer.function, one.setting("output_dir")) == ("transformers.Trainer", "sft")
    assert (two.trainer.function, two.setting("output_dir")) == ("trl.DPOTrainer", "dpo")
    assert two.trainer.arguments["ref_model"] is None


def test_one_helper_with_two_arguments_is_two_loads(tmp_path: Path) -> None:
    source = """
    def load(name, four_bit):
        config = BitsAndBytesConfig(load_in_4bit=True) if four_bit else None
        return AutoModelForCausalLM.from_pretrained(name, quantization_config=config)
    base = load("a", True)
    reward = load("b", False)
    """
    loads = read(tmp_path, source)[1].loads
    assert [(one.model, one.quantization is not None) for one in loads] == [("a", True), ("b", False)]


def test_a_model_that_is_tried_in_a_loop_is_loaded(tmp_path: Path) -> None:
    source = """
    model = None
    for attempt in range(3):
        try:
            model = AutoModelForCausalLM.from_pretrained("a", torch_dtype=torch.float16)
            break
        except OSError:
            continue
    Trainer(model, TrainingArguments("o"))
    """
    _, requests = read(tmp_path, source)
    assert requests.loads[0].model == "a"
    assert any(t.load is not None and t.load.model == "a" for t in requests.trains)


def test_a_lightning_trainer_is_no_trainer_of_ours(tmp_path: Path) -> None:
    source = """
    import pytorch_lightning as pl
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = AutoModelForCausalLM.from_pretrained("a", torch_dtype=torch.float16)
        def training_step(self, batch, index):
            return self.model(**batch).loss
    pl.Trainer(max_epochs=1).fit(Module())
    """
    _, requests = read(tmp_path, source)
    assert requests.trains == ()
    assert requests.loads[0].model == "a"


def test_a_wrapper_module_is_looked_into(tmp_path: Path) -> None:
    source = """
    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            base = AutoModelForCausalLM.from_pretrained("a", load_in_4bit=True)
            self.model = get_peft_model(base, LoraConfig(r=3))
    Trainer(model=Wrapper(), args=TrainingArguments("o"))
    """
    (train,) = read(tmp_path, source)[1].trains
    assert train.load is not None and train.load.model == "a"
    assert train.peft is True and train.lora is not None and train.lora.get("r") == 3


def test_code_that_never_runs_asks_for_nothing(tmp_path: Path) -> None:
    source = """
    USE_8BIT = False
    if USE_8BIT:
        AutoModelForCausalLM.from_pretrained("never", load_in_8bit=True)
    from typing import TYPE_CHECKING
    if TYPE_CHECKING:
        AutoModelForCausalLM.from_pretrained("never")
    """
    assert read(tmp_path, source)[1].loads == ()


def test_a_global_that_a_function_sets_is_seen_by_the_others(tmp_path: Path) -> None:
    source = """
    model = None
    def setup():
        global model
        model = AutoModelForCausalLM.from_pretrained("a")
    def train():
        Trainer(model, TrainingArguments("o"))
    setup()
    train()
    """
    (train,) = read(tmp_path, source)[1].trains
    assert train.load is not None and train.load.model == "a"


def test_a_value_that_is_used_before_a_later_change_keeps_its_value(tmp_path: Path) -> None:
    source = """
    kw = {"torch_dtype": torch.float16}
    AutoModelForCausalLM.from_pretrained("a", **kw)
    kw["torch_dtype"] = torch.float32
    config = BitsAndBytesConfig(load_in_4bit=True)
    AutoModelForCausalLM.from_pretrained("b", quantization_config=config, **kw)
    config.load_in_4bit = False
    """
    one, two = read(tmp_path, source)[1].loads
    assert (one.dtype, two.dtype) == ("float16", "float32")
    assert two.quantization is not None and two.quantization.bits == 4


def test_a_function_with_very_many_ways_out_is_not_guessed(tmp_path: Path) -> None:
    ways = "".join(f"    if args.a{i}:\n        return {i}\n" for i in range(60))
    source = (
        "import argparse\nargs = argparse.ArgumentParser().parse_args()\ndef pick():\n" + ways + "    return 60\n"
        "AutoModelForCausalLM.from_pretrained('a', revision_number=pick())\n"
    )
    path = tmp_path / "train.py"
    path.write_text(HEAD + source)
    loads = read_script(path)[1].loads
    assert any(isinstance(v, Unresolved) for v in values(loads, "revision_number"))
    assert {v for v in values(loads, "revision_number") if not isinstance(v, Unresolved)} <= set(range(61))


def test_casts_in_a_loop_over_modules_are_calls(tmp_path: Path) -> None:
    source = """
    model = get_peft_model(AutoModelForCausalLM.from_pretrained("a"), LoraConfig())
    for name, module in model.named_modules():
        if "lora" in name:
            module.to(torch.float16)
    logits = torch.zeros(3).float()
    """
    script, _ = read(tmp_path, source)
    (cast,) = script.called(".to")
    assert cast.receiver == "module" and cast.origin == "peft.get_peft_model"
    assert cast.get("#0") == Dotted("torch.float16")
    assert script.called(".float") == ()


def test_nested_configurations_are_nested_calls(tmp_path: Path) -> None:
    source = """
    model = AutoModelForCausalLM.from_pretrained("a", quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    Trainer(model=model, args=TrainingArguments("o"))
    """
    (train,) = read(tmp_path, source)[1].trains
    value = train.trainer.get("model")
    assert isinstance(value, Call) and value.site is not None
    assert isinstance(value.get("quantization_config"), Call)


def test_a_cast_knows_the_loads_of_its_model_as_they_are_on_its_branch(tmp_path: Path) -> None:
    source = """
    import argparse
    args = argparse.ArgumentParser().parse_args()
    def halve(m):
        return m.half()
    config = BitsAndBytesConfig(load_in_4bit=True) if args.quantize else None
    model = AutoModelForCausalLM.from_pretrained("a", quantization_config=config)
    if not args.quantize:
        model = model.bfloat16()
    halve(model)
    model.lm_head.float()
    """
    script, _ = read(tmp_path, source)

    def bits(method: str) -> list[int | None]:
        (call,) = script.called(method)
        quantizations = [LoadRequest(one).quantization for one in call.loads]
        return [None if q is None else q.bits for q in quantizations]

    assert bits(".bfloat16") == [None]
    assert bits(".half") == [4, None]
    assert script.called(".float")[0].loads == ()
