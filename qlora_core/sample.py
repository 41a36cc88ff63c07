"""Samples what a base says with its adapter and without it, for `qlora_doctor.logs.adapter` to judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from qlora_core.chat import Sampling, Speaker, load_speaker, question
from qlora_doctor.logs.answers import Sample

PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three fruits.",
    "用一句话介绍你自己。",
)
"""Short questions that any instruction-tuned model answers and ends."""

TOKENS = 96


def sample(
    adapter: str,
    base: str = "",
    prompts: Sequence[str] = PROMPTS,
    tokens: int = TOKENS,
    told: Callable[[str], None] | None = None,
    **load: Any,
) -> tuple[Sample, ...]:
    """The answers to `prompts`, greedy, with the adapter and with it switched off.

    Args:
        adapter: an adapter folder. base: its base model, where it is not the one that it names.
        tokens: at most so many tokens an answer.
        told: hears each prompt before it is answered.
        load: goes to `load_quantized`.

    Raises:
        UsageError: a folder that cannot be used, or a model that answers about images only.
        LoadBlocked, NotVerified: as from `load_quantized`.
    """
    speaker = load_speaker(base or adapter, adapter if base else None, **load)
    how = Sampling(max_new_tokens=tokens)
    found = []
    for prompt in prompts:
        if told is not None:
            told(prompt)
        with_it = _said(speaker, prompt, how, adapted=True)
        without = _said(speaker, prompt, how, adapted=False)
        found.append(Sample(prompt, with_it[0], without[0], with_it[1], without[1]))
    return tuple(found)


def _said(speaker: Speaker, prompt: str, how: Sampling, *, adapted: bool) -> tuple[str, bool]:
    """The answer, and whether the model ended it."""
    with nullcontext() if adapted else speaker.model.disable_adapter():
        answer = speaker.answer([question(prompt)], how)
    return answer.text, answer.finish == "stop"
