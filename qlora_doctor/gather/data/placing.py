"""Where the images of a row stand: at `<image>` in the text, at a part that says so, else before the first question."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_doctor.gather.data.pictures import BadRow, Folder
from qlora_doctor.gather.data.rows import Image, Message

PLACEHOLDER = "<image>"


def place(
    messages: list[Message], images: tuple[Image, ...], folder: Folder, form: str
) -> tuple[list[Message], tuple[tuple[str, str, str], ...]]:
    """The images where `<image>` stands, or where a part says that there is one."""
    inside = any(isinstance(p, Image) for m in messages for p in m.parts)
    marks = (
        sum(p.count(PLACEHOLDER) for m in messages for p in m.parts if isinstance(p, str))
        if images or not inside
        else 0
    )
    if not (images or inside or marks):
        return messages, ()
    if not images and not inside:
        if form == "llava":
            raise BadRow("placeholders", "", f"{PLACEHOLDER} stands {marks} times in its text, and it names no image")
        what = f"{PLACEHOLDER} stands in its text and it has no image; a vision model stops on that"
        return messages, (("placeholder without image", "", what),)
    wanting = marks + sum(1 for m in messages for p in m.parts if isinstance(p, Image) and p.source is None)
    if images and not wanting and not inside:
        # Formats of single questions have no place for it; in a conversation one may have been lost.
        said = (("image put first", "", "its text has no <image>; its image was put first"),)
        return _put_first(messages, images), said if form in ("messages", "sharegpt", "llava") else ()
    if wanting != len(images):
        raise BadRow(
            "placeholders",
            "",
            f"it has {len(images)} images and {wanting} places for them ({PLACEHOLDER}); make them one number",
        )
    rest = iter(images)
    return [_filled(m, rest, folder, f"turn {n}", marks > 0) for n, m in enumerate(messages, 1)], ()


def _put_first(messages: list[Message], images: tuple[Image, ...]) -> list[Message]:
    place = next((n for n, m in enumerate(messages) if m.role == "user"), 0)
    first = messages[place]
    parts = tuple(p for p in first.parts if p != "")
    return [*messages[:place], Message(first.role, (*images, *parts), first.learn, first.input), *messages[place + 1 :]]


def _filled(message: Message, images: Iterator[Image], folder: Folder, where: str, marked: bool) -> Message:
    parts: list[str | Image] = []
    for part in message.parts:
        if isinstance(part, Image):
            parts.append(next(images) if part.source is None else folder.picture(part.source, where))
            continue
        if not marked:
            parts.append(part)
            continue
        for number, piece in enumerate(part.split(PLACEHOLDER)):
            if number:
                parts.append(next(images))
            # The line end around the placeholder belongs to it, as LLaVA's own data is written.
            kept = piece.removeprefix("\n") if number else piece
            kept = kept.removesuffix("\n") if number < part.count(PLACEHOLDER) else kept
            if kept:
                parts.append(kept)
    return Message(message.role, tuple(parts), message.learn, message.input)
