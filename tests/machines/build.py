"""The saved machines, in words. `python tests/machines/build.py` writes them as facts files beside this one.

`recorded-*.json` were not made here: they are probes of real environments with their paths and names taken out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_doctor.facts import (
    Binary,
    BnbBuild,
    Distribution,
    Driver,
    Facts,
    Gpu,
    GpuProcess,
    Host,
    Interpreter,
    Library,
    LiveProbe,
    MigSlice,
    Native,
    Packages,
    Shadow,
    TorchBuild,
    Unknown,
)

FOLDER = Path(__file__).parent
SITE = "/venv/lib/python3.11/site-packages"
GIB = 2**30

RTX_3060 = Gpu("NVIDIA GeForce RTX 3060", "8.6", 12 * GIB, 11 * GIB)
A100 = Gpu("NVIDIA A100-SXM4-80GB", "8.0", 80 * GIB, 79 * GIB)
H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 80 * GIB, 79 * GIB)
V100 = Gpu("Tesla V100-SXM2-16GB", "7.0", 16 * GIB, 16 * GIB)
T4 = Gpu("Tesla T4", "7.5", 15 * GIB, 15 * GIB)
RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", "12.0", 32 * GIB, 31 * GIB)
RTX_4060 = Gpu("NVIDIA GeForce RTX 4060", "8.9", 8 * GIB, 7 * GIB)

RTX_4060_LAPTOP = Gpu("NVIDIA GeForce RTX 4060 Laptop GPU", "8.9", 8 * GIB, 7 * GIB)
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24 * GIB, 23 * GIB)
RTX_2050 = Gpu("NVIDIA GeForce RTX 2050", "8.6", 4 * GIB, 4 * GIB)
GTX_1080 = Gpu("NVIDIA GeForce GTX 1080", "6.1", 8 * GIB, 7 * GIB)
GH200 = Gpu("NVIDIA GH200 480GB", "9.0", 96 * GIB, 95 * GIB)
MI300 = Gpu("AMD Instinct MI300X", None, 192 * GIB, 191 * GIB, vendor="amd")
ARC = Gpu("Intel Arc B580", None, 12 * GIB, 12 * GIB, vendor="intel")
M3 = Gpu("Apple GPU", vendor="apple")

R580 = Driver("580.95.05", "13.0")
R550 = Driver("550.90.07", "12.4")
SYSTEM = {"GLIBCXX": "3.4.33", "CXXABI": "1.3.15"}
"""What the libstdc++ of a current system offers."""


def libcuda(
    version: str, kind: str = "driver", folder: str = "/usr/lib/x86_64-linux-gnu", by: str = "ld.so.cache"
) -> Library:
    return Library("libcuda.so.1", f"{folder}/libcuda.so.1", version, kind, by)


def wheels(machine: str = "x86_64") -> tuple[Binary, ...]:
    """The compiled files of a current torch and tokenizers, with the floors that they have."""
    return (
        Binary("tokenizers", "tokenizers.abi3.so", machine, {"GLIBC": "2.16", "GLIBCXX": "3.4", "CXXABI": "1.3"}),
        Binary("torch", "lib/libtorch_cpu.so", machine, {"GLIBC": "2.28", "GLIBCXX": "3.4.22", "CXXABI": "1.3.11"}),
    )


OLD = {
    "torch": "2.3.1",
    "triton": "2.3.1",
    "transformers": "4.44.2",
    "peft": "0.12.0",
    "accelerate": "0.33.0",
    "huggingface-hub": "0.24.6",
    "tokenizers": "0.19.1",
    "numpy": "1.26.4",
    "safetensors": "0.4.4",
    "regex": "2024.7.24",
    "tqdm": "4.66.5",
    "scipy": "1.14.1",
}
"""The packages of the first guide, whose bitsandbytes is the question."""

MIDDLE = {
    **OLD,
    "torch": "2.8.0",
    "triton": "3.4.0",
    "transformers": "4.57.6",
    "peft": "0.18.1",
    "bitsandbytes": "0.48.2",
    "accelerate": "1.12.0",
    "huggingface-hub": "0.36.0",
    "tokenizers": "0.22.1",
}

NEW = {
    **MIDDLE,
    "torch": "2.14.1",
    "triton": "3.8.0",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "bitsandbytes": "0.50.2",
    "accelerate": "1.15.0",
    "trl": "1.16.0",
    "huggingface-hub": "2.4.0",
    "tokenizers": "0.23.3",
    "numpy": "2.4.6",
    "safetensors": "0.8.0",
    "regex": "2026.11.15",
    "tqdm": "4.70.1",
}

LIBRARIES = {
    "0.43.3": "117 118 120 121 122 123 124 125",
    "0.44.1": "117 118 120 121 122 123 124 125",
    "0.47.0": "118 120 121 122 123 124 125 126 128 129",
    "0.48.2": "118 120 121 122 123 124 125 126 128 129 130",
    "0.50.2": "118 121 124 126 128 130 132",
}


def native(driver: Driver | None = None, **parts: Any) -> Native:
    """The native libraries of a sound Linux machine: the driver's libcuda, today's wheels, a current libstdc++."""
    given: dict[str, Any] = {
        "libcuda": (libcuda(driver.version),) if isinstance(driver, Driver) else (),
        "binaries": wheels(),
        "provided": SYSTEM,
    }
    return Native(**{**given, **parts})


def host_is_linux(parts: Mapping[str, Any]) -> bool:
    return "host" not in parts or parts["host"].system == "Linux"


def linux(**parts: Any) -> Host:
    """A current Linux machine with 16 cores and 64 GiB."""
    given: dict[str, Any] = {
        "release": "6.8.0-45-generic",
        "libc": "glibc 2.39",
        "cpu_count": 16,
        "memory_total": 64 * GIB,
    }
    return Host(**{**given, **parts})


def machine(
    versions: Mapping[str, str],
    cuda: str | None = None,
    gpus: tuple[Gpu, ...] = (),
    driver: Driver | None = None,
    *,
    without: tuple[str, ...] = (),
    **parts: Any,
) -> Facts:
    """A machine with these packages; torch is built for `cuda`, bitsandbytes ships what its wheel has."""
    versions = {k: v for k, v in versions.items() if k not in without}
    bnb = versions.get("bitsandbytes", "")
    tags = [f"cuda{tag}" for tag in LIBRARIES.get(bnb, "").split()]
    given: dict[str, Any] = {
        "interpreter": Interpreter("3.11.9", "/venv/bin/python", "/venv", "/usr", venv=True),
        "host": Host(release="6.8.0-45-generic", libc="glibc 2.39", cpu_count=16, memory_total=64 * GIB),
        "packages": Packages(tuple(Distribution(n, v, SITE) for n, v in sorted(versions.items()))),
        "shadows": (),
        "torch": TorchBuild(versions["torch"], cuda) if "torch" in versions else None,
        "bitsandbytes": BnbBuild(bnb, ("cpu", *tags)) if bnb else None,
        "gpus": gpus,
        "driver": driver,
        "environ": {},
        "native": native(driver) if host_is_linux(parts) else Native(),
    }
    return Facts(**{**given, **parts})


def machines() -> dict[str, Facts]:
    """Every machine that is made here, by the name of its file."""
    guide = {"gpus": (RTX_3060,), "driver": Driver("550.120", "12.4")}
    windows = Host(system="Windows", release="10", cpu_count=12, memory_total=32 * GIB)
    return {
        "guide-rtx3060-bnb-0.43.3": machine({**OLD, "bitsandbytes": "0.43.3"}, "12.1", **guide),
        "guide-rtx3060-bnb-0.44.1": machine({**OLD, "bitsandbytes": "0.44.1"}, "12.1", **guide),
        "guide-rtx3060-bnb-0.48.2": machine({**OLD, "bitsandbytes": "0.48.2"}, "12.1", **guide),
        "guide-without-a-gpu": machine({**OLD, "bitsandbytes": "0.48.2"}, "12.1"),
        "rtx3060-with-the-default-torch-2.14": machine(NEW, "13.0", **guide),
        "healthy-h100": machine(NEW, "13.0", (H100, H100), Driver("580.95.05", "13.0")),
        "healthy-a100-middle": machine(MIDDLE, "12.8", (A100,), Driver("550.90.07", "12.4")),
        "healthy-cpu": machine(NEW),
        "healthy-rocm": machine(
            {**NEW, "torch": "2.14.1+rocm7.1"}, torch=TorchBuild("2.14.1+rocm7.1", hip="7.1.25424"), environ={}
        ),
        "healthy-wsl-rtx4060": machine(
            NEW, "13.0", (RTX_4060,), Driver("581.42", "13.0"), host=linux(release="6.6-microsoft", wsl=2),
            native=native(libcuda=(libcuda("", "wsl", "/usr/lib/wsl/lib"),)),
        ),
        "v100-with-cuda-13": machine(NEW, "13.0", (V100,), Driver("580.95.05", "13.0")),
        "rtx5090-with-torch-2.5": machine(
            {**MIDDLE, "torch": "2.5.1+cu121", "triton": "3.1.0"}, "12.1", (RTX_5090,), Driver("570.172.08", "12.8")
        ),
        "torch-2.11-with-bnb-0.47": machine(
            {**NEW, "torch": "2.11.0", "bitsandbytes": "0.47.0"}, "13.0", (A100,), Driver("580.95.05", "13.0")
        ),
        "peft-0.17-with-transformers-5": machine({**NEW, "peft": "0.17.1"}, "13.0", (H100,), Driver("580.95.05", "13.0")),
        "t4-with-transformers-4-and-hub-1": machine(
            {**MIDDLE, "huggingface-hub": "1.2.3"}, "12.8", (T4,), Driver("550.54.15", "12.4")
        ),
        "triton-3.2-with-bnb-0.44": machine(
            {**MIDDLE, "torch": "2.6.0", "triton": "3.2.0", "bitsandbytes": "0.44.1"}, "12.4", (A100,), Driver("550.90.07")
        ),
        "torch-2.5-with-transformers-5.23": machine(
            {**NEW, "torch": "2.5.1", "triton": "3.1.0"}, "12.4", (A100,), Driver("550.90.07", "12.4")
        ),
        "windows-cpu-torch-and-old-stand-ins": machine(
            {**MIDDLE, "torch": "2.8.0+cpu", "bitsandbytes-windows": "0.37.5"}, None, (RTX_4060,), Driver("566.36"),
            without=("bitsandbytes", "triton"), host=windows,
        ),
        "half-installed": machine(
            NEW, "13.0", (H100,), Driver("580.95.05", "13.0"),
            shadows=(Shadow("torch", "/project/torch.py", f"{SITE}/torch", "script folder"),),
            packages=Packages(
                tuple(Distribution(n, v, SITE) for n, v in sorted(NEW.items()) if n != "accelerate"),
                duplicates={"transformers": (f"{SITE}/transformers-4.57.6.dist-info",)},
                leftovers=(f"{SITE}/~ccelerate",), without_metadata=(f"{SITE}/accelerate",),
                stray=("/project/=0.44.0",),
            ),
        ),
        "hidden-gpu": machine(
            NEW, "13.0", (H100,), Driver("580.95.05", "13.0"), environ={"CUDA_VISIBLE_DEVICES": "", "BNB_CUDA_VERSION": "124"}
        ),
        "nvidia-smi-hangs": machine(
            NEW, "13.0", gpus=Unknown("nvidia-smi gave no answer in 5 s"), driver=Unknown("nvidia-smi gave no answer in 5 s"),
            native=native(Driver("580.95.05")),
        ),
        **newest_torch(),
        **shared_machines(),
        **broken_libraries(),
        **other_systems(),
        **beside_torch(),
        **other_vendors(),
        **states(),
        **tried(),
    }  # fmt: skip


def newest_torch() -> dict[str, Facts]:
    """Cards of several ages under today's torch, and the build of it that fits them."""
    return {
        "t4-with-todays-torch": machine(NEW, "13.0", (T4,), R580),
        "rtx2050-laptop": machine(NEW, "13.0", (RTX_2050,), R580),
        "rtx5090-with-torch-2.3": machine({**OLD, "bitsandbytes": "0.43.3"}, "12.1", (RTX_5090,), Driver("570.172.08", "12.8")),
        "gtx1080-with-cuda-13": machine(NEW, "13.0", (GTX_1080,), R580),
        "healthy-v100-cu126": machine({**NEW, "torch": "2.14.1+cu126"}, "12.6", (V100,), R550),
        "healthy-rtx5090": machine(NEW, "13.0", (RTX_5090,), R580),
        "healthy-rtx4090-cu128": machine({**MIDDLE, "torch": "2.8.0+cu128"}, "12.8", (RTX_4090,), Driver("570.172.08", "12.8")),
        "healthy-gh200": machine(
            NEW, "13.0", (GH200,), R580, host=linux(machine="aarch64", cpu_count=72), native=native(R580, binaries=wheels("aarch64"))
        ),
    }  # fmt: skip


