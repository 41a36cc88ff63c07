"""`--output`, `--format` and `--statistics`: the same findings in every dress, stdout as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Doctor

SCRIPT = """\
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments
model = AutoModelForCausalLM.from_pretrained(
    "Qwen/Qwen3-8B", quantization_config=BitsAndBytesConfig(load_in_4bit=True), trust_remote_code=True
)
args = TrainingArguments(output_dir="out", fp16=True, bf16=True)
trainer = Trainer(model=model, args=args)
trainer.train()
"""
STACK = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "bitsandbytes": "0.50.2",
    "accelerate": "1.15.0",
}
Facts = Callable[..., Path]


@pytest.fixture
def script(doctor: Doctor) -> Path:
    """train.py in the current folder."""
    Path("train.py").write_text(SCRIPT, encoding="utf-8")
    return Path("train.py")


def test_several_files_are_written_and_stdout_stays_text(doctor: Doctor, script: Path, facts_file: Facts) -> None:
    words = ("check", "train.py", "--facts", facts_file(STACK))
    before = doctor(*words)
    outputs = ("a.html", "a.sarif", "b.sarif.json", "a.md", "a.json", "a.txt", "github:annotations")
    run = doctor(*words, *(w for name in outputs for w in ("--output", name)))
    assert (run.code, run.out) == (before.code, before.out)
    assert Path("a.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert Path("a.sarif").read_text(encoding="utf-8") == Path("b.sarif.json").read_text(encoding="utf-8")
    assert json.loads(Path("a.sarif").read_text(encoding="utf-8"))["version"] == "2.1.0"
    assert Path("a.md").read_text(encoding="utf-8").startswith("## ")
    assert Path("annotations").read_text(encoding="utf-8").startswith("::")
    assert Path("a.txt").read_text(encoding="utf-8").splitlines()[0] == run.out.splitlines()[0]
    found = json.loads(Path("a.json").read_text(encoding="utf-8"))["findings"]
    assert [r["ruleId"] for r in json.loads(Path("a.sarif").read_text(encoding="utf-8"))["runs"][0]["results"]] == [
        f["code"] for f in found
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["report.doc"], "names no format"),
        (["html:"], "names no format"),
        (["html:-"], "--format html"),
        (["missing/a.html"], "there is no folder missing"),
        (["html:."], "that is a folder"),
        (["a.html", "./a.html"], "named twice"),
        (["text:train.py"], "is what is judged"),
        (["a.csv"], "names no format of this command"),
    ],
)
def test_an_output_that_cannot_be_is_told_before_anything_is_done(
    doctor: Doctor, script: Path, words: list[str], says: str
) -> None:
    run = doctor("check", "train.py", "--offline", *(w for word in words for w in ("--output", word)))
    assert run.code == 2
    assert says in run.err
    assert run.out == ""
    assert script.read_text(encoding="utf-8") == SCRIPT
    assert sorted(p.name for p in Path().iterdir()) == ["train.py"]


def test_a_report_replaces_an_older_one_whole_and_keeps_its_mode(
    doctor: Doctor, script: Path, facts_file: Facts
) -> None:
    Path("a.md").write_text("old" * 50_000, encoding="utf-8")
    os.chmod("a.md", 0o640)
    doctor("check", "train.py", "--facts", facts_file(STACK), "--output", "a.md")
    assert "old" * 10 not in Path("a.md").read_text(encoding="utf-8")
    assert os.stat("a.md").st_mode & 0o777 == 0o640
    assert sorted(p.name for p in Path().iterdir()) == ["a.md", "train.py"]


def test_a_full_disk_is_an_error_of_the_question(doctor: Doctor, script: Path, facts_file: Facts) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    run = doctor("check", "train.py", "--facts", facts_file(STACK), "--output", "html:/dev/full")
    assert run.code == 2
    assert "--output /dev/full: cannot be written: No space left on device" in run.err


@pytest.mark.parametrize("style", ["sarif", "github", "markdown", "html"])
@pytest.mark.parametrize("command", ["check", "fix", "plan", "diagnose"])
def test_every_command_speaks_every_format(
    doctor: Doctor, script: Path, facts_file: Facts, command: str, style: str
) -> None:
    Path("run.log").write_text(
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n", encoding="utf-8"
    )
    facts = str(facts_file(STACK))
    words = {
        "check": ["train.py", "--facts", facts],
        "fix": ["train.py", "--facts", facts],
        "plan": ["--model", "Qwen/Qwen3-8B", "--gpu", "8gb"],
        "diagnose": ["run.log", "--elsewhere"],
    }[command]
    run = doctor(command, *words, "--format", style, "--output", f"{style}:out")
    assert run.code == 1, run.err
    assert run.out == Path("out").read_text(encoding="utf-8")
    begins = {"sarif": "{", "github": "::", "markdown": "## ", "html": "<!doctype html>"}
    assert run.out.startswith(begins[style])


@pytest.mark.parametrize(
    "words", [["--gpu", "8gb"], ["--model", "Qwen/Qwen3-8B", "--gpu", "all"], ["--model", "Qwen/Qwen3-8B", "--compare"]]
)
def test_a_plan_that_compares_is_a_table(doctor: Doctor, words: list[str]) -> None:
    run = doctor("plan", *words, "--format", "html", "--output", "plan.md")
    assert run.code == 0
    assert run.out.count("<tr>") > 3
    assert Path("plan.md").read_text(encoding="utf-8").count("\n| ") > 3
    run = doctor("plan", *words, "--output", "plan.svg")
    assert run.code == 2
    assert "cannot be shown as svg" in run.err


def test_statistics_count_instead_of_telling(doctor: Doctor, facts_file: Facts) -> None:
    for name in ("a.py", "b.py"):
        Path(name).write_text(SCRIPT, encoding="utf-8")
    words = ("check", "a.py", "b.py", "--facts", facts_file(STACK), "--select", "QD621,QD102", "--statistics")
    run = doctor(*words)
    assert run.code == 1
    first, second, last = run.out.splitlines()
    assert first.split()[:3] == ["2", "QD621", "error"]
    assert second.split()[:3] == ["2", "QD102", "info"] or second.split()[1] == "QD102"
    assert last.startswith("[*] ")
    counted = doctor(*words, "--format", "json").json
    assert [(r["code"], r["count"]) for r in counted["statistics"]] == [("QD621", 2), ("QD102", 2)]
    assert doctor(*words, "--format", "html").code == 2


def test_the_curve_of_the_run_that_the_script_writes_to_is_shown(
    doctor: Doctor, script: Path, facts_file: Facts
) -> None:
    Path("out").mkdir()
    rows = [{"step": n, "loss": 3.0 - n / 10} for n in range(1, 9)] + [{"step": 8, "eval_loss": 2.5}]
    Path("out/train_log.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 9, "lo', encoding="utf-8")
    doctor("check", "train.py", "--facts", facts_file(STACK), "--output", "a.html", "--output", "a.md")
    assert "loss 2.2 at step 8; lowest 2.2, highest 2.9" in Path("a.html").read_text(encoding="utf-8")
    assert "8 points: 2.9 at step 1" in Path("a.md").read_text(encoding="utf-8")


def test_the_history_of_a_checkpoint_is_a_curve_too(doctor: Doctor, script: Path, facts_file: Facts) -> None:
    for number in (9, 10):
        Path(f"out/checkpoint-{number}").mkdir(parents=True)
        history = [{"step": 1, "loss": 2.0}, {"step": number, "loss": 1.0 / number}]
        Path(f"out/checkpoint-{number}/trainer_state.json").write_text(
            json.dumps({"log_history": history}), encoding="utf-8"
        )
    run = doctor("check", "train.py", "--facts", facts_file(STACK), "--format", "html")
    assert "loss 0.1 at step 10" in run.out


def test_the_losses_in_a_log_are_drawn(doctor: Doctor) -> None:
    lines = [f"{{'loss': {2.0 - n / 50}, 'grad_norm': 1.0}}" for n in range(40)]
    Path("run.log").write_text("\n".join([*lines, "{'loss': nan}", "RuntimeError: boom"]), encoding="utf-8")
    run = doctor("diagnose", "run.log", "--elsewhere", "--format", "html")
    assert "loss 1.22 at step 40; lowest 1.22, highest 2; 1 values were not finite" in run.out


def test_the_memory_of_the_run_is_shown_with_its_card(doctor: Doctor, script: Path, facts_file: Facts) -> None:
    from qlora_doctor.facts import Gpu

    facts = facts_file(STACK, gpus=(Gpu("RTX 4090", "8.9", 24 << 30, 23 << 30),))
    run = doctor("check", "train.py", "--facts", facts, "--format", "markdown")
    assert "### Memory of Qwen/Qwen3-8B" in run.out
    assert "| RTX 4090 | 24.00 GiB: fits |" in run.out


def test_text_and_json_import_no_other_dress(doctor: Doctor, script: Path, facts_file: Facts) -> None:
    program = (
        "import sys; from qlora_doctor.cli import main; main(sys.argv[1:]);"
        "print('MODULES', *[m for m in sys.modules if m.startswith('qlora_doctor.')])"
    )
    for style in ("text", "json"):
        done = subprocess.run(
            [sys.executable, "-c", program, "check", "train.py", "--facts", str(facts_file(STACK)), "--format", style],
            check=True,
            capture_output=True,
            text=True,
        )
        loaded = set(done.stdout.splitlines()[-1].split())
        dresses = ("paper", "paper_check", "html", "sarif", "github", "markdown", "csv", "statistics", "replacements")
        assert (
            loaded
            & {
                *(f"qlora_doctor.report.{n}" for n in dresses),
                "qlora_doctor.cli.outputs",
                "qlora_doctor.memory.formula",
            }
            == set()
        )
