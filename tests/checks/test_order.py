"""Environment variables that are set too late."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_checks.order import environ_set_after_import, environ_variable_nobody_reads
from qlora_doctor.facts import Unknown
from qlora_doctor.fix import Advice, SourceEdit
from qlora_doctor.gather.script import read_script
from qlora_doctor.repair.text import Encoding, apply_edits
from qlora_doctor.source import Call, EnvironWrite, Import, Script, Site, Unresolved
from qlora_doctor.testing import RTX_3060, facts, findings, outcome

QD130 = environ_set_after_import
QD131 = environ_variable_nobody_reads
GPU = facts(gpus=(RTX_3060,))


def script(name: str, after: tuple[str, ...], imports: tuple[Import, ...] = (), **more: Any) -> Script:
    """A script that sets one variable after some imports."""
    order = more.pop("order", 9)
    calls = more.pop("calls", ())
    return Script(
        "t.py", imports=imports, environ=(EnvironWrite(name, "v", False, order, False, after, **more),), calls=calls
    )


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("HF_ENDPOINT", ("os", "transformers")),
        ("HF_HOME", ("torch", "peft")),
        ("HF_HUB_OFFLINE", ("datasets",)),
        ("HF_DATASETS_CACHE", ("datasets",)),
        ("CUDA_VISIBLE_DEVICES", ("torch", "peft")),
        ("BNB_CUDA_VERSION", ("bitsandbytes",)),
    ],
)
def test_a_variable_set_after_its_reader_is_a_warning(name: str, after: tuple[str, ...]) -> None:
    (found,) = findings(QD130, GPU, script=script(name, after))
    assert found.severity == "warning"
    assert name in found.text


@pytest.mark.parametrize(
    ("name", "after"),
    [
        pytest.param("HF_ENDPOINT", ("os", "torch"), id="torch does not read HF_ENDPOINT"),
        pytest.param("HF_ENDPOINT", ("accelerate",), id="accelerate is lazy"),
        pytest.param("CUDA_VISIBLE_DEVICES", ("torch", "transformers"), id="CUDA has not started"),
        pytest.param("HF_TOKEN", ("transformers",), id="the token is read when it is used"),
        pytest.param("TOKENIZERS_PARALLELISM", ("transformers",), id="read when it is used"),
        pytest.param("PYTORCH_CUDA_ALLOC_CONF", ("torch",), id="read at the first allocation"),
        pytest.param("WANDB_PROJECT", ("transformers",), id="read when a run starts"),
        pytest.param("HF_DATASETS_CACHE", ("transformers",), id="datasets reads it"),
    ],
)
def test_a_variable_that_is_still_read_later_is_silent(name: str, after: tuple[str, ...]) -> None:
    assert findings(QD130, GPU, script=script(name, after)) == ()


def test_lazy_packages_count_by_the_names_that_are_imported_before() -> None:
    late = script("HF_ENDPOINT", ("huggingface_hub",), (Import("huggingface_hub", "snapshot_download", order=1),))
    (found,) = findings(QD130, GPU, script=late)
    assert "from huggingface_hub import snapshot_download" in found.text
    module = script("HF_ENDPOINT", ("huggingface_hub",), (Import("huggingface_hub", order=1),))
    assert findings(QD130, GPU, script=module) == ()
    later = script("HF_ENDPOINT", ("huggingface_hub",), (Import("huggingface_hub", "login", order=20),))
    assert findings(QD130, GPU, script=later) == ()
    trainer = script("CUDA_VISIBLE_DEVICES", ("transformers",), (Import("transformers", "Trainer", order=1),))
    assert len(findings(QD130, GPU, script=trainer)) == 1


def test_a_cuda_call_before_fixes_the_visible_devices() -> None:
    asked = Call("torch.cuda.is_available", order=3)
    assert len(findings(QD130, GPU, script=script("CUDA_VISIBLE_DEVICES", ("torch",), calls=(asked,)))) == 1
    later = Call("torch.cuda.is_available", order=30)
    assert findings(QD130, GPU, script=script("CUDA_VISIBLE_DEVICES", ("torch",), calls=(later,))) == ()


def test_visible_devices_are_no_matter_without_a_gpu_and_are_judged_where_gpus_are_unknown() -> None:
    late = script("CUDA_VISIBLE_DEVICES", ("peft",))
    assert findings(QD130, facts(gpus=()), script=late) == ()
    assert len(findings(QD130, facts(gpus=Unknown("no driver")), script=late)) == 1


@pytest.mark.parametrize(
    ("value", "count", "told"), [("0", 1, False), ("0,1", 2, False), ("0", 2, True), ("1,0", 2, True), ("", 1, True)]
)
def test_visible_devices_that_name_every_gpu_change_nothing_late_or_early(value: str, count: int, told: bool) -> None:
    write = EnvironWrite("CUDA_VISIBLE_DEVICES", value, False, 9, False, ("peft",))
    gpus = tuple(replace(RTX_3060, index=n) for n in range(count))
    late = Script("t.py", environ=(write,))
    assert bool(findings(QD130, facts(gpus=gpus), script=late)) is told
    held = facts(gpus=gpus, environ={"CUDA_VISIBLE_DEVICES": "7"})
    assert findings(QD130, held, script=late)


def test_peft_asks_cuda_only_through_bitsandbytes() -> None:
    late = script("CUDA_VISIBLE_DEVICES", ("peft",))
    assert findings(QD130, facts({"peft": "0.21.2"}, gpus=(RTX_3060,)), script=late) == ()
    both = facts({"peft": "0.21.2", "bitsandbytes": "0.50.2"}, gpus=(RTX_3060,))
    assert len(findings(QD130, both, script=late)) == 1


def test_what_the_environment_holds_already_is_silent() -> None:
    late = script("HF_ENDPOINT", ("transformers",))
    assert findings(QD130, facts(environ={"HF_ENDPOINT": "v"}), script=late) == ()
    assert len(findings(QD130, facts(environ={"HF_ENDPOINT": "other"}), script=late)) == 1


def test_an_earlier_write_of_the_same_name_makes_the_later_one_harmless() -> None:
    early = EnvironWrite("HF_ENDPOINT", "v", order=1)
    late = EnvironWrite("HF_ENDPOINT", "v", order=9, after_imports=("transformers",))
    assert findings(QD130, GPU, script=Script("t.py", environ=(early, late))) == ()


def test_the_fix_moves_the_line_before_the_imports() -> None:
    text = b'"""Doc."""\nimport os\nimport transformers\nos.environ["HF_ENDPOINT"] = "https://mirror"\nprint(1)\n'
    start = text.index(b"os.environ")
    end = text.index(b"\nprint")
    site = Site("t.py", line=4, column=1, start=start, end=end, sha256="abc")
    write = EnvironWrite("HF_ENDPOINT", "https://mirror", False, 3, False, ("os", "transformers"), site)
    (found,) = findings(
        QD130, GPU, script=Script("t.py", sha256="abc", environ=(write,), insertion=text.index(b"import os"))
    )
    (fix,) = found.fixes
    assert isinstance(fix, SourceEdit) and fix.applicability == "safe"
    assert apply_edits(text, fix.edits, Encoding()).decode() == (
        '"""Doc."""\nimport os\n\nos.environ["HF_ENDPOINT"] = "https://mirror"\n\n'
        "import os\nimport transformers\n\nprint(1)\n"
    )


def test_the_line_goes_after_an_import_of_os_that_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "t.py"
    path.write_text('import json\nimport os\nimport transformers\n\nos.environ["HF_HOME"] = "d"\n', encoding="utf-8")
    script, _ = read_script(path)
    (found,) = findings(QD130, GPU, script=script)
    (fix,) = found.fixes
    assert isinstance(fix, SourceEdit)
    assert apply_edits(path.read_bytes(), fix.edits, Encoding()).decode() == (
        'import json\nimport os\n\nos.environ["HF_HOME"] = "d"\n\nimport transformers\n\n\n'
    )


@pytest.mark.parametrize(
    "write",
    [
        EnvironWrite(
            "HF_HOME", Unresolved("argparse"), after_imports=("transformers",), site=Site("t.py", 4, 1, 4, 30, 60)
        ),
        EnvironWrite("HF_HOME", "d", after_imports=("transformers",), site=Site("t.py", 4, 5, 4, 30, 60)),
    ],
    ids=["a value that only running shows", "inside a block"],
)
def test_a_write_that_may_depend_on_what_comes_before_is_left_to_a_person(write: EnvironWrite) -> None:
    (found,) = findings(QD130, GPU, script=Script("t.py", sha256="abc", environ=(write,)))
    assert all(isinstance(fix, Advice) for fix in found.fixes)


def test_transformers_cache_is_read_by_transformers_4_alone() -> None:
    cache = script("TRANSFORMERS_CACHE", ())
    (found,) = findings(QD131, facts({"transformers": "5.23.0"}), script=cache)
    assert found.severity == "warning"
    assert findings(QD131, facts({"transformers": "4.57.6"}), script=cache) == ()
    both = Script("t.py", environ=(EnvironWrite("TRANSFORMERS_CACHE", "d"), EnvironWrite("HF_HOME", "d")))
    assert findings(QD131, facts({"transformers": "5.23.0"}), script=both) == ()


def test_without_a_script_there_is_nothing_to_judge() -> None:
    assert outcome(QD130, GPU) == "skipped"


def test_one_import_that_read_the_variable_is_named_as_code() -> None:
    (finding,) = findings(QD130, GPU, script=script("HF_ENDPOINT", ("transformers", "peft")))
    assert "changes nothing: `import transformers` comes first" in finding.text