def shared_machines() -> dict[str, Facts]:
    """Clusters, notebooks and containers: GPUs that are split, taken, mixed or not there."""
    sliced = Gpu(
        "NVIDIA A100-SXM4-80GB", "8.0", 80 * GIB, 79 * GIB, uuid="GPU-1", mig=True,
        slices=(MigSlice("MIG-1", 20 * GIB, "NVIDIA A100-SXM4-80GB MIG 2g.20gb"), MigSlice("MIG-2", 10 * GIB)),
    )  # fmt: skip
    unsliced = Gpu("NVIDIA A100-SXM4-80GB", "8.0", 80 * GIB, 79 * GIB, mig=True, slices=())
    taken = Gpu("NVIDIA A100-SXM4-80GB", "8.0", 80 * GIB, 20 * GIB, processes=(GpuProcess(4711, "python", 59 * GIB),))
    exclusive = Gpu(
        "NVIDIA H100 80GB HBM3", "9.0", 80 * GIB, 79 * GIB, compute_mode="exclusive-process",
        processes=(GpuProcess(4711, "jupyter-lab", GIB),),
    )  # fmt: skip
    docker = linux(container="docker")
    image = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    second = Gpu(T4.name, T4.capability, T4.memory_total, T4.memory_free, index=1)
    return {
        "a100-mig": machine(NEW, "13.0", (sliced,), R580),
        "a100-mig-without-a-slice": machine(NEW, "13.0", (unsliced,), R580),
        "a100-taken-by-a-notebook": machine(NEW, "13.0", (taken,), R580),
        "h100-exclusive-and-held": machine(NEW, "13.0", (exclusive,), R580),
        "a100-beside-a-t4": machine(NEW, "13.0", (A100, second), R580),
        "healthy-colab-t4": machine(
            MIDDLE, "12.8", (T4,), Driver("550.54.15", "12.4"), host=linux(container="colab", cpu_count=2)
        ),
        "healthy-kaggle-2xt4": machine(
            MIDDLE, "12.8", (T4, second), Driver("560.35.03", "12.6"), host=linux(container="kaggle", cpu_count=4)
        ),
        "container-without-the-nvidia-runtime": machine(
            NEW, "13.0", host=docker, environ=image, native=native(provided=SYSTEM)
        ),
        "container-with-nvidia-smi-only": machine(
            NEW, "13.0", (A100,), R580, host=docker, native=native(),
            environ={**image, "NVIDIA_DRIVER_CAPABILITIES": "utility"},
        ),
        "cluster-login-node": machine(NEW, "13.0", host=linux(cpu_count=64), environ={"SLURM_JOB_PARTITION": "login"}),
    }  # fmt: skip


