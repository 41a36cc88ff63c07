"""The one form that every data format becomes: rows of chat messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlora_doctor.facts import RowFault


@dataclass(frozen=True, slots=True)
class Image:
    """One picture of a row: a path, the bytes of an image file, or a PIL image."""

    source: Any


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role`: system, user, assistant, tool; or text, for running text that is the whole row: no chat template is
    put around it and every token is learned. `parts`: text and images in the order they are said.

    `learn`: whether the loss asks for it; False is for an assistant turn that the data says not to learn from
    (`"weight": 0`, `"train": false`). Turns of other roles are never learned. `input` is set for the user's turn of an
    instruction row with an `input`: then `parts` are `(instruction, "\n\n" + input)`.
    """

    role: str
    parts: tuple[str | Image, ...]
    learn: bool = True
    input: str = ""

    @property
    def text(self) -> str:
        """The text parts, joined without a separator."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(part for part in self.parts if isinstance(part, Image))


@dataclass(frozen=True, slots=True)
class Row:
    """One example. `number` counts from 1 as the user counts (a line of JSONL, an element of a JSON list)."""

    messages: tuple[Message, ...]
    file: str = ""
    number: int = 0

    @property
    def where(self) -> str:
        """`train.jsonl row 17`."""
        return f"{self.file} row {self.number}".strip()

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(image for message in self.messages for image in message.images)

    @property
    def answer(self) -> str:
        """The text of the last assistant turn; empty where there is none."""
        return next((m.text for m in reversed(self.messages) if m.role == "assistant"), "")


@dataclass(frozen=True, slots=True, repr=False)
class Rows(Sequence[Row]):
    """What was read. `format` is told to the user; `notes` too (columns ignored, splits left out).

    `faults` are the rows that are not in `rows`, and what is doubtful in those that are. `encodings` maps a file to
    its encoding where that is not UTF-8.
    """

    rows: tuple[Row, ...]
    format: str
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    faults: tuple[RowFault, ...] = ()
    encodings: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Rows({len(self.rows):,} rows, {self.format or 'no format'}, {len(self.faults):,} faults)"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)
