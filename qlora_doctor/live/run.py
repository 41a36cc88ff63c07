"""Runs the programs, one after the other, each in a process of its own with a time limit."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, get_args

from qlora_doctor.facts import LiveOutcome, LiveProbe
from qlora_doctor.gather.probe import redact
from qlora_doctor.gather.processes import between, finish, last_line, start

FOLDER = Path(__file__).parent / "programs"
BUDGET = 120.0
"""Seconds that all programs together may take."""

OUTCOMES: tuple[LiveOutcome, ...] = get_args(LiveOutcome)
MODULES = ("torch", "bitsandbytes", "transformers", "peft", "flash_attn")
DTYPES = ("float32", "float16", "bfloat16")

# The program's own folder must not be on sys.path, nor the current one: a json.py there would be taken.
BOOT = """import sys
if sys.path and sys.path[0] == "": del sys.path[0]
import json, os
start, end, path = sys.argv[1:4]
scope = {"__name__": "live", "__file__": path}
with open(path, "rb") as file: exec(compile(file.read(), os.path.basename(path), "exec"), scope)
text = start[::-1] + json.dumps(scope["main"](sys.argv[4:])) + end[::-1]
sys.stdout.flush(); sys.stderr.flush()
os.write(1, text.encode("ascii"))
"""


class Task(NamedTuple):
    """One program with its arguments, its limit in seconds, and the module that must be importable for it."""

    name: str
    program: str
    arguments: tuple[str, ...]
    limit: float = 60.0
    needs: tuple[str, ...] = ()


def run(
    python: str, progress: Callable[[str, str], None] | None = None, budget: float = BUDGET
) -> tuple[LiveProbe, ...]:
    """What happens when the interpreter `python` imports, allocates, quantises and trains. Takes `budget` seconds at most.

    `progress` is told the name of what is about to be tried with "", and then with the outcome. Nothing is downloaded; nothing is written but temporary files.
    """
    end = monotonic() + budget
    found: dict[str, LiveProbe] = {}
    devices: tuple[str, ...] = ()

    def attempt(task: Task) -> Mapping[str, Any]:
        lacking = next((n for n in task.needs if found[f"import {n}"].outcome != "ok"), None)
        if lacking:
            found[task.name] = LiveProbe(task.name, "absent", detail=f"{lacking} cannot be imported")
            return {}
        left = min(task.limit, end - monotonic())
        if left < 1:
            detail = f"not started: the {budget:g} s of --live were used up"
            found[task.name] = LiveProbe(task.name, "timeout", detail=detail, cut=True)
            return {}
        if progress is not None:
            progress(task.name, "")
        found[task.name], said = one(python, task, left)
        if left < task.limit and found[task.name].outcome == "timeout":
            detail = f"ended after {left:.0f} s, when the {budget:g} s of --live were used up"
            found[task.name] = replace(found[task.name], detail=detail, cut=True)
        if progress is not None:
            progress(task.name, found[task.name].outcome)
        return said

    for task in imports():
        devices = _names(attempt(task).get("devices")) or devices
    for task in tasks(devices):
        attempt(task)
    return tuple(found.values())


def imports() -> Iterator[Task]:
    """Each module of the stack on its own."""
    for module in MODULES:
        yield Task(f"import {module}", "import_module", (module,))


def tasks(devices: Sequence[str]) -> Iterator[Task]:
    """What is computed on a machine where torch sees these GPUs (`cuda:0`, which ROCm has too, `xpu:0`, `mps`)."""
    bnb = ("torch", "bitsandbytes")
    for name in devices:
        yield Task(f"allocate on {name}", "allocate", (name,), 30.0, ("torch",))
    device = devices[0] if devices else "cpu"
    for dtype in DTYPES:
        yield Task(f"4-bit round trip, {dtype}, on {device}", "four_bit", (dtype, device), 30.0, bnb)
    for dtype in ("float32", "bfloat16") if devices else ("float32",):
        yield Task(f"LoRA step, {dtype}, on {device}", "lora_step", (dtype, device), 40.0, (*bnb, "peft"))
    yield Task(f"paged 8-bit optimizer on {device}", "optimizer", ("PagedAdamW8bit", device), 30.0, bnb)
    yield Task("all-reduce of 2 ranks, gloo", "all_reduce", ("gloo", "2"), 40.0, ("torch",))
    if device.startswith("cuda"):
        ranks = str(min(len(devices), 2))
        yield Task(f"all-reduce of {ranks} ranks, NCCL", "all_reduce", ("nccl", ranks), 40.0, ("torch",))


def _names(said: Any) -> tuple[str, ...]:
    """The devices that a program named; it is another interpreter's word, so anything else counts for none."""
    found = said if isinstance(said, list) else []
    return tuple(n for n in found if isinstance(n, str) and re.fullmatch(r"(cuda|xpu):\d+|mps", n))


