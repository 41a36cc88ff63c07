"""A rough time: the step's arithmetic over what the card does, with the range that real runs reach."""

from __future__ import annotations

from qlora_doctor.memory.formula import Breakdown
from qlora_doctor.memory.settings import Settings
from qlora_doctor.memory.shapes import Shape

# The share of the data sheet's dense 16-bit rate that 4-bit training reaches: short rows and small batches the low end.
EFFICIENCY = (0.20, 0.50)


def step_seconds(shape: Shape, s: Settings, b: Breakdown, tflops: float, bandwidth: float) -> tuple[float, float]:
    """Seconds a step, fast and slow. `tflops` dense 16-bit, `bandwidth` in GB/s.

    Two operations a weight and token forward, two for the gradient of the activations, two more where checkpointing
    runs the forward again, and two for weight gradients in full fine-tuning; to this the time to unpack the weights.
    """
    passes = 2 + s.checkpointing + (s.method == "full")
    learns = sum(p.parameters for p in shape.parts if p.name in ("language model", "head"))
    vision = sum(p.parameters for p in shape.parts if p.name in ("vision tower", "Q-Former"))
    tokens = s.batch * b.tokens
    patches = s.batch * b.image_tokens * (shape.images.merge**2 if shape.images else 1)
    work = 2.0 * passes * learns * tokens + 2.0 * vision * patches
    unpack = (passes * learns * 2.5 / (bandwidth * 1e9)) if s.bits == 4 and s.method == "qlora" else 0.0
    fast, slow = (work / (tflops * 1e12 * share) + unpack for share in reversed(EFFICIENCY))
    return fast, slow
