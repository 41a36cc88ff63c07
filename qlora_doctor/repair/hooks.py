"""Named moments of an apply or undo, where a test can stop the process as a crash would.

`QLORA_DOCTOR_TRACE` names a file that gets the name of each moment. `QLORA_DOCTOR_STOP_AT=NAME` kills this process
with SIGKILL when the moment comes; `NAME:interrupt` raises KeyboardInterrupt instead, `NAME:full` an OSError.
"""

from __future__ import annotations

import errno
import os
import signal


def at(name: str) -> None:
    """Says that a moment has come."""
    trace = os.environ.get("QLORA_DOCTOR_TRACE")
    if trace:
        with open(trace, "a", encoding="utf-8") as file:
            file.write(name + "\n")
    wanted, _, how = os.environ.get("QLORA_DOCTOR_STOP_AT", "").partition(":")
    if wanted != name:
        return
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
