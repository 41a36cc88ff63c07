"""One argument changed in a call: where the comma goes, which comments stay, which import is added."""

from __future__ import annotations

import ast

import pytest

from qlora_doctor.errors import RepairError
from qlora_doctor.fix import LoadKwarg, TrainSetting
from qlora_doctor.repair.rewrite import rewrite
from qlora_doctor.source import Call, Dotted, Unresolved, Value

FP16 = Dotted("torch.float16")
ADD = LoadKwarg("dtype", FP16)
DROP = LoadKwarg("trust_remote_code", drop=True)
RENAME = LoadKwarg("dtype", FP16, replaces="torch_dtype")
MODEL = LoadKwarg("pretrained_model_name_or_path", "llava-hf/llava-1.5-7b-hf")


def after(text: str, fix: LoadKwarg | TrainSetting, function: str = "M.from_pretrained", **arguments: Value) -> str:
    """`text` after a fix of the one call of `function`."""
    lines = text.splitlines(keepends=True)

    def place(line: int, column: int) -> int:
        return sum(map(len, lines[: line - 1])) + len(lines[line - 1].encode()[:column].decode())

    (call,) = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call) and ast.unparse(n.func) == function)
    assert call.end_lineno is not None and call.end_col_offset is not None
    span = (place(call.lineno, call.col_offset), place(call.end_lineno, call.end_col_offset))
    new = rewrite(text, fix, Call(f"transformers.{function}", arguments), span, {}, {}).text
    ast.parse(new)
    return new


def test_a_rename_in_one_branch_leaves_the_new_name_in_the_other() -> None:
    before = (
        "kw = {}\nif quant:\n    kw['quantization_config'] = quant\n    kw['dtype'] = torch.float16\n"
        "else:\n    kw['torch_dtype'] = torch.bfloat16\nM.from_pretrained(n, **kw)\n"
    )
    rename = LoadKwarg("dtype", Dotted("torch.bfloat16"), replaces="torch_dtype")
    new = after(before, rename, n="x", torch_dtype=Dotted("torch.bfloat16"))
    assert new == before.replace("torch_dtype", "dtype")