def broken_libraries() -> dict[str, Facts]:
    """Copies of CUDA, of the driver and of the C library that meet where they should not."""
    two_cudas = Library("libnvJitLink", "/opt/conda/envs/llm/lib/libnvJitLink.so.12", "12.1.105", by="LD_LIBRARY_PATH")
    stub = libcuda("", "stub", "/usr/local/cuda/lib64/stubs", "LD_LIBRARY_PATH")
    wsl = linux(release="6.6-microsoft", wsl=2)
    flash = {**NEW, "flash-attn": "2.7.4.post1+cu12torch2.6cxx11abiFALSE"}
    crashed = (
        LiveProbe("import torch", "ok", detail="2.14.1"),
        LiveProbe(
            "import bitsandbytes", "died", "SIGSEGV", -11, "bitsandbytes/cextension.py:330 in get_native_library"
        ),
    )
    return {
        "conda-with-two-cudas": machine(
            {**MIDDLE, "torch": "2.8.0+cu126"}, "12.6", (A100,), R550, native=native(R550, on_path=(two_cudas,)),
            interpreter=Interpreter("3.11.9", "/opt/conda/envs/llm/bin/python", "/opt/conda/envs/llm", conda="llm"),
            environ={"LD_LIBRARY_PATH": "/opt/conda/envs/llm/lib"},
        ),
        "stub-of-libcuda": machine(NEW, "13.0", (H100,), R580, native=native(libcuda=(stub, libcuda("580.95.05")))),
        "driver-updated-and-not-restarted": machine(NEW, "13.0", (H100,), R580, native=native(Driver("590.44.01"))),
        "wsl-without-libcuda": machine(NEW, "13.0", (RTX_4060,), Driver("581.42", "13.0"), host=wsl, native=native()),
        "glibc-2.17": machine(
            NEW, "13.0", (A100,), R580, host=linux(libc="glibc 2.17", release="3.10.0-1160"),
            native=native(R580, provided={"GLIBCXX": "3.4.19", "CXXABI": "1.3.7"}),
        ),
        "flash-attn-of-another-torch": machine(flash, "13.0", (H100,), R580),
        "x86-environment-on-gh200": machine(NEW, "13.0", (GH200,), R580, host=linux(machine="aarch64")),
        "live-crash-of-bitsandbytes": machine(NEW, "13.0", (H100,), R580, live=crashed),
    }  # fmt: skip


