"""The one form that every data format becomes, and what a row becomes for the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlora_doctor.gather.data.rows import Image, Message, Row, Rows

__all__ = ["Encoded", "Image", "Message", "Row", "Rows"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as the model gets it.

    `input_ids` and `labels` have one length (an encoder-decoder's labels have their own); a label of -100 is not
    learned. `extras` are the other tensors of this one row, without a batch axis of their own where the processor
    gives them none (`pixel_values`, `image_grid_thw`, `qformer_input_ids`); empty where encoded for the audit alone.
    """

    input_ids: Sequence[int]
    labels: Sequence[int]
    extras: Mapping[str, Any] = field(default_factory=dict)
    images: int = 0

    @property
    def supervised(self) -> int:
        """How many labels are learned."""
        return sum(label != -100 for label in self.labels)
