"""Reading scripts: the three shapes that real QLoRA scripts have, and what a file that is no script gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_doctor.errors import UnknownArgument
from qlora_doctor.gather.script import read_script
from qlora_doctor.request import LoadRequest, Requests
from qlora_doctor.source import Dotted, Script

SCRIPTS = Path(__file__).parent / "scripts"


def read(folder: Path, source: str | bytes, name: str = "train.py") -> tuple[Script, Requests]:
    path = folder / name
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    script, requests = read_script(path)
    assert not script.problem, script.problem
    return script, requests


def bits(load: LoadRequest | None) -> int | None:
    assert load is not None
    quantization = load.quantization
    return None if quantization is None else quantization.bits


# The guides' trainer -------------------------------------------------------------------------------------------------


def test_a_dict_filled_in_two_branches_gives_one_request_a_branch() -> None:
    _, requests = read_script(SCRIPTS / "guide_trainer.py")
    quantised, *others = requests.loads
    assert quantised.when == "if self.config.quantization.load_in_4bit"
    assert bits(quantised) == 4
    assert quantised.dtype is None
    assert quantised.call.get("device_map") == "auto"
    assert quantised.call.get("trust_remote_code") is True
    assert [(bits(o), o.dtype) for o in others] == [(None, "bfloat16"), (None, "float16")]
    assert not quantised.call.has("cache_dir_that_nobody_names")


def test_attributes_that_methods_set_are_followed_whatever_the_order_of_the_methods() -> None:
    _, requests = read_script(SCRIPTS / "guide_trainer.py")
    train = requests.trains[0]
    assert train.trainer.function == "transformers.Trainer"
    assert train.setting("fp16") is True
    assert train.peft is True
    assert train.lora is not None and train.lora.get("r") == 8
    assert [(bits(t.load), t.prepared) for t in requests.trains] == [(4, True), (None, False), (None, False)]


def test_a_fallback_from_the_processor_to_the_tokenizer_is_seen() -> None:
    script, _ = read_script(SCRIPTS / "guide_trainer.py")
    (fallback,) = script.fallbacks
    assert fallback.first.function == "transformers.AutoProcessor.from_pretrained"
    assert fallback.second.function == "transformers.AutoTokenizer.from_pretrained"
    assert fallback.first.result == fallback.second.result == "self.tokenizer"


# Arguments from the command line -------------------------------------------------------------------------------------


def test_a_default_of_a_parsed_dataclass_is_not_taken_for_its_value() -> None:
    _, requests = read_script(SCRIPTS / "hf_parser.py")
    with pytest.raises(UnknownArgument, match="command line"):
        _ = requests.loads[0].model
    assert {bits(load) for load in requests.loads} == {4, 8, None}


def test_settings_that_are_parsed_are_open() -> None:
    _, requests = read_script(SCRIPTS / "hf_parser.py")
    settings = requests.trains[0].settings
    assert settings is not None and settings.function == "transformers.TrainingArguments"
    with pytest.raises(UnknownArgument, match="command line"):
        settings.get("fp16")


def test_branches_on_the_same_condition_go_together() -> None:
    _, requests = read_script(SCRIPTS / "hf_parser.py")
    seen = {(bits(t.load), t.prepared) for t in requests.trains if t.load is not None}
    assert seen == {(4, True), (8, True), (None, False)}


def test_an_assertion_rules_a_branch_out() -> None:
    _, requests = read_script(SCRIPTS / "hf_parser.py")
    full = [t for t in requests.trains if t.peft is False]
    assert full
    assert all(bits(t.load) is None for t in full)


# A loop of its own ---------------------------------------------------------------------------------------------------


def test_a_loop_of_its_own_is_a_train_request_with_the_model_behind_it() -> None:
    _, requests = read_script(SCRIPTS / "own_loop.py")
    (train,) = requests.trains
    assert train.trainer.function == "loop"
    assert train.prepared is True and train.peft is True
    assert bits(train.load) == 4
    assert train.load is not None and train.load.model == "Qwen/Qwen2.5-0.5B"
    assert train.lora is not None and train.lora.get("target_modules") == "all-linear"


def test_calls_on_the_model_and_tokenizer_know_where_these_came_from() -> None:
    script, _ = read_script(SCRIPTS / "own_loop.py")
    (call,) = script.called(".enable_input_require_grads")
    assert (call.receiver, call.origin) == ("model", "transformers.AutoModelForCausalLM.from_pretrained")
    (tokenize,) = script.called(".__call__")[:1]
    assert tokenize.receiver == "tokenizer" and tokenize.get("padding") is True
    assert tokenize.origin == "transformers.AutoTokenizer.from_pretrained"
    (optimizer,) = script.called("torch.optim.AdamW")
    assert optimizer.get("eps") == 1e-8
    orders = [c.order for c in script.calls]
    assert orders == sorted(orders)


def test_the_mask_of_the_labels_is_an_assignment_with_its_test() -> None:
    script, _ = read_script(SCRIPTS / "own_loop.py")
    (mask,) = [a for a in script.assignments if a.value == -100]
    assert mask.target == "labels[...]"
    assert mask.origin == "labels == tokenizer.pad_token_id"


# What is no script ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "problem", "line"),
    [
        (b"import torch\nx = (\n", "not valid Python", 2),
        (b"import os\nprint 'hello'\n", "Python 2", 2),
        (b"import os\nexcept ValueError, e:\n    pass\n", "Python", 2),
        (b"x = 1\ny = '\x00'\n", "null byte", 0),
        (b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 4, "null byte", 0),
        (b"\x89PNG" + bytes(range(1, 256)) * 8, "neither UTF-8 nor GBK", 0),
        (b"# -*- coding: klingon -*-\nx = 1\n", "klingon", 0),
        (b"# -*- coding: ascii -*-\nx = '\xe4'\n", "says that it is ascii", 0),
        (b"x = " + b"(" * 400 + b")" * 400, "nested|parentheses", None),
        (b"x = " + b"-" * 100_000 + b"1", "nested|not valid", None),
        (b"x = 1\n" * 300_000, "MB", 0),
    ],
    ids=lambda v: repr(v[:18]) if isinstance(v, bytes) else None,
)
def test_a_file_that_is_no_script_gives_its_problem(
    tmp_path: Path, data: bytes, problem: str, line: int | None
) -> None:
    path = tmp_path / "train.py"
    path.write_bytes(data)
    script, requests = read_script(path)
    assert any(word in script.problem for word in problem.split("|")), script.problem
    assert requests == Requests()
    if line is not None:
        assert script.problem_line == line


def test_a_long_sum_does_not_end_the_reading(tmp_path: Path) -> None:
    source = (
        "import transformers\nx = " + " + ".join(["'a'"] * 5000) + "\nm = transformers.AutoModel.from_pretrained('b')\n"
    )
    path = tmp_path / "train.py"
    path.write_text(source)
    script, requests = read_script(path)
    assert script.problem or requests.loads[0].model == "b"


def test_a_file_that_is_not_there_gives_its_problem(tmp_path: Path) -> None:
    script, _ = read_script(tmp_path / "absent.py")
    assert "cannot be read" in script.problem


# Encodings -----------------------------------------------------------------------------------------------------------

CHINESE = "# 加载模型\nimport torch, transformers\nm = transformers.AutoModel.from_pretrained('通义', torch_dtype=torch.half)\n"


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (CHINESE.encode(), "utf-8"),
        (CHINESE.encode("utf-8-sig"), "utf-8"),
        (CHINESE.encode("gbk"), "gb18030"),
        (("# -*- coding: gbk -*-\n" + CHINESE).encode("gbk"), "gb18030"),
        (CHINESE.encode("utf-16"), "utf-16-le"),
        (b"\xfe\xff" + CHINESE.encode("utf-16-be"), "utf-16-be"),
        (CHINESE.replace("\n", "\r\n").encode("gbk"), "gb18030"),
        (CHINESE.replace("\n", "\r").encode(), "utf-8"),
    ],
)
def test_every_place_is_exact_in_every_encoding(tmp_path: Path, data: bytes, encoding: str) -> None:
    script, requests = read(tmp_path, data)
    assert script.encoding == encoding
    (load,) = requests.loads
    site = load.site
    assert site is not None and load.model == "通义"

    def text(span: tuple[int, int]) -> str:
        return data[span[0] : span[1]].decode(encoding)

    assert text((site.start, site.end)) == "transformers.AutoModel.from_pretrained('通义', torch_dtype=torch.half)"
    assert text(site.spans["torch_dtype"]) == "torch_dtype=torch.half"
    assert text(site.spans["torch_dtype:value"]) == "torch.half"
    assert text(site.spans["#0"]) == text(site.spans["pretrained_model_name_or_path:value"]) == "'通义'"
    assert text(site.spans["()"]) == "'通义', torch_dtype=torch.half"
    assert site.column == 5


def test_a_call_names_its_values_by_import_path(tmp_path: Path) -> None:
    _, requests = read(
        tmp_path, "import torch as t\nimport transformers as tf\nm = tf.AutoModel.from_pretrained('a', dtype=t.half)\n"
    )
    assert requests.loads[0].call.get("dtype") == Dotted("torch.half")
    assert requests.loads[0].call.function == "transformers.AutoModel.from_pretrained"
    assert requests.imports == ("torch", "transformers")