def other_systems() -> dict[str, Facts]:
    """Windows, macOS, AMD and Intel; an old Python; an environment of 600 packages."""
    windows = Host(system="Windows", machine="AMD64", release="10.0.26100", cpu_count=16, memory_total=16 * GIB)
    mac = Host(system="Darwin", machine="arm64", release="24.6.0", cpu_count=8, memory_total=24 * GIB)
    rocm = {**NEW, "torch": "2.14.1+rocm7.1"}
    plain = {k: v for k, v in NEW.items() if k != "triton"}
    crowd = {f"some-package-{n:03d}": f"1.{n}" for n in range(600 - len(NEW))}
    return {
        "healthy-windows-rtx4060-laptop": machine(
            {**plain, "torch": "2.14.1+cu130"}, "13.0", (RTX_4060_LAPTOP,), Driver("581.42", "13.0"), host=windows
        ),
        "windows-laptop-with-pips-torch": machine(
            {**plain, "torch": "2.14.1+cpu"}, None, (RTX_4060_LAPTOP,), Driver("581.42", "13.0"), host=windows
        ),
        "healthy-mi300": machine(
            rocm, gpus=(MI300,), torch=TorchBuild("2.14.1+rocm7.1", hip="7.1.25424"),
            bitsandbytes=BnbBuild("0.50.2", ("cpu", "rocm71")),
        ),
        "mi300-with-the-cuda-torch": machine(NEW, "13.0", (MI300,)),
        "mi300-with-an-old-bitsandbytes": machine(
            {**MIDDLE, "torch": "2.8.0+rocm6.4"}, gpus=(MI300,), torch=TorchBuild("2.8.0+rocm6.4", hip="6.4")
        ),
        "healthy-arc": machine(
            {**NEW, "torch": "2.14.1+xpu"}, gpus=(ARC,), torch=TorchBuild("2.14.1+xpu", xpu="20260100"),
            bitsandbytes=BnbBuild("0.50.2", ("cpu", "xpu2026")),
        ),
        "healthy-m3": machine(plain, gpus=(M3,), host=mac, bitsandbytes=BnbBuild("0.50.2", ("cpu",))),
        "python-3.9": machine(
            {**OLD, "bitsandbytes": "0.48.2"}, "12.1", (RTX_3060,), R550, interpreter=Interpreter("3.9.18", venv=True)
        ),
        "healthy-600-packages": machine({**NEW, **crowd}, "13.0", (H100,) * 8, R580),
    }  # fmt: skip


