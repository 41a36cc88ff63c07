"""Which format the records of a file have. Told to the user, and never guessed from one key alone where two fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FORMATS: Mapping[str, str] = {
    "messages": "messages (OpenAI: role and content)",
    "sharegpt": "ShareGPT (conversations of from and value)",
    "llava": "LLaVA (image and conversations, <image> in the text)",
    "alpaca": "Alpaca (instruction, input, output)",
    "prompt-completion": "prompt and completion",
    "vqa": "visual question answering (image, question, answer)",
    "caption": "image and caption",
    "qa": "question and answer (after its context, where it has one)",
    "qa-markdown": "Markdown of Q1: ... and A1: ...",
    "text": "running text (a text column; every token is learned)",
}

IMAGE_KEYS = (
    "image", "images", "image_path", "image_paths", "img", "img_path", "image_file", "image_url", "file_name", "picture",
)  # fmt: skip
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TURNS = ("messages", "conversations", "conversation")
QUESTIONS = ("question", "query")
ANSWERS = ("answer", "response", "answers")
CAPTIONS = ("caption", "text", "captions")
OUTPUTS = ("output", "response", "answer")
PROMPTS = ("completion", "response", "answer", "output")
_SYSTEM = ("system", "system_prompt")
# The fields that each format takes; what a file has beside them is told.
USED: Mapping[str, frozenset[str]] = {
    "messages": frozenset((*TURNS, *_SYSTEM, *IMAGE_KEYS)),
    "sharegpt": frozenset((*TURNS, *_SYSTEM, *IMAGE_KEYS)),
    "llava": frozenset((*TURNS, *_SYSTEM, *IMAGE_KEYS)),
    "alpaca": frozenset(("instruction", "input", "context", "history", *OUTPUTS, *_SYSTEM, *IMAGE_KEYS)),
    "prompt-completion": frozenset(("prompt", *PROMPTS, *_SYSTEM, *IMAGE_KEYS)),
    "vqa": frozenset((*QUESTIONS, *ANSWERS, *_SYSTEM, "context", *IMAGE_KEYS)),
    "caption": frozenset((*CAPTIONS, "prompt", *IMAGE_KEYS)),
    "qa": frozenset((*QUESTIONS, *ANSWERS, *_SYSTEM, "context", *IMAGE_KEYS)),
    "qa-markdown": frozenset(("question", "answer")),
    "text": frozenset(("text",)),
}
_PREFERENCE = (("chosen", "rejected"), ("chosen_response", "rejected_response"), ("response_j", "response_k"))
PREFERENCE = (
    "it holds preferences ({keys}): that is data for DPO, KTO or a reward model, and here only supervised fine-tuning is "
    "done. Keep the preferred answer as `output` and train on that, or use a preference trainer (TRL's DPOTrainer)"
)


def recognise(record: Any) -> str:
    """The format of one record; `preference` for data of another kind of training, "" where it is none that is known."""
    if not isinstance(record, Mapping):
        return ""
    if preference_keys(record):
        return "preference"
    turns = next((record[key] for key in TURNS if isinstance(record.get(key), Sequence)), None)
    if turns is not None and not isinstance(turns, str):
        return _of_turns(record, turns)
    image = image_key(record)
    if ("instruction" in record or "input" in record) and any(key in record for key in OUTPUTS):
        return "alpaca"
    if "prompt" in record and any(key in record for key in PROMPTS):
        return "prompt-completion"
    if any(key in record for key in QUESTIONS) and any(key in record for key in ANSWERS):
        return "vqa" if image else "qa"
    if image and any(key in record for key in CAPTIONS):
        return "caption"
    return "text" if "text" in record else ""


def preference_keys(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys that make a record one of preferences; empty where it is none."""
    for pair in _PREFERENCE:
        if all(key in record for key in pair):
            return pair
    if "prompt" in record and "completion" in record and isinstance(record.get("label"), bool):
        return ("completion", "label")
    return ()


def image_key(record: Mapping[str, Any]) -> str:
    """The key that holds the images of a record; "" for none. A key that is there and empty counts.

    `file_name` is the image folder's word for it, and many a text corpus's word for where a text is from.
    """
    for key in IMAGE_KEYS:
        if key in record and (key != "file_name" or str(record[key]).lower().endswith(IMAGE_SUFFIXES)):
            return key
    return ""


def _of_turns(record: Mapping[str, Any], turns: Sequence[Any]) -> str:
    first = turns[0] if turns else {}
    if isinstance(first, Mapping) and "role" in first:
        return "messages"
    if isinstance(first, Mapping) and "from" in first:
        return "llava" if image_key(record) else "sharegpt"
    return "messages" if "messages" in record else "llava" if image_key(record) else "sharegpt"


def majority(records: Iterable[Any]) -> str:
    """The format of a file: that of most of its first records. LLaVA where some have images and some do not."""
    counts: dict[str, int] = {}
    for record in records:
        found = recognise(record)
        if found:
            counts[found] = counts.get(found, 0) + 1
    if "llava" in counts:
        counts["llava"] += counts.pop("sharegpt", 0)
    return max(counts, key=lambda name: counts[name]) if counts else ""


def unknown(record: Any) -> str:
    """What a record is that has no known format, and what the formats ask for."""
    if not isinstance(record, Mapping):
        return f"it is {kind_of(record)}, not an object with named fields"
    keys = ", ".join(str(key)[:40] for key in list(record)[:8])
    have = f"its keys are {keys}" if keys else "it is empty"
    return (
        f"{have}, which is no format that is known. Known are: messages; conversations; instruction and output; prompt and "
        "completion; question and answer; image with question and answer, or with caption; text"
    )


def kind_of(value: Any) -> str:
    """A value's type, as JSON calls it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "an object" if isinstance(value, Mapping) else "a list" if isinstance(value, Sequence) else "no JSON value"
