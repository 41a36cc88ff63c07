"""`plan --emit`: the script that it writes passes the checks and trains; the line for `qlora-core train` is accepted there."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.cli import main

Capture = pytest.CaptureFixture[str]
HEALTHY = Path(__file__).parents[1] / "machines" / "healthy-h100.json"
SEEING = ("llava", "llava_next", "qwen2_5_vl", "instructblip_vicuna", "instructblip_t5")


def write(capture: Capture, target: Path, *arguments: str) -> str:
    capture.readouterr()
    code = main(["plan", "--emit", str(target), *arguments])
    assert (code, capture.readouterr().err) == (0, "")
    return target.read_text(encoding="utf-8")


def checked(capture: Capture, target: Path, ignore: str) -> tuple[int, list[str]]:
    arguments = ["check", str(target), "--facts", str(HEALTHY), "--offline", "--format", "json", "--ignore", ignore]
    code = main(arguments)
    found = json.loads(capture.readouterr().out)["findings"]
    return code, [f["code"] for f in found if f["severity"] != "info"]


@pytest.mark.parametrize(
    "model",
    [
        "Qwen/Qwen3-8B",
        "google/gemma-2-9b",
        "llava-hf/llava-1.5-7b-hf",
        "llava-hf/llava-v1.6-mistral-7b-hf",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "Qwen/Qwen3-VL-8B-Instruct",
        "Salesforce/instructblip-vicuna-7b",
        "Salesforce/instructblip-flan-t5-xl",
        "Salesforce/blip2-opt-2.7b",
    ],
)
def test_the_written_script_parses_and_passes_the_checks(model: str, tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "train.py"
    ast.parse(write(capsys, target, "--model", model, "--gpu", "12gb", "--fit", "--batch", "8"))
    assert checked(capsys, target, "QD0,QD2,QD4") == (0, [])


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "train.py"
    before = write(capsys, target, "--model", "Qwen/Qwen3-8B")
    assert main(["plan", "--model", "Qwen/Qwen3-4B", "--emit", str(target)]) == 2
    assert target.read_text() == before


def test_a_card_without_bfloat16_gets_a_script_in_fp16(tmp_path: Path, capsys: Capture) -> None:
    text = write(capsys, tmp_path / "train.py", "--model", "Qwen/Qwen3-0.6B", "--gpu", "T4")
    assert "fp16=True" in text and "torch.float16" in text


@pytest.mark.parametrize(
    ("model", "targets", "hits", "misses"),
    [
        ("Qwen/Qwen3-8B", "q,v", "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"),
        ("llava-1.5-7b-hf", "language model", "model.language_model.layers.0.mlp.up_proj", "model.vision_tower.layers.0.q_proj"),
        ("llava-1.5-7b-hf", "attention", "model.language_model.layers.0.self_attn.o_proj", "model.language_model.layers.0.mlp.up_proj"),
        ("instructblip-vicuna-7b", "Q-Former", "qformer.encoder.layer.0.attention.attention.query", "language_model.model.layers.0.self_attn.q_proj"),
        ("microsoft/phi-2", "language model", "model.layers.0.mlp.fc1", "lm_head"),
    ],
)  # fmt: skip
def test_lora_goes_where_the_estimate_counted_it(
    model: str, targets: str, hits: str, misses: str, tmp_path: Path, capsys: Capture
) -> None:
    text = write(capsys, tmp_path / "train.py", "--model", model, "--targets", targets)
    found = re.search(r'target_modules=r"(.*?)"', text)
    assert found is not None
    assert re.fullmatch(found.group(1), hits) and not re.fullmatch(found.group(1), misses)


@pytest.mark.parametrize("vision", [(), ("--quantize-vision",)])
def test_the_vision_tower_stays_in_16_bit_unless_asked(
    vision: tuple[str, ...], tmp_path: Path, capsys: Capture
) -> None:
    text = write(capsys, tmp_path / "train.py", "--model", "llava-1.5-7b-hf", *vision)
    assert ("vision_tower" in text, "multi_modal_projector" in text) == (not vision, True)


@pytest.mark.torch
def test_the_written_script_trains_a_tiny_text_model(tmp_path: Path, capsys: Capture) -> None:
    from qlora_core.tiny import build

    build("qwen3", tmp_path / "model", processor=False)
    row = {"text": "USER: What is this? ASSISTANT: A red cat."}
    (tmp_path / "train.jsonl").write_text(f"{json.dumps(row)}\n" * 4, encoding="utf-8")
    arguments = ("--model", str(tmp_path / "model"), "--batch", "2", "--length", "64", "--rank", "4")
    write(capsys, tmp_path / "train.py", *arguments)
    trained(tmp_path)


@pytest.mark.torch
@pytest.mark.parametrize("kind", SEEING)
def test_the_written_script_trains_a_tiny_model_that_sees(kind: str, tmp_path: Path, capsys: Capture) -> None:
    from PIL import Image

    from qlora_core.tiny import build

    build(kind, tmp_path / "model")
    rows = []
    for number, side in enumerate((28, 60, 28, 44)):
        Image.new("RGB", (side, 40), (200, 10 * number, 30)).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": "What is this?" * (1 + number), "answer": "A red cat."})
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    arguments = ("--model", str(tmp_path / "model"), "--batch", "2", "--length", "200", "--rank", "4")
    text = write(capsys, tmp_path / "train.py", *arguments)
    if "vl" in kind and find_spec("torchvision") is None:
        # AutoProcessor needs torchvision, for videos alone; all else of the script is as it was written.
        words = "AutoConfig.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)"
        text = text.replace("AutoProcessor.from_pretrained(MODEL)", f"image_only_qwen({words})")
        more = "from transformers import AutoConfig, AutoTokenizer\nfrom qlora_core.processor import image_only_qwen\n"
        (tmp_path / "train.py").write_text(text.replace("import torch\n", f"import torch\n{more}", 1), encoding="utf-8")
    trained(tmp_path)


def trained(folder: Path) -> None:
    """Runs the script; the loss is a number and the adapter was saved, on the language model alone."""
    done = subprocess.run([sys.executable, "train.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [float(x) for x in re.findall(r"'loss': '?([\d.]+)", done.stdout)]
    assert losses and all(0 < loss < 100 for loss in losses), done.stdout[-1000:]
    from safetensors import safe_open

    with safe_open(folder / "out" / "adapter" / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
        assert any(file.get_tensor(n).abs().sum() > 0 for n in names if "lora_B" in n)
    assert names and not [n for n in names if "vision" in n or "visual" in n or "qformer" in n]


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("Qwen/Qwen3-8B", ("--batch", "8", "--length", "4096")),
        ("Qwen/Qwen2.5-VL-7B-Instruct", ("--batch", "4", "--max-pixels", "401408")),
        ("Salesforce/instructblip-vicuna-7b", ("--targets", "Q-Former", "--attention", "eager")),
        ("llava-hf/llava-1.5-7b-hf", ("--optimizer", "paged-adamw", "--no-checkpointing")),
    ],
)
def test_the_line_for_qlora_core_train_is_one_that_it_accepts_and_means_the_same(
    model: str, more: tuple[str, ...], capsys: Capture
) -> None:
    from qlora_core.presets import PRESETS, Room, final_plan, first_plan
    from qlora_core.settings import Settings
    from qlora_core.settings_file import parse_word
    from qlora_doctor.memory.known import MODELS

    assert main(["plan", "--model", model, "--gpu", PRESETS[1], "--fit", "--format", "json", *more]) in (0, 1)
    proposal = json.loads(capsys.readouterr().out)["proposal"]
    words = shlex.split(proposal["command"])
    assert words[:3] == ["qlora-core", "train", model]
    given: dict[str, Any] = dict(parse_word(b) for a, b in pairwise(words) if a == "--set")
    asked = Settings(**given)
    path = next(p for p in MODELS.glob("*.json") if p.stem == model.rpartition("/")[2].lower())
    config = json.loads(path.read_text(encoding="utf-8"))["config"]
    images = None if "Qwen3-8B" in model else 1
    first = first_plan(config, asked, Room(100 * 2**30, "a large card"), images)
    plan = final_plan(first, asked, asked.max_length or 0, 1000, 1)
    assert plan.memory is not None and plan.breakdown is not None
    ours, theirs = proposal["settings"], plan.memory
    for field in (
        "batch",
        "length",
        "rank",
        "optimizer",
        "loss",
        "checkpointing",
        "attention",
        "targets",
        "max_pixels",
    ):
        assert getattr(theirs, field) == ours[field], field
    assert plan.breakdown.expected == proposal["expected"]


def run_of(place: Path, **memory: Any) -> Path:
    record = {"model": {"name": "Qwen/Qwen3-8B"}, "status": "finished", "memory": memory}
    (place / "run.json").write_text(json.dumps(record))
    return place


BEFORE = {"low": 7 * 2**30, "expected": 8 * 2**30, "high": 9 * 2**30, "allocated": 7 * 2**30}


def test_a_finished_run_is_compared_with_its_prediction(tmp_path: Path, capsys: Capture) -> None:
    place = run_of(tmp_path, predicted=BEFORE, measured={"allocated": 6 * 2**30, "reserved": 8 * 2**30})
    assert main(["plan", "--from-run", str(place)]) == 0
    said = capsys.readouterr().out
    assert "7.00 GiB" in said and "6.00 GiB" in said and "+16.7%" in said
    assert main(["plan", "--from-run", str(place / "run.json"), "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["predicted"], data["measured"]["allocated"]) == (BEFORE, 6 * 2**30)


def test_a_run_on_a_cpu_is_no_comparison_and_says_so(tmp_path: Path, capsys: Capture) -> None:
    place = run_of(tmp_path, predicted=BEFORE, measured={"kind": "resident", "resident": 3 * 2**30})
    assert main(["plan", "--from-run", str(place)]) == 0
    assert "this run was on a CPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        ({"predicted": BEFORE}, "did not come to its end"),
        ({"predicted": None, "measured": {"allocated": 1}}, "nothing was predicted"),
        ({"predicted": {"low": "x"}, "measured": {"allocated": 1}}, "not a run.json"),
    ],
)
def test_a_run_that_holds_no_comparison_is_refused_with_the_reason(
    memory: dict[str, Any], said: str, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["plan", "--from-run", str(run_of(tmp_path, **memory))]) == 2
    assert said in capsys.readouterr().err