TORCH_28_ASKS = (
    "nvidia-cublas-cu12==12.8.4.1; platform_system == 'Linux' and platform_machine == 'x86_64'",
    "nvidia-cudnn-cu12==9.10.2.21; platform_system == 'Linux' and platform_machine == 'x86_64'",
    "nvidia-nccl-cu12==2.27.3; platform_system == 'Linux' and platform_machine == 'x86_64'",
    "triton==3.4.0; platform_system == 'Linux' and platform_machine == 'x86_64'",
)
"""A part of what the metadata of torch 2.8.0 asks for."""

ITS_WHEELS = {"nvidia-cublas-cu12": "12.8.4.1", "nvidia-cudnn-cu12": "9.10.2.21", "nvidia-nccl-cu12": "2.27.3"}


def with_wheels(
    more: Mapping[str, str], asks: Mapping[str, tuple[str, ...]] | None = None, without: str = "", **parts: Any
) -> Facts:
    """An A100 with torch 2.8 and NVIDIA's wheels as it asks for them, and what else is installed."""
    versions = {**MIDDLE, **ITS_WHEELS, **more}
    requires = {"torch": TORCH_28_ASKS, **(asks or {})}
    rows = tuple(
        Distribution(n, v, SITE, requires=requires.get(n, ())) for n, v in sorted(versions.items()) if n != without
    )
    return machine(versions, "12.8", (A100,), R580, **{"packages": Packages(rows), **parts})


