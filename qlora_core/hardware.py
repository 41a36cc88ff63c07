"""Where the model goes and in which dtype: read from the card, not guessed."""

from __future__ import annotations

import os
from typing import Any

from qlora_doctor.errors import UsageError
from qlora_doctor.facts import Facts, Unknown
from qlora_doctor.families import Family

DTYPES = ("bfloat16", "float16", "float32")
_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}


def dtype_word(dtype: Any) -> str | None:
    """`bfloat16`, `float16`, `float32`, or None for "choose"; takes names and torch dtypes.

    Raises:
        UsageError: another dtype, such as int8.
    """
    if dtype is None or dtype == "auto":
        return None
    word = str(dtype).removeprefix("torch.")
    word = _ALIASES.get(word, word)
    if word not in DTYPES:
        raise UsageError(
            f"dtype={str(dtype)!r}: the weights that are not quantised, and the arithmetic, can be in {', '.join(DTYPES)}"
            + ("; for 8-bit weights say bits=8" if "8" in word else "")
        )
    return word


def expected_dtype(facts: Facts, family: Family | None, device: str | None) -> str:
    """The dtype that `choose_dtype` will most likely choose, from the facts alone: torch is not imported yet."""
    gpus, build = facts.state("gpus"), facts.state("torch")
    on_gpu = not isinstance(gpus, Unknown) and gpus and not isinstance(build, Unknown) and build and build.cuda
    if not on_gpu or device == "cpu":
        return "bfloat16"
    capabilities = [g.sm for g in gpus if g.sm is not None]
    return _for_gpu(all(sm >= (8, 0) for sm in capabilities), family)


def choose_device(device: Any) -> Any:
    """The torch device: the one asked for, else this process's GPU, else the CPU.

    Raises:
        UsageError: the device is not there, with what is.
    """
    import torch

    there = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if device is None:
        return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        asked = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except (RuntimeError, TypeError):
        raise UsageError(f"device={device!r} is no device; here are {', '.join(there)}") from None
    if asked.type == "cuda":
        if not torch.cuda.is_available():
            why = "this torch is a CPU build" if torch.version.cuda is None else "torch sees no GPU"
            raise UsageError(f"device={device!r}: {why} ({torch.__version__}); here are {', '.join(there)}")
        asked = torch.device("cuda", local_rank() if asked.index is None else asked.index)
        if asked.index >= torch.cuda.device_count():
            raise UsageError(f"device={device!r} is not there; here are {', '.join(there)}")
    elif asked.type != "cpu":
        backend = getattr(torch, asked.type, None) or getattr(torch.backends, asked.type, None)
        if backend is None or not getattr(backend, "is_available", lambda: False)():
            raise UsageError(f"device={device!r} is not there; here are {', '.join(there)}")
    return asked


def choose_dtype(device: Any, family: Family | None, text_type: str) -> tuple[str, str]:
    """The dtype for a device, and why: bf16 where it is native, never fp16 for T5, fp32 on a CPU that emulates bf16."""
    import torch

    t5 = text_type in ("t5", "mt5") or (family is not None and not family.fp16_safe)
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
        if major >= 8 or torch.version.hip is not None:
            return "bfloat16", f"{name} (capability {major}.{minor}) computes in bf16"
        if t5:
            return "float32", f"{name} (capability {major}.{minor}) has no bf16, and T5 overflows in fp16"
        return "float16", f"{name} (capability {major}.{minor}) has no bf16"
    if device.type == "cpu" and not _cpu_has_bf16():
        return "float32", "this CPU only emulates bf16"
    return "bfloat16", f"this {device.type} computes in bf16"


def _for_gpu(bf16: bool, family: Family | None) -> str:
    if bf16:
        return "bfloat16"
    return "float16" if family is None or family.fp16_safe else "float32"


def _cpu_has_bf16() -> bool:
    import torch

    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if probe is not None and probe():
        return True
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(amx is not None and amx())


def local_rank() -> int:
    """This process's GPU among those of its machine: what torchrun and accelerate set, else 0."""
    word = os.environ.get("LOCAL_RANK", "0")
    if not word.isdigit():
        raise UsageError(f"LOCAL_RANK={word!r} is not a number; the launcher (torchrun, accelerate) sets it")
    return int(word)


def distributed() -> bool:
    """Whether a launcher started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1) > 1


def free_memory(device: Any) -> int | None:
    """Bytes free on a device; None where nobody says."""
    import torch

    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    if device.type != "cpu":
        return None
    found = []
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0].strip().isdigit():
        found.append(max(0, int(limit[0]) - int(used[0])))
    return min(found, default=None)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readlines()
    except OSError:
        return []
