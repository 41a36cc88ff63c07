"""Answers of a model to rows of the data: samples to look at before and after training, and metrics over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from qlora_core.data.rows import Row
from qlora_doctor.errors import UsageError

METRICS = ("exact_match", "bleu", "rouge")
# Prompts answered together: a short answer reads all weights for each token, however many rows ask.
AT_ONCE = 16
Measure = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One row answered: what was asked, what the data say, what the model said before and after training."""

    where: str
    question: str
    expected: str
    before: str = ""
    after: str = ""

    def __str__(self) -> str:
        lines = [f"  asked   {_short(self.question)}", f"  data    {_short(self.expected)}"]
        return "\n".join([*lines, f"  before  {_short(self.before)}", f"  after   {_short(self.after)}"])


def question_of(row: Row) -> str:
    """The turn that the last answer of a row answers; a picture shows as `[image]`."""
    asked = next((m for m in reversed(row.messages[:-1]) if m.role != "assistant"), None)
    if asked is None:
        return ""
    return "".join(part if isinstance(part, str) else "[image]" for part in asked.parts)


def answer(model: Any, encoder: Any, processor: Any, rows: Sequence[Row], *, max_new_tokens: int) -> list[str]:
    """The model's greedy answer to each row's last question, as the row is put to it in training."""
    import torch

    words = getattr(processor, "tokenizer", processor)
    device = next(model.parameters()).device
    was_training, given = model.training, [""] * len(rows)
    model.eval()
    try:
        for places, made in _alike([encoder.prompt(row) for row in rows]):
            inputs = {name: placed(value, device, model) for name, value in made.items()}
            with torch.no_grad():
                out = model.generate(
                    **inputs,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    use_cache=True,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                )
            prompts = inputs["input_ids"]
            for place, prompt, ids in zip(places, prompts, out, strict=True):
                # A decoder repeats the prompt before its answer; an encoder-decoder does not.
                start = len(prompt) if torch.equal(ids[: len(prompt)], prompt) else 0
                given[place] = words.decode(ids[start:], skip_special_tokens=True).strip()
    finally:
        model.train(was_training)
    return given


def _alike(prompts: Sequence[Mapping[str, Any]]) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Prompts of text alone and of one length in one batch, so that nothing is padded; each other prompt by itself."""
    import torch

    groups: dict[Any, list[int]] = {}
    for place, prompt in enumerate(prompts):
        plain = set(prompt) <= {"input_ids", "attention_mask"}
        groups.setdefault(tuple(prompt["input_ids"].shape) if plain else place, []).append(place)
    for places in groups.values():
        for start in range(0, len(places), AT_ONCE):
            part = places[start : start + AT_ONCE]
            names = prompts[part[0]]
            yield part, dict(names) if len(part) == 1 else {n: torch.cat([prompts[i][n] for i in part]) for n in names}


def check_metrics(names: Sequence[str]) -> None:
    """Raises UsageError for a metric that is not known, or needs a package that is not installed."""
    for name in names:
        if name not in METRICS:
            raise UsageError(
                f"metrics: {name!r} is not known; there are {', '.join(METRICS)}, or measure= for your own"
            )
        if name != "exact_match" and find_spec("evaluate") is None:
            raise UsageError(f"metrics: {name} needs the package evaluate (pip install evaluate)")


def measure(names: Sequence[str], said: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """The named metrics over answers and what the data say; a share or score each."""
    scores: dict[str, float] = {}
    for name in names:
        if name == "exact_match":
            scores[name] = exact_match(said, expected)
        else:
            # It is in no extra of ours, so nothing is known of its types.
            got = import_module("evaluate").load(name).compute(predictions=list(said), references=list(expected)) or {}
            scores |= {k: float(v) for k, v in got.items() if isinstance(v, (int, float))}
    return scores


def exact_match(said: Sequence[str], expected: Sequence[str]) -> float:
    """The share of answers that are the expected ones, white space aside."""
    if not expected:
        return 0.0
    right = sum(" ".join(a.split()) == " ".join(b.split()) for a, b in zip(said, expected, strict=True))
    return right / len(expected)


def placed(value: Any, device: Any, model: Any) -> Any:
    """A value on the device; a picture also in the dtype that the model computes in."""
    import torch

    if not torch.is_tensor(value):
        return value
    if not value.is_floating_point():
        return value.to(device)
    kinds = (p.dtype for n, p in model.named_parameters() if p.is_floating_point() and "lora_" not in n)
    return value.to(device, next(kinds, value.dtype))


def _short(text: str, most: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."
