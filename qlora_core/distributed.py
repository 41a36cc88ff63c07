"""More than one process: what a launcher (torchrun, accelerate) set, and what a sharded run needs done differently."""

from __future__ import annotations

import os

from qlora_core.hardware import distributed
from qlora_core.settings import Settings
from qlora_doctor.errors import UsageError

FSDP = "ACCELERATE_USE_FSDP"


def sharded() -> bool:
    """Whether the weights of this run are sharded by FSDP over several processes."""
    return distributed() and os.environ.get(FSDP, "").lower() in ("1", "true", "yes")


def main_process() -> bool:
    """Whether this is the process that writes and prints: the only one, or the first of several."""
    return os.environ.get("RANK", "0") in ("", "0")


def settle_sharded(settings: Settings, given: frozenset[str]) -> tuple[Settings, tuple[str, ...]]:
    """The settings with which a sharded run works, and what was changed, for the user.

    The optimizers of bitsandbytes have no rule for sharded adapters: under FSDP2 the first step stops with "does not have
    a sharding strategy registered" (bitsandbytes 0.50.2). Seen by the load: 4-bit weights are stored in the dtype of the
    model, since accelerate shards no other (it leaves uint8 whole on each GPU, with a warning alone).

    Raises:
        UsageError: an optimizer of bitsandbytes was asked for by name.
    """
    if settings.fsdp and distributed():
        # transformers sets it as well, but only after the model is loaded.
        os.environ.setdefault(FSDP, "true")
    if not sharded() or not any(word in settings.optim for word in ("paged", "8bit", "4bit", "bnb")):
        return settings, ()
    if "optim" in given:
        raise UsageError(
            f"optim={settings.optim!r} does not work under FSDP: bitsandbytes cannot step sharded weights. Leave optim out, "
            "or take adamw_torch; the adapter is small, and its state is sharded"
        )
    return settings.but(optim="adamw_torch"), ("optim: adamw_torch, since bitsandbytes cannot step sharded weights",)
