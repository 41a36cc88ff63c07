"""How far a download is, on stderr: one line that is written anew in a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

from qlora_doctor.download.fetch import show_size

ANEW = 0.5
LINES = 30.0


@dataclass(slots=True)
class Bar:
    """Call it with the bytes that are there and those that are needed; `end()` finishes the line."""

    name: str
    out: TextIO = field(default_factory=lambda: sys.stderr)
    started: float = field(default_factory=time.monotonic)
    first: int = -1
    written: float = 0.0
    open: bool = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        self.first = done if self.first < 0 else self.first
        terminal = self.out.isatty()
        if now - self.written < (ANEW if terminal else LINES) and self.written:
            return
        self.written = now
        rate = (done - self.first) / max(now - self.started, 0.001)
        left = f", {_time((total - done) / rate)} left" if rate > 0 and done < total else ""
        text = f"{self.name}: {show_size(done)} of {show_size(total)}, {show_size(int(rate))}/s{left}"
        self.out.write(f"\r{text[:100]:<100}" if terminal else f"{text}\n")
        self.out.flush()
        self.open = terminal

    def end(self) -> None:
        """Leaves the line."""
        if self.open:
            self.out.write("\n")
            self.out.flush()


def _time(seconds: float) -> str:
    minutes = int(seconds) // 60
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{int(seconds)} s"
