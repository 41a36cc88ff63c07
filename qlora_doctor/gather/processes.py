"""Programs that may hang, crash or print without end: started, waited for, and ended with what they started."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from qlora_doctor.gather.probe import redact

if TYPE_CHECKING:
    from subprocess import Popen

LARGEST = 64 << 20
"""Bytes of a facts file, or of a program's output, that are kept at most; real facts have about 100 KB."""


def start(command: list[str], stdin: Any = None, **environ: str) -> Popen[bytes]:
    """A program with its streams caught, in a session of its own, and with these variables added.

    Raises OSError where it cannot be started.
    """
    import subprocess

    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=os.name != "nt",
        env={**os.environ, **environ} if environ else None,
    )


def finish(process: Popen[bytes], timeout: float, limit: int = LARGEST) -> tuple[bool, bytes, bytes]:
    """Waits for the end: (whether it came in time, output, errors). Keeps `limit` bytes of each stream at most."""
    import subprocess
    import threading

    kept: tuple[bytearray, bytearray] = (bytearray(), bytearray())

    def drain(stream: Any, into: bytearray) -> None:
        while chunk := stream.read1(1 << 16):
            into.extend(chunk[: limit - len(into)])

    readers = [
        threading.Thread(target=drain, args=pair, daemon=True)
        for pair in zip((process.stdout, process.stderr), kept, strict=True)
    ]
    for reader in readers:
        reader.start()
    in_time = True
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        in_time = False
    if not in_time:
        kill(process)
    # Something that the interpreter started and left behind may hold the pipes open; that is no reason to wait.
    for patience in (0.5, 0.5):
        for reader in readers:
            reader.join(patience)
        if any(reader.is_alive() for reader in readers):
            kill(process)
    for reader, stream in zip(readers, (process.stdout, process.stderr), strict=True):
        if stream is not None and not reader.is_alive():
            stream.close()
    return in_time, bytes(kept[0]), bytes(kept[1])


def kill(process: Popen[bytes]) -> None:
    """Ends the process and what it started."""
    import signal
    import subprocess

    try:
        if os.name == "nt":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        pass  # it has ended
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        pass  # it hangs in the kernel, where no signal reaches it


def between(out: bytes, markers: tuple[str, str]) -> bytes | None:
    """What was printed between the markers, which are printed backwards; None where they are not there."""
    start, end = (m[::-1].encode() for m in markers)
    _, found, rest = out.partition(start)
    text, closed, _ = rest.partition(end)
    return text if found and closed else None


def last_line(err: bytes) -> str:
    """The last line that is not empty, without secrets."""
    lines = [line.strip() for line in err[-4000:].decode("utf-8", "replace").splitlines() if line.strip()]
    return redact(lines[-1])[:300] if lines else ""