def beside_torch() -> dict[str, Facts]:
    """NVIDIA's wheels, and packages with CUDA code of their own, beside torch 2.8."""
    nccl = Library("libnccl", "/opt/nccl/lib/libnccl.so.2.18.5", "2.18.5", by="LD_LIBRARY_PATH")
    toolkits = (Library("cuda", "/usr/local/cuda-11.8", "11.8.0"), Library("cuda", "/usr/local/cuda-12.8", "12.8.1"))
    deepspeed = native(R580, toolkits=toolkits, nvcc="11.8.0")
    xformers = {"xformers": ("torch==2.4.1", "numpy")}
    return {
        "healthy-a100-with-nvidia-wheels": with_wheels({}),
        "healthy-deepspeed-with-its-toolkit": with_wheels(
            {"deepspeed": "0.18.2"}, native=deepspeed, environ={"CUDA_HOME": "/usr/local/cuda-12.8"}
        ),
        "old-nccl-on-the-library-path": with_wheels(
            {}, native=native(R580, on_path=(nccl,)), environ={"LD_LIBRARY_PATH": "/opt/nccl/lib"}
        ),
        "nccl-of-two-cudas": with_wheels({"nvidia-nccl-cu11": "2.14.3"}),
        "cublas-left-over-from-cuda-11": with_wheels({"nvidia-cublas-cu11": "11.10.3.66"}),
        "cudnn-moved-by-another-package": with_wheels({"nvidia-cudnn-cu12": "9.1.0.70"}),
        "torch-without-its-cudnn": with_wheels({}, without="nvidia-cudnn-cu12"),
        "deepspeed-with-a-cuda-11-toolkit": with_wheels({"deepspeed": "0.18.2"}, native=deepspeed),
        "xformers-of-another-torch": with_wheels({"xformers": "0.0.28"}, xformers),
    }


