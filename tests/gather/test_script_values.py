"""Following values: dicts, branches, helpers, classes; one behaviour of Python a test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from qlora_doctor.errors import UnknownArgument
from qlora_doctor.gather.script import read_script
from qlora_doctor.request import LoadRequest, Requests
from qlora_doctor.source import Call, Dotted, Script, Unresolved

HEAD = """
import argparse, copy, functools, json, os, sys
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
M = AutoModelForCausalLM
args = argparse.ArgumentParser().parse_args()
"""


def read(folder: Path, source: str) -> tuple[Script, Requests]:
    path = folder / "train.py"
    path.write_text(HEAD + dedent(source))
    script, requests = read_script(path)
    assert not script.problem, script.problem
    return script, requests


def loads(folder: Path, source: str) -> tuple[LoadRequest, ...]:
    return read(folder, source)[1].loads


def load(folder: Path, source: str) -> Call:
    (one,) = loads(folder, source)
    return one.call


HALF = Dotted("torch.float16")


@pytest.mark.parametrize(
    "lines",
    [
        "kw = {'torch_dtype': torch.float16}\nM.from_pretrained('a', **kw)",
        "kw = dict(torch_dtype=torch.float16)\nM.from_pretrained('a', **kw)",
        "kw = {}\nkw['torch_dtype'] = torch.float16\nM.from_pretrained('a', **kw)",
        "kw = {}\nkw.update(torch_dtype=torch.float16)\nM.from_pretrained('a', **kw)",
        "kw = {}\nkw.update({'torch_dtype': torch.float16})\nM.from_pretrained('a', **kw)",
        "kw = {}\nkw |= {'torch_dtype': torch.float16}\nM.from_pretrained('a', **kw)",
        "kw = {} | {'torch_dtype': torch.float16}\nM.from_pretrained('a', **kw)",
        "kw = {}\nkw.setdefault('torch_dtype', torch.float16)\nM.from_pretrained('a', **kw)",
        "base = {'torch_dtype': torch.float32}\nkw = {**base, 'torch_dtype': torch.float16}\nM.from_pretrained('a', **kw)",
        "base = {'torch_dtype': torch.float16}\nkw = base.copy()\nbase['torch_dtype'] = 1\nM.from_pretrained('a', **kw)",
        "base = {'torch_dtype': torch.float16}\nkw = copy.deepcopy(base)\nM.from_pretrained('a', **kw)",
        ("kw = {'torch_dtype': torch.float16, 'x': None}\nkw = {k: v for k, v in kw.items() if v is not None}\n"
        "M.from_pretrained('a', **kw)"),
        "d = torch.float16\nM.from_pretrained('a', torch_dtype=d)",
        "M.from_pretrained('a', torch_dtype=getattr(torch, 'float16'))",
        "M.from_pretrained('a', torch_dtype=getattr(torch, 'float' + '16'))",
        "TABLE = {'fp16': torch.float16}\nM.from_pretrained('a', torch_dtype=TABLE['fp16'])",
        "load = functools.partial(M.from_pretrained, torch_dtype=torch.float16)\nload('a')",
        "def f(n, d=torch.float16):\n    return M.from_pretrained(n, torch_dtype=d)\nf('a')",
        "def f(n, **kw):\n    return M.from_pretrained(n, **kw)\nf('a', torch_dtype=torch.float16)",
        "def kw():\n    return dict(torch_dtype=torch.float16)\nM.from_pretrained('a', **kw())",
        "a, d = 'a', torch.float16\nM.from_pretrained(a, torch_dtype=d)",
        "M.from_pretrained('a', torch_dtype=(d := torch.float16))",
        "class C:\n    dtype = torch.float16\nM.from_pretrained('a', torch_dtype=C.dtype)",
        ("class C:\n    def __init__(self, d):\n        self.d = d\n    def load(self):\n"
        "        return M.from_pretrained('a', torch_dtype=self.d)\nC(torch.float16).load()"),
        ("from dataclasses import dataclass\n@dataclass\nclass C:\n    d: object = torch.float16\n"
        "M.from_pretrained('a', torch_dtype=C().d)"),
        "for n in ['a']:\n    M.from_pretrained(n, torch_dtype=torch.float16)",
        "with torch.no_grad():\n    M.from_pretrained('a', torch_dtype=torch.float16)",
        "if False:\n    d = torch.float32\nelse:\n    d = torch.float16\nM.from_pretrained('a', torch_dtype=d)",
        "import torch as t\nM.from_pretrained('a', torch_dtype=t.float16)",
        "def main():\n    from torch import float16 as half\n    M.from_pretrained('a', torch_dtype=half)\nmain()",
        "M.from_pretrained(*['a'], torch_dtype=torch.float16)",
        "n = 'a'\nM.from_pretrained(f'{n}', torch_dtype=torch.float16)",
        ("class Base:\n    d = torch.float16\nclass C(Base):\n    @property\n    def dtype(self):\n        return self.d\n"
        "M.from_pretrained('a', torch_dtype=C().dtype)"),
        "class C:\n    @staticmethod\n    def load(n):\n        return M.from_pretrained(n, torch_dtype=torch.float16)\nC.load('a')",
        "class C:\n    @classmethod\n    def load(cls, n):\n        return M.from_pretrained(n, torch_dtype=torch.float16)\nC.load('a')",
        "from types import SimpleNamespace\nc = SimpleNamespace(d=torch.float16)\nM.from_pretrained('a', torch_dtype=c.d)",
        "d = None\nd = d or torch.float16\nM.from_pretrained('a', torch_dtype=d)",
        "match 'x':\n    case 'x':\n        d = torch.float16\n    case _:\n        d = 1\nM.from_pretrained('a', torch_dtype=d)",
        "def pick(x):\n    if x == 1:\n        return torch.float32\n    return torch.float16\nM.from_pretrained('a', torch_dtype=pick(2))",
        ("async def f():\n    return await g()\nasync def g():\n    return M.from_pretrained('a', torch_dtype=torch.float16)\n"
        "import asyncio\nasyncio.run(f())"),
    ],
)  # fmt: skip
def test_an_argument_is_followed_to_the_call(tmp_path: Path, lines: str) -> None:
    call = load(tmp_path, lines)
    assert call.open == ""
    assert call.get("pretrained_model_name_or_path") == "a"
    assert call.get("torch_dtype") == HALF


@pytest.mark.parametrize(
    "lines",
    [
        "kw = {'torch_dtype': torch.float16}\ndel kw['torch_dtype']\nM.from_pretrained('a', **kw)",
        "kw = {'torch_dtype': torch.float16}\nkw.pop('torch_dtype')\nM.from_pretrained('a', **kw)",
        "kw = {'torch_dtype': torch.float16}\nkw.clear()\nM.from_pretrained('a', **kw)",
        "kw = {'torch_dtype': None}\nkw = {k: v for k, v in kw.items() if v}\nM.from_pretrained('a', **kw)",
    ],
)
def test_an_argument_that_is_taken_out_is_not_passed(tmp_path: Path, lines: str) -> None:
    assert not load(tmp_path, lines).has("torch_dtype")


@pytest.mark.parametrize(
    "lines",
    [
        "M.from_pretrained('a', torch_dtype=args.dtype)",
        "M.from_pretrained('a', torch_dtype=getattr(torch, args.dtype))",
        "M.from_pretrained('a', torch_dtype=os.environ.get('DTYPE', 'float16'))",
        "M.from_pretrained('a', torch_dtype=json.load(open('x'))['dtype'])",
        "def f(d=torch.float16):\n    M.from_pretrained('a', torch_dtype=d)",
        (
            "import click\n@click.command()\n@click.option('--d')\ndef f(d=torch.float16):\n"
            "    M.from_pretrained('a', torch_dtype=d)\nf()"
        ),
        "import fire\ndef f(d=torch.float16):\n    M.from_pretrained('a', torch_dtype=d)\nfire.Fire(f)",
        "from unknown import d\nM.from_pretrained('a', torch_dtype=d())",
    ],
)
def test_what_the_user_may_change_is_not_known(tmp_path: Path, lines: str) -> None:
    call = load(tmp_path, lines)
    assert call.has("torch_dtype")
    with pytest.raises(UnknownArgument):
        call.get("torch_dtype")


@pytest.mark.parametrize(
    "lines",
    [
        "M.from_pretrained('a', **vars(args))",
        "M.from_pretrained('a', **json.load(open('x')))",
        "def f(**kw):\n    M.from_pretrained('a', **kw)",
        "kw = {}\nkw[args.name] = 1\nM.from_pretrained('a', **kw)",
        "kw = {}\nfor k, v in json.load(open('x')).items():\n    kw[k] = v\nM.from_pretrained('a', **kw)",
        "from utils import fill\nkw = {}\nfill(kw)\nM.from_pretrained('a', **kw)",
    ],
)
def test_arguments_that_cannot_be_seen_are_not_taken_for_absent(tmp_path: Path, lines: str) -> None:
    calls = [one.call for one in loads(tmp_path, lines)]
    assert any(c.open for c in calls)
    with pytest.raises(UnknownArgument):
        next(c for c in calls if c.open).has("torch_dtype")


def pairs(found: tuple[LoadRequest, ...], *names: str) -> set[tuple[object, ...]]:
    return {tuple(_shown(one.call.arguments.get(n, "-")) for n in names) for one in found}


def _shown(value: object) -> object:
    if isinstance(value, Dotted):
        return value.name.rpartition(".")[2]
    if isinstance(value, Unresolved):
        return "?"
    return "call" if isinstance(value, Call) else tuple(value.items()) if isinstance(value, Mapping) else value


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            (
                "q = BitsAndBytesConfig(load_in_4bit=True) if args.q else None\nkw = {}\n"
                "if q is not None:\n    kw['quantization_config'] = q\n    kw['torch_dtype'] = torch.float16\n"
                "else:\n    kw['trust_remote_code'] = True\nM.from_pretrained('a', **kw)"
            ),
            {("call", "float16", "-"), ("-", "-", True)},
        ),
        (
            (
                "kw = {}\nif args.q:\n    kw['quantization_config'] = BitsAndBytesConfig(load_in_4bit=True)\nprint(1)\n"
                "if args.q:\n    kw['torch_dtype'] = torch.float16\nif not args.q:\n    kw['trust_remote_code'] = True\n"
                "M.from_pretrained('a', **kw)"
            ),
            {("call", "float16", "-"), ("-", "-", True)},
        ),
        (
            (
                "if args.mode == 'q':\n    q, d = BitsAndBytesConfig(load_in_4bit=True), torch.float16\n"
                "elif args.mode == 'l':\n    q, d = None, torch.bfloat16\nelse:\n    raise ValueError\n"
                "M.from_pretrained('a', quantization_config=q, torch_dtype=d)"
            ),
            {("call", "float16", "-"), (None, "bfloat16", "-")},
        ),
        (
            (
                "def q():\n    if not args.q:\n        return None\n    return BitsAndBytesConfig(load_in_4bit=True)\n"
                "c = q()\nM.from_pretrained('a', quantization_config=c, torch_dtype=torch.float16 if c else 'auto')"
            ),
            {("call", "float16", "-"), (None, "auto", "-")},
        ),
        (
            "d = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16\nM.from_pretrained('a', torch_dtype=d)",
            {("-", "bfloat16", "-"), ("-", "float16", "-")},
        ),
        (
            (
                "kw = {}\ntry:\n    import flash_attn\n    kw['torch_dtype'] = torch.float16\nexcept ImportError:\n    pass\n"
                "M.from_pretrained('a', **kw)"
            ),
            {("-", "float16", "-"), ("-", "-", "-")},
        ),
        (
            "kw = {}\nif args.x and args.y:\n    kw['torch_dtype'] = torch.float16\nM.from_pretrained('a', **kw)",
            {("-", "float16", "-"), ("-", "-", "-")},
        ),
        (
            "if args.a:\n    sys.exit(1)\nd = torch.float32 if args.a else torch.float16\nM.from_pretrained('a', torch_dtype=d)",
            {("-", "float16", "-")},
        ),
        (
            "kw = {}\nif args.verbose:\n    print('x')\nif args.debug:\n    kw['cache_dir'] = 'c'\nM.from_pretrained('a', **kw)",
            {("-", "-", "-")},
        ),
    ],
)
def test_branches_give_their_own_pairs_of_arguments(
    tmp_path: Path, lines: str, expected: set[tuple[object, ...]]
) -> None:
    found = loads(tmp_path, lines)
    assert pairs(found, "quantization_config", "torch_dtype", "trust_remote_code") == expected


def test_many_flags_are_joined_rather_than_multiplied_and_never_guessed(tmp_path: Path) -> None:
    lines = ["kw = {}"] + [f"if args.f{i}:\n    kw['k{i}'] = {i}" for i in range(12)] + ["M.from_pretrained('a', **kw)"]
    found = loads(tmp_path, "\n".join(lines))
    assert 1 < len(found) <= 16
    values = {v for one in found for v in one.call.arguments.values() if not isinstance(v, Unresolved)}
    assert values <= {"a", *range(12)}


@pytest.mark.parametrize(
    ("lines", "prepared", "peft"),
    [
        ("model = prepare_model_for_kbit_training(model)\nmodel = get_peft_model(model, LoraConfig(r=8))", True, True),
        ("prepare_model_for_kbit_training(model)\nmodel = get_peft_model(model, LoraConfig(r=8))", True, True),
        ("model = get_peft_model(model, LoraConfig(r=8))", False, True),
        ("model = get_peft_model(model, LoraConfig(r=8))\nmodel.enable_input_require_grads()", True, True),
        ("model.add_adapter(LoraConfig(r=8))", False, True),
        ("pass", False, False),
        ("model = torch.compile(prepare_model_for_kbit_training(model)).cuda()", True, False),
        ("from helpers import prepare\nmodel = prepare(model)", None, None),
        ("from helpers import prepare\nprepare(model)", None, False),
        ("from peft import PeftModel\nmodel = PeftModel.from_pretrained(model, 'x', is_trainable=True)", False, True),
        (("def prep(m):\n    m = prepare_model_for_kbit_training(m)\n    return get_peft_model(m, LoraConfig(r=8))\n"
         "model = prep(model)"), True, True),
        (("for p in model.parameters():\n    p.requires_grad = False\n    if p.ndim == 1:\n        p.data = p.data.to(torch.float32)\n"
         "model.gradient_checkpointing_enable()\nmodel.enable_input_require_grads()"), True, False),
    ],
)  # fmt: skip
def test_what_was_done_to_the_model_before_training_is_seen(
    tmp_path: Path, lines: str, prepared: bool | None, peft: bool | None
) -> None:
    source = (
        "model = M.from_pretrained('a', quantization_config=BitsAndBytesConfig(load_in_4bit=True))\n"
        + lines
        + "\nTrainer(model=model, args=TrainingArguments('out')).train()"
    )
    (train,) = read(tmp_path, source)[1].trains
    assert (train.prepared, train.peft) == (prepared, peft)
    if lines.count("LoraConfig"):
        assert train.lora is not None and train.lora.get("r") == 8


def test_settings_that_are_set_after_they_were_made_count(tmp_path: Path) -> None:
    source = "model = M.from_pretrained('a')\nt = TrainingArguments('out', fp16=True)\nt.fp16 = False\nt.bf16 = True\nTrainer(model, t)"
    (train,) = read(tmp_path, source)[1].trains
    assert (train.setting("fp16"), train.setting("bf16")) == (False, True)


def test_a_subclass_of_a_trainer_is_a_trainer_with_its_methods(tmp_path: Path) -> None:
    source = """
    class Mine(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            return super().compute_loss(model, inputs, return_outputs)
    t = Mine(model=M.from_pretrained("a"), args=TrainingArguments("out"))
    """
    script, requests = read(tmp_path, source)
    (train,) = requests.trains
    assert (train.trainer.function, train.subclass) == ("transformers.Trainer", "Mine")
    (cls,) = script.classes
    assert cls.bases == ("transformers.Trainer",)
    assert cls.methods[0].parameters == ("self", "model", "inputs", "return_outputs", "**")
    assert cls.methods[0].calls_super


def test_a_trainer_whose_init_builds_its_arguments_has_those_arguments(tmp_path: Path) -> None:
    source = """
    class Mine(Trainer):
        def __init__(self, model, out):
            super().__init__(model=model, args=TrainingArguments(out, fp16=True))
    Mine(M.from_pretrained("a"), "out")
    """
    (train,) = read(tmp_path, source)[1].trains
    assert train.setting("fp16") is True
    assert train.load is not None and train.load.model == "a"


def test_trl_takes_the_adapter_configuration_itself(tmp_path: Path) -> None:
    source = """
    from trl import SFTConfig, SFTTrainer
    SFTTrainer(model=M.from_pretrained("a"), args=SFTConfig(output_dir="o"), peft_config=LoraConfig(r=4))
    """
    (train,) = read(tmp_path, source)[1].trains
    assert train.trainer.function == "trl.SFTTrainer"
    assert train.peft is True and train.lora is not None and train.lora.get("r") == 4


def test_unsloth_gives_the_model_and_the_tokenizer_at_once(tmp_path: Path) -> None:
    source = """
    from unsloth import FastLanguageModel
    model, tokenizer = FastLanguageModel.from_pretrained(model_name="unsloth/x", load_in_4bit=True, dtype=None)
    model = FastLanguageModel.get_peft_model(model, r=16, target_modules=["q_proj"])
    Trainer(model=model, args=TrainingArguments("out"))
    """
    (train,) = read(tmp_path, source)[1].trains
    assert train.prepared is True and train.peft is True
    assert train.load is not None and train.load.model == "unsloth/x"
    assert train.lora is not None and train.lora.get("r") == 16


@pytest.mark.parametrize(
    "lines",
    [
        "from transformers import AutoTokenizer\nAutoTokenizer.from_pretrained('a')",
        "from transformers import AutoConfig\nAutoConfig.from_pretrained('a')",
        "from transformers import AutoProcessor\nAutoProcessor.from_pretrained('a')",
        "from transformers import GenerationConfig\nGenerationConfig.from_pretrained('a')",
        "from transformers import CLIPImageProcessor\nCLIPImageProcessor.from_pretrained('a')",
        "from peft import PeftModel\nPeftModel.from_pretrained(object(), 'a')",
        "from diffusers import UNet2DConditionModel\nUNet2DConditionModel.from_pretrained('a')",
        "AutoModelForCausalLM.from_config('a')",
    ],
)
def test_only_the_load_of_a_model_is_a_load_request(tmp_path: Path, lines: str) -> None:
    assert loads(tmp_path, lines) == ()


@pytest.mark.parametrize(
    "name",
    ["AutoModel", "LlavaForConditionalGeneration", "Qwen2VLForConditionalGeneration", "T5EncoderModel", "GPT2LMHeadModel",
     "AutoModelForVision2Seq", "InstructBlipForConditionalGeneration", "LlamaForSequenceClassification"],
)  # fmt: skip
def test_model_classes_are_known_by_their_names(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, f"import transformers\ntransformers.{name}.from_pretrained('a')").function.endswith(
        f"{name}.from_pretrained"
    )


def test_a_chain_of_calls_is_a_call_each(tmp_path: Path) -> None:
    script, _ = read(tmp_path, "model = M.from_pretrained('a', load_in_4bit=True).half().cuda()")
    assert [c.function.rpartition(".")[2] for c in script.calls if c.order] == [
        "from_pretrained",
        "half",
        "cuda",
    ] or {c.function.rpartition(".")[2] for c in script.calls} == {"from_pretrained", "half", "cuda"}
    (half,) = script.called(".half")
    assert half.origin == "transformers.AutoModelForCausalLM.from_pretrained"


def test_the_origin_of_a_model_is_its_last_maker(tmp_path: Path) -> None:
    script, _ = read(tmp_path, "m = M.from_pretrained('a')\nm = get_peft_model(m, LoraConfig())\nm.half()")
    assert script.called(".half")[0].origin == "peft.get_peft_model"


def test_an_attribute_of_an_object_stays_as_it_is_written(tmp_path: Path) -> None:
    source = """
    from transformers import AutoTokenizer
    tok = AutoTokenizer.from_pretrained("a")
    if tok.pad_token is None:
        tok.pad_token = tok.eos_token
    tok.padding_side = "left"
    tok.truncation_side = args.side
    model = M.from_pretrained("a")
    model.config.use_cache = False
    """
    script, _ = read(tmp_path, source)
    found = {a.target: a.value for a in script.assignments}
    assert found["tok.pad_token"] == Dotted("tok.eos_token")
    assert found["tok.padding_side"] == "left"
    assert isinstance(found["tok.truncation_side"], Unresolved)
    assert found["model.config.use_cache"] is False
    assert {a.origin for a in script.assignments if a.target.startswith("tok")} == {
        "transformers.AutoTokenizer.from_pretrained"
    }


def test_a_helper_that_is_handed_on_as_a_callback_is_read_too(tmp_path: Path) -> None:
    source = """
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained("a")
    def tokenize(example):
        return tokenizer(example["text"], padding="max_length", truncation=True)
    from datasets import load_dataset
    data = load_dataset("x").map(tokenize, batched=True)
    data = data.map(lambda e: tokenizer(e["text"], max_length=7))
    """
    script, _ = read(tmp_path, source)
    calls = script.called(".__call__")
    assert {c.seen("padding") for c in calls} == {"max_length", None}
    assert {c.seen("max_length") for c in calls} == {7, None}
    assert {c.origin for c in calls} == {"transformers.AutoTokenizer.from_pretrained"}


def test_a_script_may_not_make_the_reader_run_for_ever(tmp_path: Path) -> None:
    source = "def f(n):\n    return f(n - 1) + g(n)\ndef g(n):\n    return f(n) + f(n)\nx = f(9)\nwhile True:\n    x = f(x)\n"
    nested = "".join(f"def h{i}(x):\n    return h{i + 1}(x) + h{i + 1}(x) + h{i + 1}(x)\n" for i in range(30))
    script, _ = read(tmp_path, source + nested + "h0(1)\n")
    assert script.problem == ""