def one(python: str, task: Task, limit: float) -> tuple[LiveProbe, Mapping[str, Any]]:
    """One program's end, and what it said beyond it."""
    markers = os.urandom(16).hex(), os.urandom(16).hex()
    path = str(FOLDER / f"{task.program}.py")
    command = [python, "-X", "faulthandler", "-B", "-c", BOOT, *markers, path, *task.arguments]
    try:
        process = start(command)
    except OSError as error:
        return LiveProbe(task.name, "failed", detail=f"{python} cannot be started: {error.strerror}"), {}
    in_time, out, err = finish(process, limit, 1 << 20)
    text = err.decode("utf-8", "replace")
    frame = last_frame(text)
    if not in_time:
        return LiveProbe(task.name, "timeout", last_frame=frame, detail=f"no end after {limit:.0f} s"), {}
    code, signal_name = ending(process.returncode)
    if signal_name:
        missing = missing_thing(text)
        return LiveProbe(task.name, "died", signal_name, code, frame, missing, _last_words(text)), {}
    said = _said(between(out, markers))
    if said and code == 0:
        outcome = next((o for o in OUTCOMES if o == said.get("outcome")), None)
        if outcome is not None:
            return LiveProbe(task.name, outcome, detail=redact(str(said.get("detail", "")))[:300]), said
    if code and "Traceback (most recent call last)" not in text:
        return LiveProbe(task.name, "died", "", code, frame, missing_thing(text), _last_words(text)), {}
    detail = last_line(err) if code else "it ended without a result"
    return LiveProbe(task.name, "failed", "", code, frame, missing_thing(text), detail), {}


def _said(text: bytes | None) -> Mapping[str, Any]:
    try:
        data = json.loads(text) if text else {}
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


# What Windows calls a crash, and shells a signal.
_WINDOWS = {
    0xC0000005: "ACCESS_VIOLATION",
    0xC00000FD: "STACK_OVERFLOW",
    0xC000001D: "ILLEGAL_INSTRUCTION",
    0xC0000135: "DLL_NOT_FOUND",
    0xC0000139: "ENTRYPOINT_NOT_FOUND",
    0xC0000374: "HEAP_CORRUPTION",
    0xC0000409: "STACK_BUFFER_OVERRUN",
}


def ending(status: int) -> tuple[int, str]:
    """The exit code, and the signal that ended the process ("" for none): -11, 139 and 0xC0000005 are the same thing."""
    number = -status if -128 < status < 0 else status - 128 if 128 < status < 160 else 0
    if number:
        try:
            return status, signal.Signals(number).name
        except ValueError:
            return status, f"signal {number}"
    return status, _WINDOWS.get(status & 0xFFFFFFFF, "")


_FRAME = re.compile(r'^ +File "([^"]+)", line (\d+)(?: in (.+))?$', re.MULTILINE)
_NATIVE = re.compile(r'^ +Binary file "([^"]+)", at (\S+)', re.MULTILINE)


def last_frame(err: str) -> str:
    """Where faulthandler, or the last traceback, says that the process was; "" where nothing says it.

    Native frames come first where there are any (Python 3.14 on): the innermost that is not of the interpreter itself.
    """
    _, fatal, crash = err.partition("most recent call first")
    if fatal:
        native = [
            m for m in _NATIVE.findall(crash) if not re.search(r"python[\d.]*$|libpython|libc\.so|libpthread", m[0])
        ]
        if native:
            return f"{_short(native[0][0])} at {native[0][1]}"
        frames = [m for m in _FRAME.findall(crash) if not m[0].startswith(("<frozen", "<string"))]
        return _place(frames[0]) if frames else ""
    frames = [m for m in _FRAME.findall(err.replace(", in ", " in ")) if not m[0].startswith(("<frozen", "<string"))]
    return _place(frames[-1]) if frames else ""


def _place(frame: tuple[str, str, str]) -> str:
    path, line, name = frame
    return f"{_short(path)}:{line}" + (f" in {name}" if name else "")


def _short(path: str) -> str:
    """A path without the folders that lead to the packages."""
    return redact(re.split(r"(?:site|dist)-packages[/\\]|/lib/python3[.\d]*/", path)[-1].replace("\\", "/"))


_MISSING = (
    re.compile(r"undefined symbol: ?(\w+)"),
    re.compile(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object"),
    re.compile(r"(lib[\w.+-]+\.so[\w.]*): version [`']?([\w.]+)'? not found"),
    re.compile(r"version [`']((?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)' not found"),
    re.compile(r"Library not loaded: (\S+)"),
    re.compile(r"DLL load failed while importing (\w+)"),
    re.compile(r"Could not find module '([^']+)'"),
    re.compile(r"No module named '([\w.]+)'"),
)


def missing_thing(err: str) -> str:
    """The library, symbol or module that was not found, by the words of the loader."""
    for pattern in _MISSING:
        match = pattern.search(err)
        if match:
            return " ".join(_short(g) for g in match.groups())
    return ""


def _last_words(err: str) -> str:
    """What was printed last before a crash, without faulthandler's own lines."""
    own = err.partition("Fatal Python error")[0] or err
    fatal = re.search(r"Fatal Python error: (.+)", err)
    return last_line(own.encode()) or (fatal[1] if fatal else "")