def other_vendors() -> dict[str, Facts]:
    """AMD, Intel and Apple beyond the first of each."""
    rocm = {**NEW, "torch": "2.14.1+rocm7.1"}
    plain = {k: v for k, v in NEW.items() if k != "triton"}
    mac = Host(system="Darwin", machine="arm64", release="24.6.0", cpu_count=12, memory_total=36 * GIB)
    mi350 = Gpu("AMD Instinct MI350X", None, 288 * GIB, 287 * GIB, vendor="amd", arch="gfx950")
    radeon = Gpu("AMD Radeon RX 7900 XTX", None, 24 * GIB, 23 * GIB, vendor="amd", arch="gfx1100")
    older = Gpu("AMD Radeon RX 6800", None, 16 * GIB, 16 * GIB, vendor="amd", arch="gfx1030")
    ponte = Gpu("Intel Data Center GPU Max 1550", None, 128 * GIB, 127 * GIB, vendor="intel")
    chip = Gpu("Apple M3 Max GPU", vendor="apple")
    torch = TorchBuild("2.14.1+rocm7.1", hip="7.1.25424")
    shipped = BnbBuild("0.50.2", ("cpu", "rocm64", "rocm70", "rocm71", "rocm714", "rocm715", "rocm72"))

    def amd(gpu: Gpu, **parts: Any) -> Facts:
        return machine(rocm, gpus=(gpu,), **{"torch": torch, "bitsandbytes": shipped, **parts})

    return {
        "healthy-mi350": amd(mi350),
        "healthy-rx7900xtx": amd(radeon),
        "healthy-rx6800-passing-for-another": amd(older, environ={"HSA_OVERRIDE_GFX_VERSION": "11.0.0"}),
        "healthy-max-1550": machine(
            {**NEW, "torch": "2.14.1+xpu"}, gpus=(ponte,), torch=TorchBuild("2.14.1+xpu", xpu="20260100"),
            bitsandbytes=BnbBuild("0.50.2", ("cpu", "xpu2026")),
        ),
        "rx6800-with-rocm-7.1": amd(older),
        "mi300-hidden": amd(MI300, environ={"HIP_VISIBLE_DEVICES": "-1"}),
        "mi300-with-an-override-of-bitsandbytes": amd(MI300, environ={"BNB_ROCM_VERSION": "63"}),
        "arc-with-pips-torch": machine(NEW, "13.0", (ARC,)),
        "m3-with-bnb-0.48": machine({**plain, "bitsandbytes": "0.48.2"}, gpus=(chip,), host=mac),
    }  # fmt: skip


