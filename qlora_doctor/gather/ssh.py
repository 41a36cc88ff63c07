"""Facts of another machine: the probe goes over ssh to its Python, and nothing is installed or written there."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qlora_doctor.errors import ProbeError, UsageError, WireError
from qlora_doctor.facts import Facts, Unknown
from qlora_doctor.gather import probe
from qlora_doctor.gather.interpreters import BOOT, NVIDIA_PARTS, answer
from qlora_doctor.gather.processes import finish, start

if TYPE_CHECKING:
    from subprocess import Popen

ELSEWHERE = ("installed", "hub")
"""Parts that are read from this machine's disk and network, and would say nothing of the other one."""


def remote(host: str, parts: Sequence[str], python: str = "", timeout: float = 30.0) -> Facts:
    """Facts of the machine `host` (as ssh knows it) and its interpreter `python` (`python3` where none is given).

    ssh may not ask for a password: a key, an agent or an open master connection must let it in.

    Raises:
        UsageError: `host` is no host.
        ProbeError: ssh or the interpreter there gives no facts within `timeout` seconds; says what to do.
    """
    if not host or host.startswith("-") or any(c.isspace() for c in host):
        raise UsageError(f"--ssh {host!r}: expected a host, as in `ssh host`")
    left = [p for p in parts if p not in NVIDIA_PARTS]
    graphics = [p for p in parts if p in NVIDIA_PARTS]
    # The driver is asked over a connection of its own: its library can crash or hang the process that loads it.
    asked = _ask(host, python or "python3", graphics) if graphics else None
    try:
        process, markers = _ask(host, python or "python3", left)
        data = _answer(process, markers, timeout, host)
    except ProbeError:
        if asked is not None:
            finish(asked[0], 0)
        raise
    if asked is not None:
        data.update(_graphics(asked, graphics, timeout, host))
    try:
        facts = Facts.from_wire(data)
    except WireError as error:
        raise ProbeError(f"{host} printed something else in the place of its facts: {error}") from None
    away = Unknown(f"not read over ssh: it belongs to {host}", skipped=True)
    return facts.but(**{part: away for part in ELSEWHERE})


def _ask(host: str, python: str, parts: Sequence[str]) -> tuple[Popen[bytes], tuple[str, str]]:
    markers = os.urandom(16).hex(), os.urandom(16).hex()
    words = [python, "-B", "-c", BOOT, *markers, "", *parts]
    command = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", host, shlex.join(words)]
    try:
        with open(probe.__file__, "rb") as source:
            return start(command, source), markers
    except OSError as error:
        raise ProbeError(
            f"ssh cannot be started: {error.strerror}. Install it, or run `qlora-doctor facts --save` on {host} and judge "
            "the file with --facts."
        ) from None


def _answer(process: Popen[bytes], markers: tuple[str, str], timeout: float, host: str) -> dict[str, Any]:
    try:
        return answer(process, markers, timeout, f"the Python of {host}")
    except ProbeError as error:
        if process.returncode == 255:  # ssh's own failures; the remote command's status otherwise
            words = str(error).partition("exit status 255")[2].partition(". Check that")[0].lstrip(": ")
            raise ProbeError(
                f"ssh {host} failed{': ' + words if words else ''}. It must work without a question: `ssh -o BatchMode=yes"
                f" {host} true`."
            ) from None
        if process.returncode == 127:
            raise ProbeError(f"{host} has no such interpreter; name one with --python ({error})") from None
        raise


def _graphics(
    asked: tuple[Popen[bytes], tuple[str, str]], parts: Sequence[str], timeout: float, host: str
) -> dict[str, Any]:
    try:
        data = answer(*asked, timeout, f"the NVIDIA driver of {host}")
        return {part: data[part] for part in parts if part in data}
    except (ProbeError, WireError) as error:
        return {part: {"unknown": str(error).partition(". ")[0]} for part in parts}
