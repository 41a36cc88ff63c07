"""`repro` writes the smallest script that asks for the same: it parses, is judged the same, and fails the same."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from qlora_doctor.bundle.repro import make_repro
from qlora_doctor.errors import UsageError
from qlora_doctor.examine import Question, examine

CORPUS = Path(__file__).parents[1] / "corpus"
SCRIPTS = sorted(p.name for p in (CORPUS / "scripts").iterdir() if p.suffix in (".py", ".ipynb"))
STACK = ("torch", "transformers", "peft", "bitsandbytes")
PYTHON = os.environ.get("QLORA_DOCTOR_TEST_STACK", "" if not all(map(find_spec, STACK)) else sys.executable)
LOAD = "from transformers import AutoModelForCausalLM\nmodel = AutoModelForCausalLM.from_pretrained({})\n"
TRAIN = """
import argparse
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=1)
options = parser.parse_args([])
model = AutoModelForCausalLM.from_pretrained("tiny")
rows = [{{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}} for _ in range(4)]
args = TrainingArguments(output_dir="out", max_steps=1, report_to="none", {})
trainer = Trainer(model=model, args=args, train_dataset=rows, {})
trainer.train()
"""


def facts(folder: Path, **versions: str) -> str:
    rows = [{"name": name, "version": version} for name, version in versions.items()]
    path = folder / "facts.json"
    path.write_text(json.dumps({"schema": 1, "packages": {"distributions": rows}}), encoding="utf-8")
    return str(path)


def doctor(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qlora_doctor", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def question(path: Path, facts_file: str) -> Question:
    return Question(paths=(str(path),), facts_file=facts_file, offline=True)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_of_the_corpus_gives_one_that_parses_and_says_what_it_lost(name: str) -> None:
    examination = examine(question(CORPUS / "scripts" / name, str(CORPUS / "facts" / "old.json")))
    try:
        made = make_repro(examination)
    except UsageError as error:
        assert "nothing here loads or trains" in str(error)
        return
    ast.parse(made.text)
    found = {f.code for f in examination.verdict.findings if f.severity != "info" or f.site is not None}
    assert {*made.codes, *made.lost} == found


def test_most_of_what_the_corpus_has_is_kept() -> None:
    kept = lost = 0
    for name in SCRIPTS:
        examination = examine(question(CORPUS / "scripts" / name, str(CORPUS / "facts" / "old.json")))
        try:
            made = make_repro(examination)
        except UsageError:
            continue
        kept, lost = kept + len(made.codes), lost + len(made.lost)
    assert kept > 3 * lost


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("'org/m', load_in_4bit=True, torch_dtype='auto'", "QD102"),
        ("'llava-hf/llava-1.5-7b-hf'", "QD301"),
    ],
)
def test_the_load_alone_is_judged_as_the_script(tmp_path: Path, call: str, code: str) -> None:
    script = tmp_path / "long.py"
    script.write_text("import sys\n\ndef unrelated():\n    return 1\n\n" + LOAD.format(call), encoding="utf-8")
    known = facts(tmp_path, torch="2.13.0", transformers="5.23.0", bitsandbytes="0.50.2")
    first = {f.code for f in examine(question(script, known)).verdict.findings if f.site is not None}
    made = make_repro(examine(question(script, known)))
    (tmp_path / "repro.py").write_text(made.text, encoding="utf-8")
    again = {f.code for f in examine(question(tmp_path / "repro.py", known)).verdict.findings if f.site is not None}
    assert first == again
    assert "unrelated" not in made.text


def test_a_token_of_the_script_is_not_copied(tmp_path: Path) -> None:
    script = tmp_path / "t.py"
    script.write_text(
        "import os\nos.environ['HF_TOKEN'] = 'q9secret'\n" + LOAD.format("'gpt2', token='q9secret'"), "utf-8"
    )
    assert "q9secret" not in make_repro(examine(question(script, facts(tmp_path, torch="2.13.0")))).text


def test_what_could_not_be_read_is_left_out_and_said(tmp_path: Path) -> None:
    script = tmp_path / "t.py"
    script.write_text("import sys\n" + LOAD.format("'gpt2', dtype=sys.argv[1]"), "utf-8")
    text = make_repro(examine(question(script, facts(tmp_path, torch="2.13.0")))).text
    assert "# left out: dtype" in text


def test_the_command_writes_the_file_and_does_not_write_over_another(tmp_path: Path) -> None:
    known = facts(tmp_path, torch="2.13.0", transformers="5.23.0", bitsandbytes="0.50.2")
    words = ("repro", "--model", "Qwen/Qwen3-0.6B", "--facts", known)
    assert doctor(tmp_path, *words).returncode == 0
    written = (tmp_path / "repro.py").read_text("utf-8")
    assert "'Qwen/Qwen3-0.6B'" in written and "load_in_4bit=True" in written
    again = doctor(tmp_path, *words)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    assert doctor(tmp_path, "repro").returncode == 2


CASES = {
    "removed-keyword": LOAD.format("'tiny', load_in_4bit=True"),
    "unknown-model-type": LOAD.format("'unknown'"),
    "absent-folder": LOAD.format("'./nowhere'"),
    "misspelt-attention": LOAD.format("'tiny', attn_implementation='flash_attention_9'"),
    "renamed-setting": TRAIN.format("evaluation_strategy='steps'", ""),
    "bf16-and-fp16": TRAIN.format("bf16=True, fp16=True", ""),
    "evaluation-without-data": TRAIN.format("eval_strategy='steps'", ""),
    "removed-argument-of-trainer": TRAIN.format("", "tokenizer=None"),
}


@pytest.mark.torch
@pytest.mark.skipif(not PYTHON, reason="the stack is not installed")
def test_real_failures_are_reproduced_with_the_same_message(tmp_path: Path) -> None:
    names = []
    for name, text in CASES.items():
        script = tmp_path / f"{name}.py"
        script.write_text(text, encoding="utf-8")
        made = make_repro(examine(question(script, facts(tmp_path, torch="2.13.0", transformers="5.23.0"))))
        (tmp_path / f"{name}-repro.py").write_text(made.text, encoding="utf-8")
        names += [f"{name}.py", f"{name}-repro.py"]
    program = Path(__file__).parent / "run_pairs.py"
    done = subprocess.run(
        [PYTHON, str(program), *names], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    errors = dict(json.loads(line.partition(" ")[2]) for line in done.stdout.splitlines() if line.startswith("ERROR "))
    assert all(errors[f"{name}.py"] for name in CASES)
    assert {n: errors[f"{n}-repro.py"] for n in CASES} == {n: errors[f"{n}.py"] for n in CASES}
