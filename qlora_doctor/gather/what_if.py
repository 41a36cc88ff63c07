"""Hardware that is not here: the facts of this environment with another GPU or driver under it."""

from __future__ import annotations

import re
from dataclasses import replace

from qlora_doctor.errors import UsageError
from qlora_doctor.facts import Driver, Facts, Gpu, Library, Native, Unknown
from qlora_doctor.gather.cards import find_card

MOST = 64
"""GPUs that one question may imagine."""


def imagined(facts: Facts, gpu: str = "", driver: str = "") -> Facts:
    """`facts` as they would be with the card `gpu` (`RTX 4060`, `2x a100-80gb`) and the driver `driver` (`550.120`).

    Without a driver the one that is here stays; where there is none, what depends on it is left out.

    Raises:
        UsageError: no such card, or this is no driver version.
    """
    if gpu:
        count, name = _counted(gpu)
        card = find_card(name)
        one = Gpu(card.name, card.capability or None, card.memory, card.memory)
        gpus = tuple(Gpu(one.name, one.capability, one.memory_total, one.memory_free, index=n) for n in range(count))
        facts = facts.but(gpus=gpus, environ=_seen(facts))
        here = facts.state("driver")
        if here is None or isinstance(here, Unknown):
            facts = facts.but(driver=Unknown("no driver was named; add --driver", skipped=True))
    native = facts.state("native")
    if isinstance(native, Native):
        # The libcuda of this machine's driver is not the one that is asked about.
        facts = facts.but(native=replace(native, libcuda=(Library("libcuda.so.1", "", "", "driver", "what-if"),)))
    if driver:
        if not re.fullmatch(r"\d{3}(\.\d+){0,2}", driver):
            raise UsageError(f"--driver {driver}: expected a version as nvidia-smi shows it, such as 550.120")
        facts = facts.but(driver=Driver(driver, source="--driver"))
    return facts


def _counted(word: str) -> tuple[int, str]:
    match = re.fullmatch(r"\s*(\d+)\s*[xX×]\s*(.+)", word)
    if match is None:
        return 1, word
    count = int(match[1])
    if not 1 <= count <= MOST:
        raise UsageError(f"--gpu {word}: expected 1 to {MOST} cards")
    return count, match[2]


def _seen(facts: Facts) -> object:
    """The environment variables without the one that hides the GPUs of this machine."""
    environ = facts.state("environ")
    if isinstance(environ, Unknown):
        return environ
    return {name: value for name, value in environ.items() if name != "CUDA_VISIBLE_DEVICES"}
