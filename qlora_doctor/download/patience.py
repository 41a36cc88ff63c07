"""How long a download is waited for, and how often it is tried."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds, bytes a second, and counts.

    `connect` bounds an answer to the listing. A transfer with less than `floor` bytes a second for `stall` seconds is
    started again where it stopped. `attempts` are those in a row that bring not one byte. The pauses between them
    double from `first` to `longest`, each times a random number between a half and one; a server that asks for more
    than `longest` (Retry-After) is not waited for. `at_once` files are fetched at the same time.
    """

    connect: float = 15.0
    stall: float = 30.0
    floor: float = 1024.0
    attempts: int = 5
    first: float = 1.0
    longest: float = 60.0
    at_once: int = 4

    def pause(self, failures: int) -> float:
        """The seconds to wait after so many failures in a row."""
        whole = min(self.longest, self.first * 2.0 ** min(failures - 1, 20))
        return whole * random.uniform(0.5, 1.0)
