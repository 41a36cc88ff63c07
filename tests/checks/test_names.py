"""Imports of what the installed versions no longer have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_checks.names import removed_name_imported
from qlora_doctor.facts import Installed, Signature
from qlora_doctor.fix import Advice, SourceEdit
from qlora_doctor.gather.script import read_script
from qlora_doctor.repair.text import Encoding, apply_edits
from qlora_doctor.source import Call, Import, Script, Site
from qlora_doctor.testing import facts, findings, outcome

QD123 = removed_name_imported
NOW = facts({"transformers": "5.23.0", "peft": "0.21.2", "trl": "1.16.0", "bitsandbytes": "0.50.2"})


def importing(*items: Import, **more: Any) -> Script:
    return Script("t.py", imports=items, **more)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("transformers", "AutoModelForVision2Seq"),
        ("transformers", "AdamW"),
        ("transformers", "HybridCache"),
        ("peft", "prepare_model_for_int8_training"),
        ("trl", "DataCollatorForCompletionOnlyLM"),
        ("bitsandbytes.functional", "igemmlt"),
    ],
)
def test_importing_what_is_gone_is_an_error(module: str, name: str) -> None:
    (found,) = findings(QD123, NOW, script=importing(Import(module, name)))
    assert found.severity == "error"
    assert found.fixes


@pytest.mark.parametrize(
    "item",
    [
        pytest.param(Import("transformers", "AutoModelForVision2Seq", guarded=True), id="inside a try"),
        pytest.param(Import("torch.optim", "AdamW"), id="torch's own AdamW"),
        pytest.param(Import("transformers", "AutoModelForCausalLM"), id="still there"),
        pytest.param(Import("transformers"), id="the module"),
    ],
)
def test_guarded_and_living_names_are_silent(item: Import) -> None:
    assert findings(QD123, NOW, script=importing(item)) == ()


def test_a_name_that_no_table_knows_is_held_against_the_installed_ones() -> None:
    many = tuple(f"Model{n}" for n in range(1000))
    world = NOW.but(installed=Installed(classes=(*many, "Trainer", "AutoTokenizer")))
    (found,) = findings(QD123, world, script=importing(Import("transformers", "AutoTokeniser")))
    assert found.severity == "warning"
    assert "AutoTokenizer" in found.text
    assert findings(QD123, world, script=importing(Import("transformers", "Trainer"))) == ()
    part = NOW.but(installed=Installed(classes=("Trainer",)))
    assert findings(QD123, part, script=importing(Import("transformers", "AutoTokeniser"))) == ()


def test_the_same_name_in_another_module_is_another_thing() -> None:
    (found,) = findings(QD123, NOW, script=importing(Import("peft.mapping", "get_peft_model")))
    assert "from peft import get_peft_model" in found.text
    assert findings(QD123, NOW, script=importing(Import("peft", "get_peft_model"))) == ()


def test_an_import_inside_a_function_is_a_warning() -> None:
    (found,) = findings(QD123, NOW, script=importing(Import("transformers", "AdamW", nested=True)))
    assert found.severity == "warning"


def test_older_versions_still_have_the_name() -> None:
    vision = importing(Import("transformers", "AutoModelForVision2Seq"))
    assert findings(QD123, facts({"transformers": "4.57.6"}), script=vision) == ()
    adam = importing(Import("transformers", "AdamW"))
    assert findings(QD123, facts({"transformers": "4.49.0"}), script=adam) == ()
    assert len(findings(QD123, facts({"transformers": "4.50.0"}), script=adam)) == 1


def test_the_installed_list_of_names_beats_the_table() -> None:
    world = NOW.but(installed=Installed(classes=("AdamW",)))
    assert findings(QD123, world, script=importing(Import("transformers", "AdamW"))) == ()


def test_a_name_that_came_later_is_an_error_before() -> None:
    new = importing(Import("transformers", "AutoModelForImageTextToText"))
    (found,) = findings(QD123, facts({"transformers": "4.44.2"}), script=new)
    assert found.severity == "error"
    assert findings(QD123, NOW, script=new) == ()


def test_an_attribute_of_the_module_is_found_at_its_call() -> None:
    call = Call("transformers.AutoModelForVision2Seq.from_pretrained")
    script = Script("t.py", imports=(Import("transformers"),), calls=(call,))
    (found,) = findings(QD123, NOW, script=script)
    assert "AttributeError" in found.text
    imported = Script("t.py", imports=(Import("transformers", "AutoModelForVision2Seq"),), calls=(call,))
    assert len(findings(QD123, NOW, script=imported)) == 1


def source(code: bytes, call: bytes, **more: Any) -> Script:
    """A script whose import of AutoModelForVision2Seq and one call stand in `code`."""
    name = b"AutoModelForVision2Seq"
    start = code.index(name)
    at = code.index(call)
    inside = code.index(b"(", at) + 1
    item = Import("transformers", name.decode(), used=1, site=Site("t.py", 1, 1, 1, start, start + len(name)), **more)
    where = Site("t.py", 2, 1, 2, at, len(code) - 1, spans={"()": (inside, inside)})
    made = Call("transformers.AutoModelForVision2Seq.from_pretrained", site=where)
    return Script("t.py", sha256="abc", imports=(item,), calls=(made,))


def test_the_fix_renames_the_import_and_the_use() -> None:
    code = b"from transformers import AutoModelForVision2Seq\nm = AutoModelForVision2Seq.from_pretrained('x')\n"
    (found,) = findings(QD123, NOW, script=source(code, b"AutoModelForVision2Seq.from"))
    edit = found.fixes[0]
    assert isinstance(edit, SourceEdit) and edit.applicability == "safe"
    assert apply_edits(code, edit.edits, Encoding()).decode() == (
        "from transformers import AutoModelForImageTextToText\nm = AutoModelForImageTextToText.from_pretrained('x')\n"
    )


def test_a_use_through_a_variable_keeps_the_old_name_for_the_new_class() -> None:
    code = b"from transformers import AutoModelForVision2Seq\nc = AutoModelForVision2Seq; c.from_pretrained('x')\n"
    (found,) = findings(QD123, NOW, script=source(code, b"c.from_pretrained"))
    edit = found.fixes[0]
    assert isinstance(edit, SourceEdit)
    assert apply_edits(code, edit.edits, Encoding()).startswith(
        b"from transformers import AutoModelForImageTextToText as AutoModelForVision2Seq\n"
    )


def repaired(tmp_path: Path, source: str) -> str:
    """The script after the first fix of its one finding."""
    path = tmp_path / "t.py"
    path.write_text(source, encoding="utf-8")
    script, _ = read_script(path)
    (found,) = findings(QD123, NOW, script=script)
    edit = found.fixes[0]
    assert isinstance(edit, SourceEdit)
    return apply_edits(path.read_bytes(), edit.edits, Encoding()).decode()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "from peft import prepare_model_for_int8_training, LoraConfig\nm = prepare_model_for_int8_training(m)\n",
            "from peft import prepare_model_for_kbit_training, LoraConfig\nm = prepare_model_for_kbit_training(m)\n",
        ),
        (
            "from transformers import AutoModelForVision2Seq as V  # 视觉\nV.from_pretrained('x')\n",
            "from transformers import AutoModelForImageTextToText as V  # 视觉\nV.from_pretrained('x')\n",
        ),
        (
            "from transformers import (\n    AutoModelForVision2Seq,\n)\nc = AutoModelForVision2Seq\nc.from_pretrained('x')\n",
            "from transformers import (\n    AutoModelForImageTextToText as AutoModelForVision2Seq,\n)\nc = AutoModelForVision2Seq\nc.from_pretrained('x')\n",
        ),
    ],
    ids=["a function", "an alias", "a variable holds the class"],
)
def test_a_script_that_was_read_is_renamed_throughout(tmp_path: Path, before: str, after: str) -> None:
    assert repaired(tmp_path, before) == after


def test_torchs_adamw_is_not_the_same_so_it_is_left_to_a_person() -> None:
    (found,) = findings(QD123, NOW, script=importing(Import("transformers", "AdamW")))
    assert all(isinstance(fix, Advice) for fix in found.fixes)
    assert "weight_decay" in found.text


def test_without_packages_nothing_is_said() -> None:
    script = importing(Import("transformers", "AdamW"))
    assert outcome(QD123, facts(), script=script) == "skipped"
    assert outcome(QD123, facts({}), script=script) == "ok"


def test_a_name_that_the_installed_source_lacks_is_an_error_though_no_table_knows_it() -> None:
    read = {"transformers.trainer.ALL_LAYERNORM_LAYERS": None, "transformers.Trainer": Signature(("model",))}
    world = NOW.but(installed=Installed(signatures=read))
    gone = Import("transformers.trainer", "ALL_LAYERNORM_LAYERS")
    (found,) = findings(QD123, world, script=importing(gone))
    assert (found.severity, "is not in the installed transformers" in found.text) == ("error", True)
    assert findings(QD123, world, script=importing(replace(gone, guarded=True))) == ()
    assert findings(QD123, world, script=importing(Import("transformers.trainer", "Trainer"))) == ()


def test_a_package_of_which_nothing_was_found_says_nothing_of_its_names() -> None:
    stump = NOW.but(installed=Installed(signatures={"peft.tuners.lora.LoraLayer": None, "peft.LoraConfig": None}))
    assert findings(QD123, stump, script=importing(Import("peft.tuners.lora", "LoraLayer"))) == ()
