"""Facts of an interpreter: our own, another one on this machine, or one that was saved as a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qlora_doctor.errors import NewerSchema, ProbeError, UsageError, WireError
from qlora_doctor.facts import Facts
from qlora_doctor.gather import probe
from qlora_doctor.gather.processes import LARGEST, between, finish, last_line, start

if TYPE_CHECKING:
    from subprocess import Popen

DEEPEST = 100
"""Levels of nesting in a facts file; a real one has about 8."""

NVIDIA_PARTS = ("gpus", "driver")
NVIDIA_LIMIT = 8.0

# Not `-I` and not `-`: the one drops PYTHONPATH and the user site, the other trips over a json.py in the current folder.
BOOT = """import sys
if sys.version_info < (3, 6): sys.exit("too old: Python %d.%d" % sys.version_info[:2])
if sys.path and sys.path[0] == "": del sys.path[0]
exec(compile(sys.stdin.buffer.read(), "probe.py", "exec"))
"""


def here(parts: Sequence[str], folder: str | None = None) -> Facts:
    """Facts of the interpreter and machine that this runs on. `folder` is the folder of what is judged."""
    asked = _start_nvidia(parts)
    data = probe.probe([p for p in parts if asked is None or p not in NVIDIA_PARTS], folder)
    if asked is not None:
        data.update(_finish_nvidia(asked, parts))
    return Facts.from_wire(data)


def other(executable: str, parts: Sequence[str], folder: str | None = None, timeout: float = 10.0) -> Facts:
    """Facts as another interpreter sees them, with its own site-packages, user site and PYTHONPATH.

    `executable` may also be the folder of a virtual environment, or a name on PATH.

    Raises:
        ProbeError: there is no such interpreter, or it gives no facts within `timeout` seconds; says what to do.
    """
    python = find_executable(executable)
    asked = _start_nvidia(parts)
    left = [p for p in parts if asked is None or p not in NVIDIA_PARTS]
    markers = os.urandom(16).hex(), os.urandom(16).hex()
    try:
        with open(probe.__file__, "rb") as source:
            process = start([python, "-B", "-c", BOOT, *markers, folder or "", *left], source)
    except OSError as error:
        if asked is not None:
            finish(asked[0], 0)
        raise ProbeError(f"{python} cannot be started: {error.strerror}. Name a Python interpreter.") from None
    try:
        data = answer(process, markers, timeout, python)
    finally:
        graphics = _finish_nvidia(asked, parts) if asked is not None else {}
    data.update(graphics)
    try:
        return Facts.from_wire(data)
    except WireError as error:
        raise ProbeError(f"{python} printed something else in the place of its facts: {error}") from None


def saved(path: str) -> Facts:
    """Facts that `qlora-doctor facts --save` wrote.

    Raises:
        UsageError: the file is not there or is too large.
        WireError: it does not hold facts; NewerSchema where a newer doctor wrote it.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read: {error.strerror}. Write one with `qlora-doctor facts --save`."
        ) from None
    if len(raw) > LARGEST:
        raise UsageError(f"{path}: larger than {LARGEST >> 20} MB; this is no facts file.")
    try:
        return Facts.from_wire(_parse(raw, path), f"{path}: $")
    except NewerSchema:
        raise
    except RecursionError:
        raise WireError(path, f"nested deeper than {DEEPEST} levels; this is no facts file") from None


def find_executable(executable: str) -> str:
    """The interpreter that a path, a folder of a virtual environment, or a name on PATH stands for.

    Raises:
        ProbeError: there is none; says what to give instead.
    """
    path = os.path.expanduser(executable)
    if os.path.isdir(path):
        inside = [os.path.join(path, *p) for p in (("bin", "python"), ("Scripts", "python.exe"), ("python.exe",))]
        found = next((p for p in inside if os.path.isfile(p)), None)
        dangling = next((p for p in inside if os.path.islink(p)), None)
        if found is None and dangling is not None:
            raise ProbeError(_unusable_link(dangling))
        if found is None:
            raise ProbeError(
                f"{executable} is a folder without bin/python. Give an interpreter or a virtual environment."
            )
        path = found
    elif not os.path.isfile(path):
        found = _on_path(path) if os.sep not in path else None
        if found is None:
            if os.path.islink(path):
                raise ProbeError(_unusable_link(executable))
            raise ProbeError(
                f"there is no interpreter at {executable}. Give the path of a Python (`which python` in the environment "
                "shows it) or the folder of a virtual environment."
            )
        path = found
    if not os.access(path, os.X_OK):
        raise ProbeError(f"{path} may not be executed. Give a Python interpreter, such as <environment>/bin/python.")
    return os.path.abspath(path)


