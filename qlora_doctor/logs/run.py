"""Runs a command unchanged, keeps the end of what it prints, and explains how it died."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_doctor.errors import UsageError
from qlora_doctor.facts import Facts
from qlora_doctor.logs.diagnose import Report, diagnose
from qlora_doctor.logs.samples import OomWatch, Sampler

KEPT = 512 * 1024
FORWARDED = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGCONT")


@dataclass(frozen=True, slots=True)
class Run:
    """One run and its end. `code` is what a shell would report (128 + signal); `report` is None where all went well."""

    command: tuple[str, ...]
    code: int
    signal: str
    seconds: float
    peak: int
    oom_killed: bool
    samples: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]
    report: Report | None


class Ring:
    """The end of what was printed, in the order in which it came."""

    def __init__(self, most: int = KEPT) -> None:
        self.pieces: deque[bytes] = deque()
        self.size = 0
        self.most = most
        self.lock = threading.Lock()

    def add(self, piece: bytes) -> None:
        with self.lock:
            self.pieces.append(piece)
            self.size += len(piece)
            while self.size - len(self.pieces[0]) > self.most:
                self.size -= len(self.pieces.popleft())

    def text(self) -> bytes:
        with self.lock:
            return b"".join(self.pieces)


def run(command: Sequence[str]) -> Run:
    """Runs `command` with our own stdin, stdout, stderr and signals, and waits for its end.

    Raises:
        UsageError: there is no such program, or it may not be run.
    """
    ring = Ring()
    channels = [_Channel(1), _Channel(2)]
    environ = {"PYTHONFAULTHANDLER": "1", **os.environ}
    watch = OomWatch()
    watch.look()
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            list(command), stdout=channels[0].write_end, stderr=channels[1].write_end, env=environ
        )
    except OSError as error:
        raise UsageError(f"{command[0]}: {error.strerror or error}") from None
    finally:
        for channel in channels:
            os.close(channel.write_end)
    previous = _forward_signals(process)
    sampler = Sampler(process.pid, oom=watch)
    sampler.start()
    pumps = [threading.Thread(target=channel.pump, args=(ring,), daemon=True) for channel in channels]
    for pump in pumps:
        pump.start()
    code = process.wait()
    seconds = time.monotonic() - began
    for pump in pumps:
        # A daemon that the program left behind may hold the pipe open for ever.
        pump.join(timeout=2)
    sampler.stop()
    for number, handler in previous.items():
        signal.signal(number, handler)
    oom = watch.killed()
    name = signal.Signals(-code).name if code < 0 else ""
    report = _explain(ring.text(), code, oom, bool(watch.first), command) if code else None
    return Run(
        tuple(command), 128 - code if code < 0 else code, name, seconds, sampler.peak, oom, tuple(sampler.samples),
        tuple(sampler.notes()), report,
    )  # fmt: skip


class _Channel:
    """One output of the program: a terminal where ours is one, so that it behaves as it would without us."""

    def __init__(self, target: int) -> None:
        self.target = target
        if os.name == "posix" and os.isatty(target):
            import fcntl
            import pty
            import termios

            self.read_end, self.write_end = pty.openpty()
            mode = termios.tcgetattr(self.write_end)
            mode[1] &= ~termios.OPOST
            termios.tcsetattr(self.write_end, termios.TCSANOW, mode)
            size = fcntl.ioctl(target, termios.TIOCGWINSZ, b"\0" * 8)
            fcntl.ioctl(self.write_end, termios.TIOCSWINSZ, size)
        else:
            self.read_end, self.write_end = os.pipe()

    def pump(self, ring: Ring) -> None:
        """Hands on what comes, at once, until the last writer has closed."""
        gone = False
        while True:
            try:
                piece = os.read(self.read_end, 1 << 16)
            except OSError:  # a terminal whose other end is closed says EIO
                return
            if not piece:
                return
            ring.add(piece)
            while piece and not gone:
                try:
                    piece = piece[os.write(self.target, piece) :]
                except OSError:  # our reader went away; the program must not block for it
                    gone = True


def _forward_signals(process: subprocess.Popen[bytes]) -> dict[int, Any]:
    """What is sent to us goes to the program. Ctrl-C reaches it by itself: it is in our process group."""
    previous: dict[int, Any] = {}
    if threading.current_thread() is not threading.main_thread():
        return previous

    def forward(number: int, frame: object) -> None:
        process.send_signal(number)

    for name in FORWARDED:
        number = getattr(signal, name, None)
        if number is not None:
            previous[number] = signal.signal(number, forward)
    previous[signal.SIGINT] = signal.signal(signal.SIGINT, lambda number, frame: None)
    return previous


def _explain(tail: bytes, code: int, oom: bool, watched: bool, command: Sequence[str]) -> Report:
    if oom:
        tail += b"\nMemory cgroup out of memory: Killed process\n"
    elif watched and code == -signal.SIGKILL:
        # No kill for memory was counted, so the cause that a bare 137 mostly has is ruled out.
        tail += b"\nSIGKILL, and the kernel counted no kill for memory\n"
    return diagnose(tail, _facts_of(command), exit_code=code)


def _facts_of(command: Sequence[str]) -> Facts | None:
    """The facts of the interpreter that ran, where the command names one."""
    from qlora_doctor.errors import ProbeError
    from qlora_doctor.gather.interpreters import here, other

    parts = ("interpreter", "packages", "torch", "bitsandbytes", "gpus", "driver", "host", "environ")
    program = shutil.which(command[0]) or command[0]
    if not os.path.basename(program).startswith("python"):
        return None
    try:
        same = os.path.realpath(program) == os.path.realpath(sys.executable) and program == sys.executable
        return here(parts) if same else other(program, parts)
    except (ProbeError, UsageError):
        return None
