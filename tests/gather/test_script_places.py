"""Places in scripts and notebooks, environment writes, imports, ignore comments, distributed launches."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_doctor.gather.script import read_script
from qlora_doctor.request import Requests
from qlora_doctor.source import Call, Script, Site, Unresolved


def read(folder: Path, source: str, name: str = "train.py") -> tuple[Script, Requests]:
    path = folder / name
    path.write_text(dedent(source))
    script, requests = read_script(path)
    assert not script.problem, script.problem
    return script, requests


def notebook(folder: Path, *cells: str | dict[str, Any], nbformat: int = 4) -> Path:
    made = [c if isinstance(c, dict) else {"cell_type": "code", "source": c.splitlines(keepends=True)} for c in cells]
    data: dict[str, Any] = {"nbformat": nbformat, "cells": made}
    if nbformat == 3:
        made = [{"input": c["source"], **c} for c in made]
        data = {"nbformat": 3, "worksheets": [{"cells": made}]}
    path = folder / "train.ipynb"
    path.write_text(json.dumps(data, ensure_ascii=False))
    return path


LOAD = "import transformers\nmodel = transformers.AutoModel.from_pretrained('a')"

# Spans ---------------------------------------------------------------------------------------------------------------


def spans(source: str, folder: Path) -> dict[str, str]:
    path = folder / "train.py"
    data = source.encode()
    path.write_bytes(data)
    _, requests = read_script(path)
    site = requests.loads[0].site
    assert site is not None
    return {name: data[a:b].decode() for name, (a, b) in site.spans.items()}


def test_an_argument_from_a_dict_has_the_place_where_the_dict_gets_it(tmp_path: Path) -> None:
    source = (
        "import transformers\nkw = {'trust_remote_code': True, 'cache_dir': None}\nkw['dtype'] = 'auto'\n"
        "kw.update(revision='x')\nm = transformers.AutoModel.from_pretrained('模型', **kw)\n"
    )
    found = spans(source, tmp_path)
    assert found["trust_remote_code"] == "'trust_remote_code': True"
    assert found["trust_remote_code:value"] == "True"
    assert found["dtype"] == "kw['dtype'] = 'auto'"
    assert found["dtype:value"] == "'auto'"
    assert found["revision"] == "revision='x'"
    assert found["**"] == "**kw"
    assert found["**kw"] == "{'trust_remote_code': True, 'cache_dir': None}"
    assert found["()"] == "'模型', **kw"


@pytest.mark.parametrize(
    ("call", "inside"),
    [
        ("f.from_pretrained('a')", "'a'"),
        ("f.from_pretrained('a',)", "'a',"),
        ("f.from_pretrained ( 'a' )", " 'a' "),
        ("f.from_pretrained(\r\n    'a',  # (why)\r\n)", "\r\n    'a',  # (why)\r\n"),
        ("(f.from_pretrained)('a')", "'a'"),
        ("f.from_pretrained(('a'))", "('a')"),
        ("f.from_pretrained(\t'a', token='(')", "\t'a', token='('"),
        ("f.from_pretrained  # (\\\n('a')", None),
        ("f \\\n .from_pretrained \\\n ('a')", "'a'"),
    ],
)
def test_the_place_inside_the_brackets_is_exact(tmp_path: Path, call: str, inside: str | None) -> None:
    if inside is None:
        call, inside = f"({call})", "'a'"
        call = call.replace("\\\n", "\n")
    assert spans(f"from transformers import AutoModel as f\nm = {call}\n", tmp_path)["()"] == inside


@given(
    st.text(
        st.characters(codec="utf-8", exclude_characters="\x00\\'\"{}", exclude_categories=("Cs", "Cc")), max_size=12
    ),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8-sig", "gb18030"]),
)
def test_places_are_exact_whatever_stands_before_them(
    tmp_path_factory: Any, word: str, end: str, encoding: str
) -> None:
    path = tmp_path_factory.mktemp("s") / "train.py"
    cookie = "# -*- coding: gb18030 -*-\n" if encoding == "gb18030" else ""
    source = f"{cookie}import transformers\nx = '{word}'; m = transformers.AutoModel.from_pretrained('{word}', dtype='auto')\n"
    data = source.replace("\n", end).encode(encoding)
    path.write_bytes(data)
    script, requests = read_script(path)
    assert not script.problem
    site = requests.loads[0].site
    assert site is not None
    codec = "utf-8" if encoding == "utf-8-sig" else encoding
    assert (
        data[site.start : site.end].decode(codec) == f"transformers.AutoModel.from_pretrained('{word}', dtype='auto')"
    )
    start, stop = site.spans["dtype"]
    assert data[start:stop] == b"dtype='auto'"


@pytest.mark.parametrize(
    ("source", "rest"),
    [
        ("import os\n", "import os\n"),
        ('"""Doc."""\nimport os\n', "import os\n"),
        ('#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n"""Doc.\n\nMore."""\n\nimport os\n', "\nimport os\n"),
        ('"""Doc."""\nfrom __future__ import annotations\nimport os\n', "import os\n"),
        ("# licence\n\n@d\ndef f(): pass\n", "@d\ndef f(): pass\n"),
        ('"""Only a docstring."""', ""),
        ("# only a comment\n", ""),
        ("", ""),
    ],
)
def test_an_import_can_be_put_after_the_docstring_and_the_future(tmp_path: Path, source: str, rest: str) -> None:
    script, _ = read(tmp_path, source)
    assert source.encode()[script.insertion :].decode() == rest


# Notebooks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbformat", [3, 4])
def test_cells_are_one_script_and_places_know_their_cell(tmp_path: Path, nbformat: int) -> None:
    path = notebook(
        tmp_path,
        "name = '模型'\n",
        {"cell_type": "markdown", "source": ["text"]},
        "!pip install -q transformers\n%matplotlib inline\nimport transformers\n\nmodel = transformers.AutoModel.from_pretrained(name)\n",
        nbformat=nbformat,
    )
    script, requests = read_script(path)
    assert (script.kind, script.problem) == ("notebook", "")
    (load,) = requests.loads
    assert load.model == "模型"
    site = load.site
    assert site is not None and (site.cell, site.line, site.column) == (2, 5, 9)
    source = "!pip install -q transformers\n%matplotlib inline\nimport transformers\n\nmodel = transformers.AutoModel.from_pretrained(name)\n"
    assert source.encode()[site.start : site.end].decode() == "transformers.AutoModel.from_pretrained(name)"


def test_shell_cells_are_left_out_and_timed_cells_are_not(tmp_path: Path) -> None:
    path = notebook(
        tmp_path,
        "%%bash\npip install x && (\n",
        "%%writefile a.py\nprint 'no python 3'\n",
        "pip install unsloth==1 \\\n  vllm\n",
        f"%%time\n{LOAD}\nmodel?\nfiles = !ls\nif files:\n    !rm -r x\n",
    )
    script, requests = read_script(path)
    assert script.problem == ""
    assert [r.site.line for r in requests.loads if r.site] == [3]


def test_a_cell_that_is_no_python_is_said_and_the_others_are_read(tmp_path: Path) -> None:
    script, requests = read_script(notebook(tmp_path, "x = (\n", LOAD))
    assert "cell 1" in script.problem
    assert len(requests.loads) == 1


def test_an_environment_magic_is_an_environment_write(tmp_path: Path) -> None:
    path = notebook(tmp_path, "import transformers\n", "%env HF_ENDPOINT=https://mirror.example\n%env HF_HOME /x\n")
    script, _ = read_script(path)
    assert [(e.name, e.value) for e in script.environ] == [("HF_ENDPOINT", "https://mirror.example"), ("HF_HOME", "/x")]
    assert script.environ[0].after_imports == ("transformers",)
    site = script.environ[0].site
    assert site is not None and (site.cell, site.line) == (1, 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not a notebook"),
        ("[]", "no cells"),
        ('{"cells": 3}', "no cells"),
        ("[" * 100_000, "notebook"),
        ('{"nbformat": 3, "worksheets": null}', "no cells"),
    ],
)
def test_a_file_that_is_no_notebook_gives_its_problem(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text(text)
    script, requests = read_script(path)
    assert problem in script.problem
    assert requests == Requests()


# Environment and imports ---------------------------------------------------------------------------------------------


def test_an_environment_write_knows_what_was_imported_before_it_runs(tmp_path: Path) -> None:
    source = """
    import os
    os.environ["A"] = "1"
    def main():
        os.environ["B"] = "2"
        from peft import LoraConfig
        os.environ.setdefault("C", "3")
    import torch
    os.environ.update({"D": "4"}, E="5")
    os.putenv("F", "6")
    import transformers
    for k, v in {"G": "7", "H": "8"}.items():
        os.environ[k] = v
    os.environ["I"] = os.environ["HOME"]
    if __name__ == "__main__":
        main()
    """
    script, _ = read(tmp_path, source)
    found = {e.name: e for e in script.environ}
    assert {n: e.value for n, e in found.items() if n != "I"} == dict(zip("ABCDEFGH", "12345678", strict=True))
    assert isinstance(found["I"].value, Unresolved)
    assert found["A"].after_imports == ("os",)
    assert found["D"].after_imports == found["E"].after_imports == found["F"].after_imports == ("os", "torch")
    assert found["B"].after_imports == ("os", "torch", "transformers")
    assert found["C"].after_imports == ("os", "torch", "transformers", "peft")
    assert found["C"].default_only and not found["B"].default_only
    assert found["B"].nested and not found["A"].nested


def test_what_a_module_beside_the_script_imports_counts(tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text("import transformers\n")
    script, _ = read(tmp_path, "import os\nimport helpers\nos.environ['HF_HOME'] = 'x'\n")
    assert "transformers" in script.environ[0].after_imports


def test_imports_say_how_they_are_used(tmp_path: Path) -> None:
    source = """
    import torch.nn as nn
    from transformers import AdamW as A, Trainer
    try:
        import flash_attn
    except ImportError:
        pass
    def f():
        from peft import prepare_model_for_kbit_training
        return A(A)
    """
    script, _ = read(tmp_path, source)
    found = {i.alias: i for i in script.imports}
    assert (found["nn"].module, found["nn"].name) == ("torch.nn", "")
    assert (found["A"].module, found["A"].name, found["A"].used) == ("transformers", "AdamW", 2)
    assert found["flash_attn"].guarded and not found["A"].guarded
    assert found["prepare_model_for_kbit_training"].nested
    assert found["prepare_model_for_kbit_training"].used == 0
    assert found["A"].order < found["Trainer"].order < found["flash_attn"].order
    site = found["A"].site
    text = dedent(source).encode()
    assert site is not None and text[site.start : site.end] == b"AdamW as A"


def test_order_is_shared_by_imports_writes_and_calls(tmp_path: Path) -> None:
    source = "import os\nimport transformers\nos.environ['A'] = 'b'\nm = transformers.AutoModel.from_pretrained('a')\nm.config.use_cache = False\nm.half()\n"
    script, _ = read(tmp_path, source)
    orders = [script.imports[0].order, script.imports[1].order, script.environ[0].order, script.calls[0].order]
    orders += [script.assignments[0].order, script.calls[1].order]
    assert orders == sorted(set(orders))


def test_ignore_comments_are_read_by_line(tmp_path: Path) -> None:
    source = "import os  # qlora-doctor: ignore[QD101, some-name]\nx = '# qlora-doctor: ignore'\ny = 1  # qlora-doctor: ignore\n"
    script, _ = read(tmp_path, source)
    assert script.ignores == {"1": ("QD101", "some-name"), "3": ("*",)}
    script, _ = read_script(notebook(tmp_path, "x = 1", "y = 1\nz = 2  # qlora-doctor: ignore[QD2]"))
    assert script.ignores == {"1:2": ("QD2",)}


# Distributed launches ------------------------------------------------------------------------------------------------

TRAINER = "from transformers import Trainer, TrainingArguments\n"


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ('"""Run with: torchrun --nproc_per_node=4 train.py"""\n' + LOAD, "torchrun"),
        ("# accelerate launch --multi_gpu train.py\n" + LOAD, "accelerate launch"),
        ("# deepspeed --num_gpus 2 train.py\n" + LOAD, "deepspeed"),
        ("import torch.distributed as dist\ndist.init_process_group('nccl')\n" + LOAD, "init_process_group"),
        ("import os\nrank = int(os.environ['LOCAL_RANK'])\n" + LOAD, "LOCAL_RANK"),
        (TRAINER + "TrainingArguments('o', deepspeed='ds.json')\n", "deepspeed"),
        ("import argparse\np = argparse.ArgumentParser()\np.add_argument('--local_rank', type=int)\n", "local_rank"),
    ],
)
def test_a_script_that_several_processes_run_says_why(tmp_path: Path, source: str, word: str) -> None:
    assert word in read(tmp_path, source)[0].distributed


@pytest.mark.parametrize(
    "source",
    [
        "from accelerate import Accelerator\nAccelerator()\n" + LOAD,
        "# accelerate launch --num_processes=1 train.py\n" + LOAD,
        "# torchrun --nproc_per_node 1 train.py\n" + LOAD,
        TRAINER + "Trainer(args=TrainingArguments('o', ddp_find_unused_parameters=False)).train()\n",
        (
            "import os, transformers\nddp = int(os.environ.get('WORLD_SIZE', 1)) != 1\n"
            "m = 'auto'\nif ddp:\n    m = {'': int(os.environ['LOCAL_RANK'])}\n"
            "transformers.AutoModel.from_pretrained('a', device_map=m)\n"
        ),
    ],
)
def test_what_runs_in_one_process_or_tells_them_apart_is_not_distributed(tmp_path: Path, source: str) -> None:
    assert read(tmp_path, source)[0].distributed == ""


# Fallbacks -----------------------------------------------------------------------------------------------------------

IMPORT = "from transformers import AutoProcessor, AutoTokenizer\n"


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    p = AutoProcessor.from_pretrained('a')\nexcept Exception:\n    p = AutoTokenizer.from_pretrained('a')\n",
        (
            "def f():\n    try:\n        return AutoProcessor.from_pretrained('a')\n    except OSError:\n"
            "        return AutoTokenizer.from_pretrained('a')\n"
        ),
        (
            "def f():\n    try:\n        return AutoProcessor.from_pretrained('a')\n    except OSError:\n        pass\n"
            "    return AutoTokenizer.from_pretrained('a')\n"
        ),
        (
            "p = None\ntry:\n    p = AutoProcessor.from_pretrained('a')\nexcept OSError:\n    p = None\n"
            "if p is None:\n    p = AutoTokenizer.from_pretrained('a')\n"
        ),
    ],
)
def test_a_silent_fallback_is_found_in_each_of_its_shapes(tmp_path: Path, source: str) -> None:
    (fallback,) = read(tmp_path, IMPORT + source)[0].fallbacks
    assert "AutoProcessor" in fallback.first.function
    assert "AutoTokenizer" in fallback.second.function


@pytest.mark.parametrize(
    "source",
    [
        "p = AutoProcessor.from_pretrained('a')\nt = AutoTokenizer.from_pretrained('a')\n",
        "try:\n    p = AutoProcessor.from_pretrained('a')\nexcept Exception:\n    raise\nt = AutoTokenizer.from_pretrained('a')\n",
        "try:\n    p = AutoProcessor.from_pretrained('a')\nexcept Exception:\n    p = AutoProcessor.from_pretrained('a', use_fast=False)\n",
        "try:\n    p = AutoProcessor.from_pretrained('a')\n    t = AutoTokenizer.from_pretrained('a')\nexcept Exception:\n    raise\n",
    ],
)
def test_two_loads_that_are_no_fallback_are_none(tmp_path: Path, source: str) -> None:
    assert read(tmp_path, IMPORT + source)[0].fallbacks == ()


def test_nouns_hold_no_syntax_trees(tmp_path: Path) -> None:
    script, requests = read(tmp_path, LOAD)
    assert isinstance(script.calls[0], Call) and isinstance(requests.loads[0].site, Site)
    from qlora_doctor.wire import to_data

    json.dumps(to_data(script))
    json.dumps(to_data(requests.loads[0].call))