@pytest.mark.parametrize(
    ("before", "fix", "expected"),
    [
        pytest.param("M.from_pretrained(n)", ADD, "M.from_pretrained(n, dtype=torch.float16)", id="one line"),
        pytest.param("M.from_pretrained(n,)", ADD, "M.from_pretrained(n, dtype=torch.float16,)", id="trailing comma"),
        pytest.param("M.from_pretrained()", ADD, "M.from_pretrained(dtype=torch.float16)", id="no argument"),
        pytest.param(
            'M.from_pretrained(\n    n,\n    device_map="auto"  # 显存\n)',
            ADD,
            'M.from_pretrained(\n    n,\n    device_map="auto",  # 显存\n    dtype=torch.float16\n)',
            id="comment after the last argument, no comma",
        ),
        pytest.param(
            'M.from_pretrained(\n\tn,\n\tdevice_map="auto",  # a\n\t# b\n)',
            ADD,
            'M.from_pretrained(\n\tn,\n\tdevice_map="auto",  # a\n\tdtype=torch.float16,\n\t# b\n)',
            id="tabs, comma, comment lines",
        ),
        pytest.param(
            "M.from_pretrained(n, a=1,  # a\n                  b=2)",
            ADD,
            "M.from_pretrained(n, a=1,  # a\n                  b=2,\n                  dtype=torch.float16)",
            id="aligned",
        ),
        pytest.param(
            "M.from_pretrained(n, **kw)", ADD, "M.from_pretrained(n, dtype=torch.float16, **kw)", id="before **"
        ),
        pytest.param("M.from_pretrained(n, trust_remote_code=True)", DROP, "M.from_pretrained(n)", id="drop the last"),
        pytest.param("M.from_pretrained(trust_remote_code=True)", DROP, "M.from_pretrained()", id="drop the only one"),
        pytest.param(
            "M.from_pretrained(trust_remote_code=True, a=1)", DROP, "M.from_pretrained(a=1)", id="drop the first"
        ),
        pytest.param(
            "M.from_pretrained(\n    n,  # name\n    trust_remote_code=True,  # ⚠️\n    # rest\n    a=1,\n)",
            DROP,
            "M.from_pretrained(\n    n,  # name\n    # rest\n    a=1,\n)",
            id="drop a line with its comment",
        ),
        pytest.param(
            "M.from_pretrained(\n    n,\n    # above\n    trust_remote_code=True,  # own\n    # below\n    a=1,\n)",
            DROP,
            "M.from_pretrained(\n    n,\n    # above\n    # below\n    a=1,\n)",
            id="comment lines around a dropped line stay",
        ),
        pytest.param(
            "M.from_pretrained(\n    n,  # name\n    trust_remote_code=True\n)",
            DROP,
            "M.from_pretrained(\n    n  # name\n)",
            id="drop the last line, no comma",
        ),
        pytest.param(
            "M.from_pretrained(n, trust_remote_code=True,  # both\n    a=1)",
            DROP,
            "M.from_pretrained(n,  # both\n    a=1)",
            id="a comment for the whole line stays",
        ),
        pytest.param(
            "M.from_pretrained(n, torch_dtype=torch.float16)",
            RENAME,
            "M.from_pretrained(n, dtype=torch.float16)",
            id="rename",
        ),
        pytest.param(
            'kw = {"trust_remote_code": True}\nif q:\n    kw["quantization_config"] = q  # q\n    kw["a"] = 1\nM.from_pretrained(n, **kw)',
            ADD,
            'kw = {"trust_remote_code": True}\nif q:\n    kw["quantization_config"] = q  # q\n    kw["dtype"] = torch.float16\n'
            '    kw["a"] = 1\nM.from_pretrained(n, **kw)',
            id="add beside the quantisation in a dict",
        ),
        pytest.param(
            'kw = {"trust_remote_code": True}\nM.from_pretrained(n, **kw)',
            DROP,
            "kw = {}\nM.from_pretrained(n, **kw)",
            id="drop from a dict display",
        ),
        pytest.param(
            "kw = dict(trust_remote_code=True, a=1)\nM.from_pretrained(n, **kw)",
            DROP,
            "kw = dict(a=1)\nM.from_pretrained(n, **kw)",
            id="drop from dict()",
        ),
        pytest.param(
            'kw = {}\nif x:\n    kw["trust_remote_code"] = True\nM.from_pretrained(n, **kw)',
            DROP,
            "kw = {}\nif x:\n    pass\nM.from_pretrained(n, **kw)",
            id="drop the only line of a block",
        ),
        pytest.param(
            'kw = {}\nkw.update({"torch_dtype": torch.float16, "a": 1})\nM.from_pretrained(n, **kw)',
            RENAME,
            'kw = {}\nkw.update({"dtype": torch.float16, "a": 1})\nM.from_pretrained(n, **kw)',
            id="rename in update()",
        ),
        pytest.param(
            "kw = {'torch_dtype': torch.float16}; kw['a'] = 1\nM.from_pretrained(n, **kw)",
            RENAME,
            "kw = {'dtype': torch.float16}; kw['a'] = 1\nM.from_pretrained(n, **kw)",
            id="rename in a dict display, two statements a line",
        ),
        pytest.param(
            "kw = {'a': 1}; kw['trust_remote_code'] = True; kw['b'] = 2\nM.from_pretrained(n, **kw)",
            DROP,
            "kw = {'a': 1}; kw['b'] = 2\nM.from_pretrained(n, **kw)",
            id="drop one of three statements a line",
        ),
        pytest.param(
            'N = "liuhaotian/llava-v1.5-7b"\nt = T.from_pretrained(N)\nM.from_pretrained(N)',
            MODEL,
            'N = "llava-hf/llava-1.5-7b-hf"\nt = T.from_pretrained(N)\nM.from_pretrained(N)',
            id="the model's name in a variable",
        ),
        pytest.param(
            "t = T.from_pretrained('liuhaotian/llava-v1.5-7b')\nM.from_pretrained('liuhaotian/llava-v1.5-7b')",
            MODEL,
            "t = T.from_pretrained('llava-hf/llava-1.5-7b-hf')\nM.from_pretrained('llava-hf/llava-1.5-7b-hf')",
            id="the model's name for its processor too",
        ),
        pytest.param(
            'def f(name="liuhaotian/llava-v1.5-7b"):\n    return M.from_pretrained(name)',
            MODEL,
            'def f(name="llava-hf/llava-1.5-7b-hf"):\n    return M.from_pretrained(name)',
            id="the model's name as a default",
        ),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_an_argument_is_changed_and_nothing_else(before: str, fix: LoadKwarg, expected: str, end: str) -> None:
    head = "import torch\n"
    text = (head + before + "\n").replace("\n", end)
    arguments = {} if "torch_dtype" not in before else {"torch_dtype": FP16}
    assert after(text, fix, **arguments) == (head + expected + "\n").replace("\n", end)


@pytest.mark.parametrize(
    ("head", "expected_head", "name"),
    [
        ("import torch as t\n", "import torch as t\n", "t.float16"),
        ("from torch import float16 as half\n", "from torch import float16 as half\n", "half"),
        ("import torch.nn as nn\n", "import torch\nimport torch.nn as nn\n", "torch.float16"),
        (
            '"""Doc."""\nfrom __future__ import annotations\n\n# first\nimport os\n',
            '"""Doc."""\nfrom __future__ import annotations\n\n# first\nimport torch\nimport os\n',
            "torch.float16",
        ),
        ('"""Doc."""\nx = 1\n', '"""Doc."""\nimport torch\nx = 1\n', "torch.float16"),
        ("def g():\n    import torch\n", "import torch\ndef g():\n    import torch\n", "torch.float16"),
    ],
)
def test_a_value_is_written_in_the_names_of_the_script(head: str, expected_head: str, name: str) -> None:
    assert after(head + "M.from_pretrained(n)\n", ADD) == f"{expected_head}M.from_pretrained(n, dtype={name})\n"


def test_an_import_goes_below_the_magic_of_a_cell() -> None:
    assert after("0     \nM.from_pretrained(n)\n", ADD).startswith("0     \nimport torch\n")


def test_an_import_inside_the_function_of_the_call_is_used() -> None:
    text = "def f():\n    import torch as th\n    return M.from_pretrained(n)\n"
    assert after(text, ADD) == text.replace("(n)", "(n, dtype=th.float16)")


def test_a_call_as_value_brings_its_import() -> None:
    fix = LoadKwarg("quantization_config", Call("transformers.BitsAndBytesConfig", {"load_in_4bit": True}))
    new = after("from transformers import M\nM.from_pretrained(n)\n", fix)
    assert new.startswith("from transformers import BitsAndBytesConfig\n")
    assert "quantization_config=BitsAndBytesConfig(load_in_4bit=True)" in new


def test_a_rename_keeps_the_expression_that_only_running_would_tell() -> None:
    text = "import torch\nM.from_pretrained(n, torch_dtype=torch.bfloat16 if ok else torch.float16)\n"
    new = after(text, RENAME, torch_dtype=Unresolved("depends on ok"))
    assert new == text.replace("torch_dtype=", "dtype=")


def test_a_rename_beside_its_new_name_leaves_one_of_them() -> None:
    text = "import torch\nM.from_pretrained(n, torch_dtype=torch.float16, dtype=torch.bfloat16)\n"
    assert after(text, RENAME, torch_dtype=FP16) == "import torch\nM.from_pretrained(n, dtype=torch.float16)\n"


def test_a_dict_of_another_function_is_left_alone() -> None:
    text = 'import torch\ndef g():\n    kw = {"trust_remote_code": True}\ndef f():\n    kw = {}\n    M.from_pretrained(n, **kw)\n'
    with pytest.raises(RepairError, match="where trust_remote_code is set cannot be seen"):
        after(text, DROP)


def test_a_dict_that_feeds_two_calls_makes_the_edit_unsafe() -> None:
    text = 'kw = {"trust_remote_code": True}\nT.from_pretrained(n, **kw)\nM.from_pretrained(n, **kw)\n'
    call = Call("transformers.M.from_pretrained")
    start = text.index("M.from_pretrained")
    assert "feeds other calls" in rewrite(text, DROP, call, (start, len(text) - 1), {}, {}).unsafe


def test_a_name_with_another_meaning_is_not_imported_over() -> None:
    with pytest.raises(RepairError, match="uses the name torch for something else"):
        after("torch = object()\nM.from_pretrained(n)\n", ADD)


def test_a_model_name_from_elsewhere_is_refused_with_where_it_comes_from() -> None:
    with pytest.raises(RepairError, match=r"comes from config\.model"):
        after("M.from_pretrained(config.model)\n", MODEL)


def test_a_value_that_is_not_known_is_refused() -> None:
    with pytest.raises(RepairError, match="not known"):
        after("M.from_pretrained(n)\n", LoadKwarg("dtype", Unresolved("depends")))
