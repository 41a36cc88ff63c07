"""The checks that QLoRA Doctor ships. `CHECKS` is the one table; a check that is not in it does not exist."""

from __future__ import annotations

from qlora_doctor.registry import Check

CHECKS: tuple[Check, ...] = ()
