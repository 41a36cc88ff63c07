"""A line on the terminal for what takes longer than a second: what is done, and for how long already."""

from __future__ import annotations

import sys
import threading
import time

from qlora_doctor.i18n import said

PATIENCE = 1.0
EVERY = 0.5


class Waiting:
    """Shows the stage that it is told, on stderr, once that has taken longer than PATIENCE, and wipes it afterwards.

    The cursor is never hidden and no mode of the terminal is changed, so there is nothing that Ctrl-C could leave behind.
    """

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._stage = ""
        self._since = 0.0
        self._drawn = 0
        self._thread: threading.Thread | None = None

    def __call__(self, stage: str) -> None:
        with self._change:
            if stage and not self._stage:
                self._since = time.monotonic()
            self._stage = stage
            if not stage:
                self._wipe()
                self._change.notify()
            elif self._thread is None:
                self._thread = threading.Thread(target=self._draw, name="waiting", daemon=True)
                self._thread.start()

    def _draw(self) -> None:
        with self._change:
            while self._stage:
                seconds = time.monotonic() - self._since
                if seconds >= PATIENCE:
                    self._write(said(self._stage), f" ... {seconds:.0f} s")
                self._change.wait(EVERY)
            self._thread = None

    def _write(self, stage: str, clock: str) -> None:
        import shutil

        from qlora_doctor.i18n import said
        from qlora_doctor.report.columns import cut, width
        from qlora_doctor.report.text import sanitized

        # A line that reaches the last column would wrap, and a second line is not wiped.
        room = max(shutil.get_terminal_size().columns - 1 - len(clock), 10)
        line = cut(sanitized(said(stage)), room) + clock
        # Spaces and not an escape sequence: an old console shows the sequence itself.
        sys.stderr.write("\r" + line + " " * (self._drawn - width(line)))
        sys.stderr.flush()
        self._drawn = width(line)

    def _wipe(self) -> None:
        if self._drawn:
            sys.stderr.write("\r" + " " * self._drawn + "\r")
            sys.stderr.flush()
            self._drawn = 0
