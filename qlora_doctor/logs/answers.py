"""What the answers of an adapter show, once `qlora-core diagnose` has sampled them with the adapter on and off."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora_doctor.errors import UsageError
from qlora_doctor.finding import Finding
from qlora_doctor.wire import from_data

# Words of templates that a model must not say itself, and that no ordinary text holds.
MARKS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "[INST]", "[/INST]", "### Response:", "### Instruction:", "USER:", "ASSISTANT:", "<start_of_turn>")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """One output. `base` is what the model says without the adapter; `ended`: it stopped by itself."""

    prompt: str
    output: str
    base: str = ""
    ended: bool = True
    base_ended: bool = True


def read_samples(path: str) -> tuple[Sample, ...]:
    """The samples that `qlora-core diagnose --save` wrote. Raises UsageError."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        rows = data["samples"] if isinstance(data, Mapping) and "samples" in data else data
        if not isinstance(rows, list):
            raise UsageError(f"--samples {path}: it holds no list of samples; qlora-core diagnose --save writes one")
        return tuple(from_data(Sample, row, f"$.samples[{i}]") for i, row in enumerate(rows))
    except OSError as error:
        raise UsageError(f"--samples {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"--samples {path}: {error}") from None


def repeats(text: str, times: int = 4) -> str:
    """What a text says over and over at its end; "" where it does not."""
    words = text.split()
    for width in range(1, 17):
        unit = words[-width:]
        if (
            len(words) >= width * times
            and len(" ".join(unit)) * times >= 24
            and words[-width * times :] == unit * times
        ):
            return " ".join(unit)
    # A loop without a period: many words, and hardly any different ones.
    bare = [word for word in (w.strip(",.;:!?") for w in words) if word]
    if len(bare) >= 16 and len(set(bare)) <= len(bare) // 4:
        return " ".join(dict.fromkeys(bare))
    match = re.search(r"(.{1,40}?)\1{7,}\s*$", text[-2000:], re.DOTALL)
    return match[1] if match and len(match[0]) >= 24 and match[1].strip() else ""


def judge_samples(samples: Sequence[Sample]) -> Iterator[Finding]:
    """What the outputs of an adapter show. A fault that the base has as well is not the adapter's."""
    if not samples:
        return
    total = len(samples)
    looping = [s for s in samples if repeats(s.output) and not repeats(s.base)]
    if 2 * len(looping) >= total:
        yield Finding(
            "{count} of {all} answers repeat themselves ({unit}), and the base's do not: it was trained too long or with too "
            "high a learning rate, or never saw an end token. Take an earlier checkpoint; check that the end token is not "
            "masked in the labels",
            {"count": len(looping), "all": total, "unit": repeats(looping[0].output)[:60]},
            "error",
            name="adapter-repeats",
        )
    ending = [s for s in samples if s.base_ended]
    if 2 * len(ending) >= total and ending and not any(s.ended for s in ending):
        yield Finding(
            "none of the {all} answers ends, and the base's do: the end token was masked in training (the padding token is "
            "the end token, or the template's end is left out). Give padding a token of its own and train again",
            {"all": len(ending)},
            "error",
            name="adapter-never-ends",
        )
    marked = [(s, mark) for s in samples for mark in MARKS if mark in s.output and mark not in s.base]
    if 2 * len({id(s) for s, _ in marked}) >= total:
        yield Finding(
            "answers hold the marks of a chat template as text ({mark}): the prompt is built with another template than the "
            "one it was trained on. Use the tokenizer and template of the adapter's folder",
            {"mark": marked[0][1]},
            "error",
            name="adapter-wrong-template",
        )
    if all(s.base and s.output == s.base for s in samples):
        yield Finding(
            "all {all} answers are those of the base, word for word: the adapter changes nothing, or is not active. Look at "
            "lora_B (untrained?) and at the keys that were loaded",
            {"all": total},
            "warning",
            name="adapter-changes-nothing",
        )
    empty = [s for s in samples if not s.output.strip() and s.base.strip()]
    if empty and len(empty) == total:
        yield Finding(
            "all {all} answers are empty, and the base's are not: it learnt to end at once. Are the answers in the labels, or "
            "only the end token?",
            {"all": total},
            "error",
            name="adapter-says-nothing",
        )
