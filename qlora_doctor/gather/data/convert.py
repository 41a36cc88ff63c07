"""One record of a known format as a row of chat messages, or what is wrong with it and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from qlora_doctor.gather.data.formats import (
    ANSWERS,
    CAPTIONS,
    FORMATS,
    OUTPUTS,
    PREFERENCE,
    PROMPTS,
    QUESTIONS,
    TURNS,
    image_key,
    kind_of,
    preference_keys,
    recognise,
    unknown,
)
from qlora_doctor.gather.data.pictures import BadRow, Folder, pictures
from qlora_doctor.gather.data.placing import place
from qlora_doctor.gather.data.rows import Image, Message, Row

_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system", "bot": "assistant",
    "chatgpt": "assistant", "model": "assistant", "bing": "assistant", "tool": "tool", "observation": "tool",
    "developer": "system", "function": "tool", "ipython": "tool",
}  # fmt: skip
_CALLS = ("function_call", "tool_calls", "tool_call")
# What a row may carry beside its text without a word: identifiers and provenance.
QUIET = frozenset(
    (
        "id", "idx", "index", "uid", "uuid", "source", "sources", "category", "categories", "task", "tags", "meta",
        "metadata", "language", "lang", "score", "topic", "type", "dataset", "split", "difficulty", "url", "title",
        "license", "model", "width", "height", "question_id", "image_id", "created_at", "timestamp",
    )
)  # fmt: skip


def convert(record: Any, form: str, folder: Folder) -> tuple[Row, tuple[tuple[str, str, str], ...]]:
    """The row, and `(kind, field, detail)` of what is doubtful in it. `form` is a key of FORMATS.

    Raises:
        BadRow: it cannot be used; says the field, and what to do.
    """
    if not isinstance(record, Mapping):
        raise BadRow("malformed", "", unknown(record))
    keys = preference_keys(record)
    if keys:
        raise BadRow("preference", keys[1], PREFERENCE.replace("{keys}", " and ".join(keys)))
    found = recognise(record)
    if form == "qa-markdown":
        found = form
    if found != form and {found, form} != {"llava", "sharegpt"}:
        _refuse_other(record, found, form)
    messages = list(_CONVERTERS[form](record))
    if not any(m.role in ("assistant", "text") for m in messages):
        raise BadRow(
            "no answer", "", "nobody answers in it, so there is nothing to learn; add an assistant turn or take it out"
        )
    images = pictures(record, image_key(record), folder) if form not in ("text", "qa-markdown") else ()
    messages, placed = place(messages, images, folder, form)
    _refuse_broken_text(messages)
    return Row(tuple(messages)), (*_judge(messages), *placed)


def _refuse_other(record: Mapping[str, Any], found: str, form: str) -> None:
    if found:
        raise BadRow(
            "malformed", "", f"it is {FORMATS[found]}, and the file is {FORMATS[form]}; put the two in separate files"
        )
    wanted = {
        "alpaca": ("instruction", "output"), "prompt-completion": ("prompt", "completion"), "qa": ("question", "answer"),
        "vqa": ("image", "question", "answer"), "caption": ("image", "caption"), "text": ("text",), "messages": ("messages",),
        "sharegpt": ("conversations",), "llava": ("conversations",),
    }.get(form, ())  # fmt: skip
    missing = [key for key in wanted if key not in record]
    if not missing:
        key = next((k for k in TURNS if k in record), wanted[0])
        raise BadRow("malformed", key, f"it is {kind_of(record.get(key))}; it should be a list of turns")
    keys = ", ".join(str(key)[:40] for key in list(record)[:8])
    raise BadRow(
        "malformed", missing[0], f"it is missing: this file is {FORMATS[form]}, and this row has {keys or 'no keys'}"
    )


def text_of(record: Mapping[str, Any], key: str, where: str = "") -> str:
    """A field that must be text; "" where it is null."""
    value = record.get(key)
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    raise BadRow("not text", where or key, f"it is {kind_of(value)}, and text is wanted; write it as a string")


def _first(record: Mapping[str, Any], keys: Sequence[str]) -> str:
    return next((key for key in keys if key in record), keys[0])


def _system(record: Mapping[str, Any]) -> list[Message]:
    key = _first(record, ("system", "system_prompt"))
    text = text_of(record, key)
    return [Message("system", (text,))] if text.strip() else []


def _alpaca(record: Mapping[str, Any]) -> list[Message]:
    messages = _system(record)
    for number, pair in enumerate(record.get("history") or ()):
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(t, str) for t in pair):
            raise BadRow("malformed", f"history[{number}]", "it should be a pair of texts, question and answer")
        messages += [Message("user", (pair[0],)), Message("assistant", (pair[1],))]
    asked = text_of(record, "instruction")
    more = text_of(record, _first(record, ("input", "context")))
    answer = Message("assistant", (text_of(record, _first(record, OUTPUTS)),))
    if not more.strip():
        return [*messages, Message("user", (asked,)), answer]
    if not asked.strip():
        return [*messages, Message("user", (more,)), answer]
    return [*messages, Message("user", (asked, "\n\n" + more), input=more), answer]


def _pair(questions: Sequence[str], answers: Sequence[str]) -> Callable[[Mapping[str, Any]], list[Message]]:
    def convert(record: Mapping[str, Any]) -> list[Message]:
        asked, answered = _first(record, questions), _first(record, answers)
        given, reply = record.get(asked), record.get(answered)
        if _is_turns(given) or _is_turns(reply):
            return [
                *(
                    _messages({"messages": given}, asked)
                    if _is_turns(given)
                    else [Message("user", (text_of(record, asked),))]
                ),
                *(
                    _messages({"messages": reply}, answered)
                    if _is_turns(reply)
                    else [Message("assistant", (text_of(record, answered),))]
                ),
            ]
        context = text_of(record, "context") if "question" in questions else ""
        question = text_of(record, asked)
        question = f"{context}\n\n{question}" if context.strip() else question
        return [*_system(record), Message("user", (question,)), Message("assistant", (_one(record, answered),))]

    return convert


def _one(record: Mapping[str, Any], key: str) -> str:
    """An answer; of a list of texts (SQuAD has it under `text`) the one that most gave, the first of them."""
    value = record.get(key)
    value = value["text"] if isinstance(value, Mapping) and "text" in value else value
    value = value if not isinstance(value, str) else [value]
    if isinstance(value, Sequence) and not isinstance(value, str) and value and all(isinstance(v, str) for v in value):
        return str(max(value, key=list(value).count))
    return text_of(record, key)


def _is_turns(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and isinstance(value[0], Mapping)


def _caption(record: Mapping[str, Any]) -> list[Message]:
    return [
        Message("user", (text_of(record, "prompt"),)),
        Message("assistant", (_one(record, _first(record, CAPTIONS)),)),
    ]


def _text(record: Mapping[str, Any]) -> list[Message]:
    return [Message("text", (text_of(record, "text"),))]


def _turns(record: Mapping[str, Any]) -> tuple[str, Sequence[Any]]:
    key = _first(record, TURNS)
    turns = record.get(key)
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise BadRow("malformed", key, f"it is {kind_of(turns)}; it should be a list of turns")
    if not turns:
        raise BadRow("no answer", key, "it is an empty list; take the row out")
    return key, turns


def _sharegpt(record: Mapping[str, Any]) -> list[Message]:
    key, turns = _turns(record)
    messages = _system(record)
    for number, turn in enumerate(turns):
        where = f"{key}[{number}]"
        if not isinstance(turn, Mapping):
            raise BadRow("malformed", where, f"it is {kind_of(turn)}; a turn is an object with `from` and `value`")
        if "role" in turn:
            messages.append(_message(turn, where))
            continue
        for name in ("from", "value"):
            if name not in turn:
                raise BadRow(
                    "malformed", f"{where}.{name}", "it is missing; a turn has `from` (human or gpt) and `value`"
                )
        role = _role(turn["from"], f"{where}.from")
        messages.append(Message(role, (text_of(turn, "value", f"{where}.value"),), _learned(turn)))
    return messages


def _messages(record: Mapping[str, Any], key: str = "") -> list[Message]:
    found, turns = _turns(record)
    messages = _system(record)
    for number, turn in enumerate(turns):
        where = f"{key or found}[{number}]"
        if not isinstance(turn, Mapping):
            raise BadRow("malformed", where, f"it is {kind_of(turn)}; a turn is an object with `role` and `content`")
        messages.append(_message(turn, where))
    return messages


def _message(turn: Mapping[str, Any], where: str) -> Message:
    for name in ("role", "content"):
        if name not in turn and not (name == "content" and any(turn.get(c) for c in _CALLS)):
            raise BadRow(
                "malformed", f"{where}.{name}", "it is missing; a turn has `role` (user or assistant) and `content`"
            )
    if any(turn.get(name) for name in _CALLS):
        raise BadRow("malformed", f"{where}.tool_calls", "calls of tools are not trained here; take the row out")
    role = _role(turn["role"], f"{where}.role")
    content = turn.get("content")
    parts: tuple[str | Image, ...] = (text_of(turn, "content", f"{where}.content"),) if not _is_list(content) else ()
    parts = parts or _parts(turn["content"], f"{where}.content")
    thought = turn.get("reasoning_content")
    if role == "assistant" and isinstance(thought, str) and thought.strip():
        parts = (f"<think>\n{thought.strip()}\n</think>\n\n", *parts)
    return Message(role, parts, _learned(turn))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _parts(content: Sequence[Any], where: str) -> tuple[str | Image, ...]:
    parts: list[str | Image] = []
    for number, part in enumerate(content):
        here = f"{where}[{number}]"
        if isinstance(part, str):
            parts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise BadRow("malformed", here, f"it is {kind_of(part)}; a part is text or an object with `type`")
        kind = part.get("type")
        if kind in ("text", "input_text", "output_text") or (kind is None and "text" in part):
            parts.append(text_of(part, "text", f"{here}.text"))
        elif kind in ("image", "image_url", "input_image"):
            value = next((part[k] for k in ("image", "image_url", "url", "path", "bytes") if part.get(k)), None)
            value = value.get("url") if isinstance(value, Mapping) and "url" in value else value
            parts.append(Image(value))  # None: the next of the row's own images
        else:
            raise BadRow(
                "malformed", f"{here}.type", f"{str(kind)[:30]!r} is no part that can be trained; text and image are"
            )
    return tuple(parts)


def _role(value: Any, where: str) -> str:
    role = _ROLES.get(value.strip().lower()) if isinstance(value, str) else None
    if role is not None:
        return role
    if value in _CALLS:
        raise BadRow("malformed", where, "calls of tools are not trained here; take the row out")
    raise BadRow(
        "malformed", where, f"{str(value)[:30]!r} is no role; system, user (human), assistant (gpt) and tool are"
    )


def _learned(turn: Mapping[str, Any]) -> bool:
    return not any(
        turn.get(key, 1) in (0, False) and turn.get(key, 1) is not None for key in ("weight", "train", "loss")
    )


_CONVERTERS: Mapping[str, Callable[[Mapping[str, Any]], list[Message]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "llava": _sharegpt,
    "alpaca": _alpaca,
    "prompt-completion": _pair(("prompt",), PROMPTS),
    "vqa": _pair(QUESTIONS, ANSWERS),
    "qa": _pair(QUESTIONS, ANSWERS),
    "qa-markdown": _pair(QUESTIONS, ANSWERS),
    "caption": _caption,
    "text": _text,
}


def _judge(messages: Sequence[Message]) -> list[tuple[str, str, str]]:
    """What is doubtful in the order and the content of the turns."""
    doubts = []
    learned = [m for m in messages if m.role in ("assistant", "text") and m.learn]
    if not learned:
        doubts.append(("masked", "", "its answers are all marked as not to be learned (weight, train or loss)"))
    if any(not m.text.strip() for m in learned):
        doubts.append(("empty answer", "", "an answer is empty"))
    asked = [m for m in messages if m.role == "user"]
    if asked and not any(m.text.strip() or m.images for m in asked):
        doubts.append(("empty question", "", "the question is empty"))
    spoken = [m.role for m in messages if m.role != "system"]
    if messages[-1].role not in ("assistant", "text"):
        doubts.append(("turn order", "", "its last turn is not an answer; nothing is learned from that turn"))
    elif any(a == b != "tool" for a, b in pairwise(spoken)):
        doubts.append(("turn order", "", "two turns in a row are of one role; many chat templates refuse that"))
    elif spoken[0] == "assistant" and asked:
        doubts.append(("turn order", "", "the assistant speaks first; many chat templates refuse that"))
    return doubts


def _refuse_broken_text(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages):
        for part in message.parts:
            if isinstance(part, str) and not part.isascii():
                try:
                    part.encode()
                except UnicodeEncodeError:
                    raise BadRow(
                        "malformed",
                        f"turn {number + 1}",
                        "it holds half a character (a lone surrogate such as \\ud83d); write it anew",
                    ) from None
