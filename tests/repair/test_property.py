"""Random scripts from a small grammar: fix, parse, judge again, undo, compare the bytes."""

from __future__ import annotations

import ast
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlora_doctor.examine import Examination, Question
from qlora_doctor.gather.targets import read_targets
from qlora_doctor.judge import Case, judge
from qlora_doctor.registry import installed_checks
from qlora_doctor.repair.apply import apply_files, open_journal, undo_files
from qlora_doctor.repair.rounds import make_plan
from qlora_doctor.testing import facts

CODES = ("QD101", "QD102", "QD104", "QD110", "QD111", "QD112", "QD120")
CHECKS = tuple(c for c in installed_checks().checks if c.code in CODES)

HEADS = st.sampled_from(
    [
        "import torch\nfrom transformers import AutoModelForCausalLM, BitsAndBytesConfig\n",
        (
            '"""说明。"""\nfrom __future__ import annotations\n\nimport transformers\n'
            "from transformers import AutoModelForCausalLM, BitsAndBytesConfig\n"
        ),
        (
            "#!/usr/bin/env python\n# 训练\nimport torch as t, os\nfrom transformers import (\n    AutoModelForCausalLM,  # 模型\n"
            "    BitsAndBytesConfig,\n)\n"
        ),
        (
            "from torch import bfloat16, float16\nfrom transformers import AutoModelForCausalLM\n"
            "from transformers import BitsAndBytesConfig\n"
        ),
    ]
)
MODELS = st.sampled_from(['"Qwen/Qwen3-0.6B"', "'liuhaotian/llava-v1.5-7b'", "NAME"])
BNB = st.lists(
    st.sampled_from(
        ["load_in_4bit=True", 'bnb_4bit_quant_type="nf4"', "bnb_4bit_use_double_quant=True", "load_in_8bit=True"]
    ),
    unique=True,
    max_size=4,
).map(lambda names: sorted({"load_in_4bit=True", *names}))
EXTRA = st.lists(
    st.sampled_from(["trust_remote_code=True", 'torch_dtype="auto"', 'device_map="auto"', "low_cpu_mem_usage=True"]),
    unique=True,
    max_size=4,
)
LAYOUTS = st.sampled_from(["line", "lines", "lines,", "comments", "hanging"])
WAYS = st.sampled_from(["direct", "display", "dict", "items", "half", "update"])


def call(name: str, arguments: list[str], layout: str, indent: str) -> str:
    if layout == "line" or not arguments:
        return f"{name}({', '.join(arguments)})"
    inner = indent + "    "
    if layout == "hanging":
        return f"{name}({arguments[0]}" + "".join(f",\n{inner}{a}" for a in arguments[1:]) + ")"
    if layout == "comments":
        rows = "".join(f"{inner}# 关于 {i}\n{inner}{a},  # 第 {i} 个\n" for i, a in enumerate(arguments))
        return f"{name}(  # 开始\n{rows}{inner}# 完\n{indent})"
    return (
        f"{name}(\n" + ",\n".join(inner + a for a in arguments) + ("," if layout == "lines," else "") + f"\n{indent})"
    )


def loading(way: str, model: str, arguments: list[str], layout: str, indent: str) -> str:
    function = "AutoModelForCausalLM.from_pretrained"
    pairs = [a.partition("=") for a in arguments]
    if way == "direct":
        return f"{indent}model = {call(function, [model, *arguments], layout, indent)}\n"
    if way == "display":
        items = [f'"{name}": {value}' for name, _, value in pairs]
        made = call("", items, layout, indent).replace("(", "{", 1)
        return f"{indent}kwargs = {made[: made.rindex(')')]}}}\n{indent}model = {function}({model}, **kwargs)\n"
    if way == "dict":
        return f"{indent}kwargs = {call('dict', arguments, layout, indent)}\n{indent}model = {function}({model}, **kwargs)\n"
    if way == "update":
        return (
            f"{indent}kwargs = {{}}\n{indent}{call('kwargs.update', arguments, layout, indent)}\n"
            f"{indent}model = {function}({model}, **kwargs)\n"
        )
    first = pairs[: len(pairs) // 2] if way == "half" else []
    items = ", ".join(f"'{n}': {v}" for n, _, v in first)
    rest = "".join(f"{indent}kwargs['{n}'] = {v}  # {n}\n" for n, _, v in pairs[len(first) :])
    return f"{indent}kwargs = {{{items}}}\n{rest}{indent}model = {function}({model}, **kwargs)\n"


@st.composite
def scripts(draw: st.DrawFn) -> bytes:
    head, model, way, layout = draw(HEADS), draw(MODELS), draw(WAYS), draw(LAYOUTS)
    inside = draw(st.booleans())
    indent = "    " if inside else ""
    arguments = ["quantization_config=bnb", *draw(EXTRA)]
    if draw(st.booleans()):
        arguments.reverse()
    body = f"{indent}bnb = {call('BitsAndBytesConfig', draw(BNB), layout, indent)}\n"
    body += loading(way, model, arguments, layout, indent)
    text = (
        head + 'NAME = "Qwen/Qwen3-0.6B"\n' + (f"def main():\n{body}    return model\n\nmain()\n" if inside else body)
    )
    if draw(st.booleans()):
        text = text.replace("    ", "\t")
    text = text.replace("\n", draw(st.sampled_from(["\n", "\r\n"])))
    if draw(st.booleans()):
        text = text.rstrip()
    name = draw(st.sampled_from(["utf-8", "utf-8-sig", "gbk"]))
    return (f"# -*- coding: gbk -*-\n{text}" if name == "gbk" else text).encode(name)


def examined(path: Path, version: str) -> Examination:
    known = facts({"transformers": version, "bitsandbytes": "0.50.2"}, gpus=())
    cases = tuple(Case(requests, script) for script, requests in read_targets([str(path)]))
    return Examination(Question((str(path),)), known, cases, CHECKS, judge(CHECKS, known, cases))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scripts(), st.sampled_from(["4.44.2", "5.23.0"]))
def test_a_random_script_is_fixed_and_undone(data: bytes, version: str) -> None:
    ast.parse(data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.py"
        path.write_bytes(data)
        before = examined(path, version)
        assert [o for o in before.verdict.outcomes if o.outcome == "crashed"] == []
        plan = make_plan(before, unsafe=True)
        assert plan.adds == ()
        journal_folder, entry = open_journal(folder, plan.files, [])
        apply_files(journal_folder, entry, plan.files)
        ast.parse(path.read_bytes())
        after = examined(path, version)
        left = sorted(f.code for f in after.verdict.findings)
        assert left == sorted(item.finding.code for item in plan.remains)
        assert left == [], [item.why for item in plan.remains]
        undo_files(journal_folder, entry)
        assert path.read_bytes() == data


@settings(max_examples=60, deadline=None)
@given(scripts())
def test_a_second_fix_finds_nothing_more_to_do(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.py"
        path.write_bytes(data)
        for change in make_plan(examined(path, "5.23.0"), unsafe=True).files:
            path.write_bytes(change.after or b"")
        assert make_plan(examined(path, "5.23.0"), unsafe=True).files == ()
