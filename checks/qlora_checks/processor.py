"""QD3: processor and model files."""

from __future__ import annotations

from qlora_doctor.registry import Check

CHECKS: tuple[Check, ...] = ()
