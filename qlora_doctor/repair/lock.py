"""One apply or undo at a time: a lock file with the process that holds it; one of a dead process is taken over."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from qlora_doctor.errors import RepairError


@contextmanager
def held(folder: str) -> Iterator[None]:
    """Holds `<folder>/lock`.

    Raises:
        RepairError: a living process holds it; names it.
    """
    path = os.path.join(folder, "lock")
    _take(path)
    try:
        yield
    finally:
        os.unlink(path)


def _take(path: str) -> None:
    mine = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())})
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(mine)
        for _ in range(3):
            try:
                # A link appears whole or not at all, so nobody reads a lock that is half written.
                os.link(temporary, path)
                return
            except FileExistsError:
                _remove_if_dead(path)
    except OSError as error:
        raise RepairError(f"{path} cannot be written: {error.strerror or error}; nothing was changed") from None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    raise RepairError(f"another qlora-doctor works here ({path}); wait for it to end")


def _remove_if_dead(path: str) -> None:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        holder = json.loads(text)
        pid, host, started = int(holder["pid"]), str(holder["host"]), str(holder["started"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        raise RepairError(f"{path} cannot be read; if no other qlora-doctor runs, remove it") from None
    if host != socket.gethostname():
        raise RepairError(f"qlora-doctor runs here on {host} (process {pid}); if it does not, remove {path}")
    if _alive(pid) and _started(pid) in ("", started):
        raise RepairError(f"another qlora-doctor works here (process {pid}); wait for it to end, nothing was changed")
    # Two may find the same dead lock: renaming lets one of them win, and only if it is still the one that was read.
    grave = f"{path}.dead.{os.getpid()}"
    try:
        os.rename(path, grave)
        with open(grave, encoding="utf-8") as file:
            if file.read() != text:
                os.link(grave, path)
    except (FileNotFoundError, FileExistsError):
        return
    finally:
        if os.path.exists(grave):
            os.unlink(grave)


def _alive(pid: int) -> bool:
    if os.name == "nt":
        return _alive_on_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _alive_on_windows(pid: int) -> bool:
    import ctypes

    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined, unused-ignore]
    handle = kernel.OpenProcess(0x1000, False, pid)
    if not handle:
        return False
    code = ctypes.c_ulong()
    running = bool(kernel.GetExitCodeProcess(handle, ctypes.byref(code))) and code.value == 259
    kernel.CloseHandle(handle)
    return running


def _started(pid: int) -> str:
    """When a process began, as the system counts it; "" where that cannot be read. A pid may be used again."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
