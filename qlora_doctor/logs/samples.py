"""What a running program uses: memory of its processes, of the GPUs, and what the kernel counts. Linux; elsewhere less."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST = 600
LITTLE = 64 << 20  # bytes: a disk with less is full for what trains


def oom_files(pid: int | str = "self", root: str = "/") -> list[Path]:
    """The files in which the kernel counts the kills for memory of a process's cgroup, the nearest first.

    cgroup v2 (memory.events) and v1 (memory.oom_control). `root` is where /proc and /sys are.
    """
    top = Path(root)
    found = []
    try:
        rows = (top / f"proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        rows = []
    for row in rows:
        _, _, rest = row.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            found.append(top / "sys/fs/cgroup" / path.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            found.append(top / "sys/fs/cgroup/memory" / path.lstrip("/") / "memory.oom_control")
    # In a container the path may be the host's; what is mounted is then the own one.
    return [*found, top / "sys/fs/cgroup/memory.events", top / "sys/fs/cgroup/memory/memory.oom_control"]


def kills(path: Path) -> int | None:
    """The kills that one of these files counts; None where it cannot be read."""
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None


@dataclass
class OomWatch:
    """Whether the kernel killed for memory in a cgroup that was looked at, ours or the program's own."""

    root: str = "/"
    first: dict[Path, int] = field(default_factory=dict)

    def look(self, pid: int | str = "self") -> None:
        """Notes the count of the process's cgroup, where it is seen for the first time."""
        for path in oom_files(pid, self.root):
            count = kills(path)
            if count is not None:
                self.first.setdefault(path, count)
                return

    def killed(self) -> bool:
        """Whether a count has grown since."""
        return any((kills(path) or 0) > count for path, count in self.first.items())


def disks() -> list[str]:
    """The folders whose disks a run fills: the current one, the temporary one, the caches, and shared memory."""
    environ = os.environ
    home = os.path.expanduser("~/.cache/huggingface")
    wanted = (os.getcwd(), environ.get("TMPDIR", "/tmp"), environ.get("HF_HOME", home), "/dev/shm")
    seen: dict[int, str] = {}
    for folder in wanted:
        while folder and not os.path.isdir(folder) and os.path.dirname(folder) != folder:
            folder = os.path.dirname(folder)
        try:
            seen.setdefault(os.stat(folder).st_dev, folder)
        except OSError:
            continue
    return list(seen.values())


def free(folders: Sequence[str]) -> dict[str, int]:
    """The bytes that are free under each folder."""
    found: dict[str, int] = {}
    for folder in folders:
        try:
            found[folder] = shutil.disk_usage(folder).free
        except OSError:
            continue
    return found


def tree_memory(root: int) -> int | None:
    """Resident bytes of a process and all its descendants; None where /proc is not there."""
    children: dict[int, list[int]] = {}
    resident: dict[int, int] = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return None
    page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
    for name in names:
        if not name.isdigit():
            continue
        try:
            fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(name))
        resident[int(name)] = int(fields[21]) * page
    if root not in resident:
        return None
    total, todo = 0, [root]
    while todo:
        pid = todo.pop()
        total += resident.get(pid, 0)
        todo += children.get(pid, [])
    return total


@dataclass
class Sampler:
    """Looks every `every` seconds while the program runs. Keeps at most MOST samples, spread over the run."""

    pid: int
    every: float = 2.0
    samples: list[dict[str, Any]] = field(default_factory=list)
    peak: int = 0
    least: dict[str, int] = field(default_factory=dict)
    oom: OomWatch = field(default_factory=OomWatch)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        nvml = _nvml()
        began = time.monotonic()
        pause = 0.1
        folders = disks()
        while True:
            started = time.thread_time()
            self.oom.look(self.pid)
            memory = tree_memory(self.pid)
            if memory is not None:
                self.peak = max(self.peak, memory)
                sample: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1), "memory": memory}
                if nvml is not None:
                    sample["gpus"] = _gpus(nvml)
                sample["free"] = self._disks(folders)
                self.samples.append(sample)
            if len(self.samples) > MOST:
                self.samples = self.samples[::2]
            if self._stop.wait(pause):
                self._disks(folders)
                return
            # On a machine with thousands of processes one look takes long; looking must not take 1 % of the time.
            cost = time.thread_time() - started
            pause = max(min(self.every, pause * 2), 200 * cost)

    def _disks(self, folders: Sequence[str]) -> dict[str, int]:
        now = free(folders)
        for folder, left in now.items():
            self.least[folder] = min(left, self.least.get(folder, left))
        return now

    def notes(self) -> list[str]:
        """What the samples show that no error line says."""
        found = [_full(folder, left) for folder, left in self.least.items() if _is_full(folder, left)]
        values = [s["memory"] for s in self.samples]
        late = values[len(values) // 2 :]
        if len(late) >= 30 and late[-1] > late[0] * 1.3 + 2**30 and late == sorted(late):
            found.append(
                f"the memory of the processes grew steadily, from {late[0] >> 20} to {late[-1] >> 20} MiB in the second "
                "half of the run: something is kept from step to step (losses with their graph, outputs, caches)"
            )
        busy = [g for s in self.samples[5:] for g in s.get("gpus", ()) if g["memory"] > 2**30]
        if len(busy) >= 30 and sum(g["busy"] for g in busy) / len(busy) < 25:
            found.append(
                "the GPU was idle most of the time: it waits for data (dataloader_num_workers, images on a slow disk)"
            )
        return found


def _is_full(folder: str, left: int) -> bool:
    """Whether so little was left that something could not be written. A small disk that nobody uses is not full."""
    try:
        return left < min(LITTLE, shutil.disk_usage(folder).total // 20)
    except OSError:
        return False


def _full(folder: str, left: int) -> str:
    hint = " (shared memory: fewer dataloader workers, or a container with a larger --shm-size)"
    return f"{folder} was full: {left >> 20} MiB were left at one time{hint if folder == '/dev/shm' else ''}"


def _nvml() -> Any:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no driver, no library, or a broken one: the run goes on without GPU samples
        return None
    return pynvml


def _gpus(nvml: Any) -> list[dict[str, int]]:
    found = []
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            busy = nvml.nvmlDeviceGetUtilizationRates(handle).gpu
            found.append({"memory": int(memory.used), "total": int(memory.total), "busy": int(busy)})
    except nvml.NVMLError:
        pass
    return found
