"""What a running program uses: memory of its processes, of the GPUs, and what the kernel counts. Linux; elsewhere less."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST = 600
_CGROUP = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")


def oom_kills() -> int | None:
    """How many processes of this cgroup the kernel has killed for memory; None where it does not say."""
    paths = list(_CGROUP)
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").rpartition("::")[2].strip()
        paths.insert(0, f"/sys/fs/cgroup{own}/memory.events")
    except OSError:
        pass
    for path in paths:
        try:
            for line in Path(path).read_text(encoding="utf-8").splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        except (OSError, ValueError):
            continue
    return None


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
        while True:
            memory = tree_memory(self.pid)
            if memory is not None:
                self.peak = max(self.peak, memory)
                sample: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1), "memory": memory}
                if nvml is not None:
                    sample["gpus"] = _gpus(nvml)
                self.samples.append(sample)
            if len(self.samples) > MOST:
                self.samples = self.samples[::2]
            if self._stop.wait(pause):
                return
            pause = min(self.every, pause * 2)

    def notes(self) -> list[str]:
        """What the samples show that no error line says."""
        found = []
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
