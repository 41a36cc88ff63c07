"""Where the LoRA modules sit and what they weigh: for a report, and for your own loop."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from qlora_core import adapters


@dataclass(frozen=True, slots=True)
class Scope:
    """`modules` and `parameters` by part of the model; `other_trainable` is what learns and is not LoRA."""

    modules: dict[str, int]
    parameters: dict[str, int]
    dtypes: tuple[str, ...]
    other_trainable: int
    total: int

    @property
    def trainable(self) -> int:
        return sum(self.parameters.values()) + self.other_trainable

    def __str__(self) -> str:
        if not self.trainable:
            return "nothing is trainable"
        lines = [f"{name}: {self.modules[name]} modules, {self.parameters[name]:,} parameters" for name in self.modules]
        if self.other_trainable:
            lines.append(f"trainable beside LoRA: {self.other_trainable:,} parameters")
        share = f"{100 * self.trainable / self.total:.3g} %" if self.total else "?"
        return "\n".join([*lines, f"{self.trainable:,} of {self.total:,} learn ({share}), in {', '.join(self.dtypes)}"])


def lora_scope(model: Any) -> Scope:
    """Counts by part (`language model`, `vision tower`, `projector`, `Q-Former`, `other`), as `adapters.placed` names them.

    4-bit weights count as the weights they stand for.
    """
    family = adapters._family(model)
    parameters: Counter[str] = Counter()
    dtypes, other, total = set(), 0, 0
    for name, parameter in model.named_parameters():
        count = parameter.numel()
        state = getattr(parameter, "quant_state", None)
        total += state.shape.numel() if state is not None else count
        if not parameter.requires_grad:
            continue
        dtypes.add(str(parameter.dtype).removeprefix("torch."))
        bare = re.sub(r"^base_model\.model\.", "", name)
        if "lora_" in name:
            parameters[adapters._part(bare, family)] += count
        else:
            other += count
    modules = adapters.placed(model)
    kept = {part: parameters[part] for part in modules}
    other += sum(count for part, count in parameters.items() if part not in kept)
    return Scope(modules, kept, tuple(sorted(dtypes)), other, total)