def states() -> dict[str, Facts]:
    """More cards and drivers, and the states they can be in."""
    worn = Gpu(H100.name, "9.0", 80 * GIB, 79 * GIB, ecc=True, ecc_errors=3)
    four = tuple(Gpu(A100.name, "8.0", 80 * GIB, 79 * GIB, index=n) for n in range(4))
    spark = Gpu("NVIDIA GB10", "12.1", 120 * GIB, 118 * GIB)
    arm = {"host": linux(machine="aarch64", cpu_count=20), "native": native(R580, binaries=wheels("aarch64"))}
    compat = libcuda("575.57.08", "compat", "/usr/local/cuda-12.9/compat", "LD_LIBRARY_PATH")
    return {
        "healthy-b200": machine(NEW, "13.0", (Gpu("NVIDIA B200", "10.0", 180 * GIB, 179 * GIB),), R580),
        "healthy-dgx-spark": machine(NEW, "13.0", (spark,), R580, **arm),
        "h100-with-memory-errors": machine(NEW, "13.0", (worn,), R580),
        "four-gpus-and-a-list-with-a-hole": machine(
            NEW, "13.0", four, R580, environ={"CUDA_VISIBLE_DEVICES": "0,1,7,2"}
        ),
        "healthy-a100-beside-a-hidden-t4": machine(
            NEW, "13.0", (A100, Gpu(T4.name, T4.capability, T4.memory_total, T4.memory_free, index=1)), R580,
            environ={"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        ),
        "t4-before-an-a100-by-number": machine(
            NEW, "13.0", (T4, Gpu(A100.name, "8.0", 80 * GIB, 79 * GIB, index=1)), R580,
            environ={"CUDA_VISIBLE_DEVICES": "1"},
        ),
        "healthy-h100-beside-a-hidden-one-in-use": machine(
            NEW, "13.0", (H100, Gpu(H100.name, "9.0", 80 * GIB, 2 * GIB, index=1)), R580,
            environ={"CUDA_VISIBLE_DEVICES": "0"},
        ),
        "compat-package-on-geforce": machine(
            {**MIDDLE, "torch": "2.8.0+cu128"}, "12.8", (RTX_4090,), Driver("535.183.01", "12.2"),
            native=native(libcuda=(compat, libcuda("535.183.01"))),
        ),
        "driver-470-with-cuda-12": machine(MIDDLE, "12.8", (RTX_3060,), Driver("470.256.02", "11.4")),
        "kaggle-p100": machine(
            MIDDLE, "12.8", (Gpu("Tesla P100-PCIE-16GB", "6.0", 16 * GIB, 16 * GIB),), Driver("560.35.03", "12.6"),
            host=linux(container="kaggle", cpu_count=4),
        ),
    }  # fmt: skip


def tried() -> dict[str, Facts]:
    """What `check --live` can end with, each on a machine that looks sound without it."""

    def live(*probes: LiveProbe) -> Facts:
        return machine(
            NEW, "13.0", (H100, H100), R580, live=(LiveProbe("import torch", "ok", detail="2.14.1"), *probes)
        )

    missing = LiveProbe(
        "import bitsandbytes", "failed", exit_code=1, last_frame="ctypes/__init__.py:376 in __init__",
        missing="libnvJitLink.so.13", detail="OSError: libnvJitLink.so.13: cannot open shared object file",
    )  # fmt: skip
    symbol = LiveProbe(
        "import flash_attn", "failed", exit_code=1, missing="_ZN3c105ErrorC2ENS_14SourceLocationE",
        detail="ImportError: undefined symbol: _ZN3c105ErrorC2ENS_14SourceLocationE",
    )  # fmt: skip
    return {
        "live-missing-library": live(missing),
        "live-undefined-symbol-of-flash-attn": live(symbol),
        "live-hang-of-the-second-gpu": live(LiveProbe("allocate on cuda:1", "timeout", detail="no end after 30 s")),
        "live-wrong-4-bit": live(
            LiveProbe("4-bit round trip, bfloat16, on cuda:0", "failed", detail="a product of 1 rows is off by 97.3%")
        ),
        "live-ranks-that-cannot-talk": live(
            LiveProbe("all-reduce of 2 ranks, NCCL", "timeout", detail="no end after 40 s")
        ),
    }


def text_of(facts: Facts) -> str:
    """A machine as the text of its file."""
    return json.dumps(facts.to_wire(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    for name, facts in machines().items():
        (FOLDER / f"{name}.json").write_text(text_of(facts), encoding="utf-8")
