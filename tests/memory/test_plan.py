"""`qlora-doctor plan`: what it prints, writes and refuses, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.cli import main

Capture = pytest.CaptureFixture[str]


def plan(capture: Capture, *arguments: str) -> tuple[int, str, str]:
    code = main(["plan", *arguments])
    out = capture.readouterr()
    return code, out.out, out.err


def plan_json(capture: Capture, *arguments: str) -> Any:
    return json.loads(plan(capture, *arguments, "--format", "json")[1])


def test_a_plan_names_verdict_parts_and_levers(capsys: Capture) -> None:
    code, out, _ = plan(capsys, "--model", "llava-hf/llava-1.5-7b-hf", "--gpu", "RTX 4060")
    assert code == 0
    assert "fits: " in out and "576 image tokens" in out and "quantised weights" in out
    assert "8-bit AdamW" in out and "an image is always 576 tokens" in out and "minutes for 1,000 steps" in out


def test_what_does_not_fit_ends_with_1_and_the_search_with_settings(capsys: Capture) -> None:
    asked = ("--model", "Qwen/Qwen3-8B", "--gpu", "12gb", "--batch", "4", "--length", "2048")
    code, out, _ = plan(capsys, *asked)
    assert (code, "does not fit" in out) == (1, True)
    code, out, _ = plan(capsys, *asked, "--fit")
    assert code == 0
    assert "batch: 4 -> 2" in out and "gradient_accumulation_steps=2" in out


def test_the_json_adds_up(capsys: Capture) -> None:
    data = plan_json(capsys, "--model", "Qwen/Qwen3-8B", "--gpu", "8gb", "--fit")
    assert sum(i["bytes"] for i in data["breakdown"]["items"]) + data["breakdown"]["overhead"][1] == data["expected"]
    assert data["proposal"]["high"] <= data["gpu"]["room"]


def test_every_card_and_every_model_are_judged(capsys: Capture) -> None:
    cards = {
        row["gpu"]: row["verdict"] for row in plan_json(capsys, "--model", "Qwen/Qwen3-8B", "--gpu", "all")["gpus"]
    }
    assert (cards["NVIDIA GeForce RTX 4090"], cards["NVIDIA GeForce GTX 1650"]) == ("fits", "does not fit")
    models = {row["model"]: row["verdict"] for row in plan_json(capsys, "--gpu", "8gb")["models"]}
    assert (models["Qwen/Qwen3-0.6B"], models["Qwen/Qwen2.5-72B"]) == ("fits", "does not fit")


def test_nothing_is_said_to_fit_with_more_than_there_is(capsys: Capture) -> None:
    data = plan_json(capsys, "--gpu", "8gb")
    fitting = [m["proposal"] or m for m in data["models"] if m["verdict"] == "fits" or m["proposal"]]
    assert len(fitting) > 10 and all(m["high"] <= data["room"] for m in fitting)
    lines = [line for line in plan(capsys, "--gpu", "8gb")[1].splitlines() if " fits" in line]
    figures = [float(word) for line in lines for word, unit in pairwise(line.split()) if unit == "GiB"]
    assert len(figures) == 2 * len(fitting) and max(figures) <= data["room"] / 2**30 + 0.005


def test_the_three_methods_stand_side_by_side(capsys: Capture) -> None:
    found = plan_json(capsys, "--model", "llava-hf/llava-1.5-7b-hf", "--compare")["methods"]
    assert found["QLoRA"]["expected"] < found["LoRA"]["expected"] / 2 < found["full fine-tuning"]["expected"] / 4


def test_memory_that_is_already_taken_counts(capsys: Capture) -> None:
    asked = ("--model", "llava-hf/llava-1.5-7b-hf", "--gpu", "8gb")
    assert plan(capsys, *asked)[0] == 0
    assert plan(capsys, *asked, "--used", "3")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name a model"),
        (("--model", "nobody/nothing"), "is not known here"),
        (("--model", "Qwen/Qwen3-8B", "--gpu", "RTX 9999"), "no such card"),
        (("--model", "Qwen/Qwen3-8B", "--gpu", "8gb", "--batch", "0"), "batch = 0"),
        (("--model", "Qwen/Qwen3-8B", "--optimizer", "lion"), "optimizer = 'lion'"),
        (("--model", "Qwen/Qwen3-8B", "--image-size", "big"), "--image-size big"),
        (("--model", "llava-1.5-7b", "--images", "2", "--emit", "x.py"), "one image a row"),
        (("--model", "Qwen/Qwen3-8B", "--prepared", "--emit", "x.py"), "leave --prepared out"),
        (("--model", "Qwen/Qwen3-8B", "--bits", "8", "--emit", "x.py"), "leave --bits out"),
        (("--from-run", "nowhere"), "--from-run nowhere: No such file"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_the_reason(
    arguments: tuple[str, ...], said: str, capsys: Capture
) -> None:
    code, out, err = plan(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_a_plan_imports_nothing_heavy() -> None:
    program = "import sys; from qlora_doctor.cli import main; main(sys.argv[1:]); print(*sorted(sys.modules))"
    arguments = ["plan", "--model", "Qwen/Qwen3-8B", "--gpu", "8gb", "--fit"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert loaded & {"torch", "transformers", "peft", "rich", "libcst", "huggingface_hub", "ssl"} == set()


def test_the_document_is_what_the_estimate_says_today() -> None:
    root = Path(__file__).parents[2]
    sys.path.insert(0, str(root / "benchmarks"))
    try:
        import memory_docs  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(root / "benchmarks"))
    wanted = memory_docs.page(json.loads(memory_docs.MEASURED.read_text(encoding="utf-8")))
    assert memory_docs.DOCS.read_text(encoding="utf-8") == wanted, "run `python benchmarks/memory_docs.py`"


def test_the_picture_is_well_formed_and_shows_every_part(capsys: Capture) -> None:
    from xml.etree import ElementTree

    code, out, _ = plan(capsys, "--model", "Qwen/Qwen3-8B", "--gpu", "RTX 4060", "--format", "svg")
    texts = [node.text or "" for node in ElementTree.fromstring(out).iter()]
    assert code == 1
    assert any("too close" in t or "does not fit" in t for t in texts)
    assert any(t.startswith("quantised weights") for t in texts)
