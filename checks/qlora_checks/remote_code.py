"""QD1: code from the repository."""

from __future__ import annotations

from qlora_doctor.registry import Check

CHECKS: tuple[Check, ...] = ()
