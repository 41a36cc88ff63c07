"""Casts and moves of a quantised model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_checks.loaded_casts import dtype_cast_of_a_quantized_model, quantized_model_moved_by_an_old_version
from qlora_doctor.facts import Facts
from qlora_doctor.fix import SourceEdit
from qlora_doctor.gather.script import read_script
from qlora_doctor.repair.text import Encoding, apply_edits
from qlora_doctor.request import LoadRequest
from qlora_doctor.source import Call, Dotted, Script, Site, Unresolved
from qlora_doctor.testing import bnb, facts, findings, load, outcome

QD117 = dtype_cast_of_a_quantized_model
QD118 = quantized_model_moved_by_an_old_version
AUTO = "transformers.AutoModelForCausalLM.from_pretrained"
NOW = facts({"transformers": "5.23.0", "bitsandbytes": "0.50.2"})
F16 = Dotted("torch.float16")


def loaded(**more: Any) -> LoadRequest:
    request = load(**more)
    return replace(request, call=replace(request.call, result="model", order=1))


def method(name: str, receiver: str = "model", origin: str = AUTO, **arguments: Any) -> Script:
    call = Call(
        f".{name}", {k.replace("_", "#"): v for k, v in arguments.items()}, receiver=receiver, origin=origin, order=5
    )
    return Script("t.py", calls=(call,))


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(method("half"), id="half"),
        pytest.param(method("float"), id="float"),
        pytest.param(method("to", _0=F16), id="to a dtype"),
        pytest.param(method("to", _0="cuda", _1=F16), id="to a device and a dtype"),
        pytest.param(method("to", dtype=Unresolved("a variable")), id="to dtype="),
        pytest.param(method("half", origin="peft.prepare_model_for_kbit_training"), id="after prepare"),
    ],
)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_cast_of_a_quantised_model_is_an_error(script: Script, bits: int) -> None:
    config = bnb(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    (found,) = findings(QD117, NOW, loaded(quantization_config=config), script=script)
    assert found.severity == "error"
    assert f"{bits} bit" in found.text


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(method("to", _0="cuda"), id="a move is no cast"),
        pytest.param(method("cuda"), id="nor is cuda()"),
        pytest.param(method("bfloat16"), id="bfloat16() raises nothing"),
        pytest.param(method("half", origin="peft.get_peft_model"), id="a PeftModel's cast raises nothing"),
        pytest.param(method("half", receiver="vae", origin=""), id="another object"),
        pytest.param(method("half", receiver="other"), id="another model"),
        pytest.param(method("to", _0=Unresolved("args.device")), id="to something unknown"),
    ],
)
def test_other_calls_on_the_model_and_other_objects_are_silent(script: Script) -> None:
    assert findings(QD117, NOW, loaded(), script=script) == ()


def test_an_unquantised_model_may_be_cast_and_so_may_one_that_a_branch_quantises() -> None:
    assert findings(QD117, NOW, loaded(quantization_config=None), script=method("half")) == ()
    plain, quantised = loaded(quantization_config=None), loaded()
    assert findings(QD117, NOW, plain, quantised, script=method("half")) == ()


def test_the_last_load_before_the_cast_counts() -> None:
    later = loaded(quantization_config=None)
    later = replace(later, call=replace(later.call, order=3))
    assert findings(QD117, NOW, loaded(), later, script=method("half")) == ()


def test_whether_a_load_is_quantised_may_be_unknown() -> None:
    request = loaded(quantization_config=Unresolved("argparse"))
    assert outcome(QD117, NOW, request, script=method("half")) == "unknown"


CODE = b"model = AutoModelForCausalLM.from_pretrained('x', quantization_config=c).half()\nmodel.half()\n"


def test_the_fix_takes_the_cast_out_of_a_chain_and_of_a_statement() -> None:
    end = CODE.index(b".half")
    site = Site("t.py", 1, 9, 1, 8, end, sha256="abc")
    request = loaded()
    request = replace(request, call=replace(request.call, site=site))
    chain = Call(".half", origin=AUTO, order=2, site=replace(site, end=end + 7))
    alone = len(CODE) - len(b"model.half()\n")
    statement = Call(
        ".half", receiver="model", origin=AUTO, order=5, site=Site("t.py", 2, 1, 2, alone, len(CODE) - 1, sha256="abc")
    )
    found = findings(QD117, NOW, request, script=Script("t.py", sha256="abc", calls=(chain, statement)))
    edits = [e for f in found for fix in f.fixes if isinstance(fix, SourceEdit) for e in fix.edits]
    assert apply_edits(CODE, edits, Encoding()) == (
        b"model = AutoModelForCausalLM.from_pretrained('x', quantization_config=c)\nmodel\n"
    )


@pytest.mark.parametrize(
    ("transformers", "bitsandbytes", "bits", "name", "refused"),
    [
        ("4.44.2", "0.44.1", 4, "to", True),
        ("4.45.2", "0.43.1", 4, "cuda", True),
        ("4.45.2", "0.43.2", 4, "to", False),
        ("4.57.6", "0.48.2", 8, "to", True),
        ("5.23.0", "0.50.2", 4, "to", False),
        ("5.23.0", "0.50.2", 8, "to", False),
        ("5.23.0", "0.47.0", 8, "to", True),
        ("5.23.0", "0.50.2", 8, "cuda", True),
    ],
)
def test_whether_a_quantised_model_can_be_moved_depends_on_the_versions(
    transformers: str, bitsandbytes: str, bits: int, name: str, refused: bool
) -> None:
    world: Facts = facts({"transformers": transformers, "bitsandbytes": bitsandbytes})
    config = bnb(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    script = method(name, _0="cuda") if name == "to" else method(name)
    found = findings(QD118, world, loaded(quantization_config=config), script=script)
    assert [f.severity for f in found] == (["error"] if refused else [])


def test_without_versions_a_move_is_unknown() -> None:
    assert outcome(QD118, facts({}), loaded(), script=method("cuda")) == "unknown"
    assert findings(QD118, facts({}), loaded(quantization_config=None), script=method("cuda")) == ()


def test_a_cast_that_is_a_statement_of_its_own_goes_with_its_line(tmp_path: Path) -> None:
    source = (
        "import torch\n"
        "from transformers import AutoModelForCausalLM as A, BitsAndBytesConfig as B\n"
        "model = A.from_pretrained('x', quantization_config=B(load_in_4bit=True))\n"
        "model = model.half()  # 半精度\n"
        "model.half()\n"
        "if True:\n"
        "    model.to(torch.float16)\n"
        "print(model.to(torch.float16))\n"
    )
    path = tmp_path / "t.py"
    path.write_text(source, encoding="utf-8")
    script, requests = read_script(path)
    found = findings(QD117, NOW, *requests.loads, script=script)
    edits = [e for f in found for fix in f.fixes if isinstance(fix, SourceEdit) for e in fix.edits]
    assert apply_edits(path.read_bytes(), edits, Encoding()).decode() == (
        "import torch\n"
        "from transformers import AutoModelForCausalLM as A, BitsAndBytesConfig as B\n"
        "model = A.from_pretrained('x', quantization_config=B(load_in_4bit=True))\n"
        "if True:\n"
        "    model\n"
        "print(model)\n"
    )
