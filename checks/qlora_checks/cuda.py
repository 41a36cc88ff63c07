"""QD4: GPU, driver, CUDA."""

from __future__ import annotations

from qlora_doctor.registry import Check

CHECKS: tuple[Check, ...] = ()