def _unusable_link(path: str) -> str:
    path = os.path.expanduser(path)
    target = os.path.realpath(path)
    try:
        os.stat(path)
    except PermissionError:
        return f"{path} points to {target}, which this user may not reach. Run the doctor as the user who trains."
    except OSError:
        pass  # gone, or a loop
    return (
        f"{path} points to {target}, which is gone: the Python that this environment was made from was removed. Make "
        "the environment anew."
    )


def _on_path(name: str) -> str | None:
    import shutil

    return shutil.which(name)


def _parse(raw: bytes, name: str) -> Any:
    import json

    def no_constant(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    try:
        data = json.loads(raw.decode("utf-8-sig"), parse_constant=no_constant)
    except json.JSONDecodeError as error:
        end = " (the file ends too early)" if error.pos >= len(error.doc.rstrip()) else ""
        raise WireError(name, f"not JSON: line {error.lineno}, column {error.colno}: {error.msg}{end}") from None
    except UnicodeDecodeError:
        raise WireError(name, "not JSON: not UTF-8 text") from None
    except ValueError as error:
        raise WireError(name, f"not JSON: {error}") from None
    except RecursionError:
        raise WireError(name, f"nested deeper than {DEEPEST} levels; this is no facts file") from None
    _refuse_depth(data, name)
    try:
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise WireError(name, "holds text that is not valid Unicode") from None
    return data


def _refuse_depth(data: Any, name: str) -> None:
    level = [data]
    for _ in range(DEEPEST):
        level = [v for d in level if isinstance(d, (dict, list)) for v in (d.values() if isinstance(d, dict) else d)]
        if not level:
            return
    raise WireError(name, f"nested deeper than {DEEPEST} levels; this is no facts file")


def answer(process: Popen[bytes], markers: tuple[str, str], timeout: float, python: str) -> dict[str, Any]:
    """The facts that a probe prints. `python` names it in messages. Raises ProbeError, with its last words."""
    in_time, out, err = finish(process, timeout)
    text = between(out, markers)
    if text is not None:
        data = _parse(text, python)
        if isinstance(data, dict):
            return data
    if not in_time:
        raise ProbeError(
            f"{python} gave no facts within {timeout:g} s. Start it by hand (`{python} -c pass`): a sitecustomize, a .pth "
            "file or a slow network disk may hold it up."
        )
    last = last_line(err)
    if last.startswith("too old"):
        raise ProbeError(f"{python} is {last.partition(': ')[2]}; the doctor can ask Python 3.6 and later.")
    status = process.returncode
    if status and status < 0:
        how = f"was killed by signal {-status}"
    elif status:
        how = f"ended with exit status {status}"
    else:
        how = "ended without a word of them"
    raise ProbeError(
        f"{python} gave no facts: it {how}{': ' + _words(err, last) if last else ''}. Check that it is a Python interpreter that "
        f"starts (`{python} -c pass`)."
    )


def _words(err: bytes, last: str) -> str:
    """What an interpreter said before it ended: a traceback's last line, else the first, where launchers complain."""
    lines = err.decode("utf-8", "replace").split("\n")
    first = next((line.strip() for line in lines if line.strip()), "")
    return (last if "Traceback" in first else probe.redact(first)[:300]).rstrip(".")


# ---- NVIDIA: asked in a process of its own, as its libraries can crash or hang the one that loads them


def _start_nvidia(parts: Sequence[str]) -> tuple[Popen[bytes], tuple[str, str]] | None:
    """The process that asks the driver; None where nothing hints at one (then asking is cheap and harmless)."""
    if not set(NVIDIA_PARTS) & set(parts) or not sys.executable or not probe.nvidia_traces():
        return None
    markers = os.urandom(16).hex(), os.urandom(16).hex()
    command = [sys.executable, "-I", "-S", "-B", probe.__file__, *markers, "", *NVIDIA_PARTS]
    try:
        # It is started without site-packages, so it is told where nvidia-ml-py lies.
        return start(command, **{probe.BINDINGS: probe.bindings_file()}), markers
    except OSError:
        return None


def _finish_nvidia(asked: tuple[Popen[bytes], tuple[str, str]], parts: Sequence[str]) -> Mapping[str, Any]:
    import json

    process, markers = asked
    in_time, out, _ = finish(process, NVIDIA_LIMIT)
    text = between(out, markers)
    if text is not None:
        data = json.loads(text)
        return {part: data[part] for part in NVIDIA_PARTS if part in parts}
    if not in_time:
        reason = f"the NVIDIA driver did not answer within {NVIDIA_LIMIT:g} s"
    else:
        reason = f"asking the NVIDIA driver ended the process that asked (exit status {process.returncode})"
    return {part: {"unknown": reason} for part in NVIDIA_PARTS if part in parts}
