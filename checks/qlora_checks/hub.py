"""QD2: the Hub and the network."""

from __future__ import annotations

from qlora_doctor.registry import Check

CHECKS: tuple[Check, ...] = ()
