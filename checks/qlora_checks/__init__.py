"""The checks that QLoRA Doctor ships. `CHECKS` is the one table; a check that is not in it does not exist."""

from __future__ import annotations

from qlora_checks import cuda, data, hub, load, processor, remote_code, training, versions
from qlora_doctor.registry import Check

CHECKS: tuple[Check, ...] = (
    *versions.CHECKS,
    *load.CHECKS,
    *remote_code.CHECKS,
    *hub.CHECKS,
    *processor.CHECKS,
    *cuda.CHECKS,
    *training.CHECKS,
    *data.CHECKS,
)
