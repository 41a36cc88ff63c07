"""Native libraries: ELF headers made by the compiler, copies of libcuda, toolkits, and a libnvidia-ml of our own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import which
from subprocess import run
from typing import Any

import pytest

from qlora_doctor.facts import Facts, GpuProcess, MigSlice, Native
from qlora_doctor.gather import probe
from qlora_doctor.gather.interpreters import here, other
from tests.gather.environments import module, virtual_environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ELF, ld.so and libnvidia-ml are Linux's")

Compile = Callable[..., Path]


@pytest.fixture
def compiled(tmp_path: Path) -> Compile:
    """Makes a shared library of C source."""
    compiler = which("cc") or which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make libraries with")

    def make(path: Path, source: str, *options: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = tmp_path / "source.c"
        text.write_text(source)
        run([compiler, "-shared", "-fPIC", "-o", str(path), str(text), *options], check=True)
        return path

    return make


@pytest.fixture
def asking(compiled: Compile, tmp_path: Path) -> Path:
    """A library that asks for GLIBC_9.7, GLIBC_9.10 and GLIBCXX_3.4.99, and links libcudart.so.12."""
    script = tmp_path / "versions"
    script.write_text("GLIBC_9.7 { global: old; };\nGLIBC_9.10 { global: new; };\nGLIBCXX_3.4.99 { global: plus; };\n")
    source = "int old(void) { return 1; }\nint new(void) { return 2; }\nint plus(void) { return 3; }\n"
    base = compiled(tmp_path / "libbase.so", source, f"-Wl,--version-script={script}", "-Wl,-soname,libbase.so")
    cudart = compiled(tmp_path / "libcudart.so.12", "int cudart;", "-Wl,-soname,libcudart.so.12")
    user = "int old(void); int new(void); int plus(void); int all(void) { return old() + new() + plus(); }\n"
    return compiled(tmp_path / "user.so", user, "-Wl,--no-as-needed", str(base), str(cudart))


def test_the_floors_and_links_of_a_binary_are_read_without_loading_it(asking: Path) -> None:
    found = probe.elf(str(asking))
    assert found is not None
    assert (found["floors"]["GLIBC"], found["floors"]["GLIBCXX"]) == ("9.10", "3.4.99")
    assert found["links"] == ["libcudart.so.12"]
    assert found["machine"] == os.uname().machine


@pytest.mark.parametrize("cut", [0, 10, 64, 500, 4000])
def test_a_file_that_is_cut_short_is_no_binary_and_no_crash(asking: Path, cut: int) -> None:
    data = asking.read_bytes()
    asking.write_bytes(data[:cut])
    assert probe.elf(str(asking)) is None


def test_bytes_that_are_wrong_do_no_harm(asking: Path) -> None:
    data = bytearray(asking.read_bytes())
    for start in range(0, len(data), 997):
        damaged = bytearray(data)
        damaged[start : start + 64] = b"\xff" * len(damaged[start : start + 64])
        asking.write_bytes(damaged)
        found = probe.elf(str(asking))
        assert found is None or set(found) == {"machine", "floors", "links"}


def test_the_binaries_of_the_stack_are_those_of_the_environment(asking: Path, tmp_path: Path) -> None:
    python, site = virtual_environment(tmp_path / "environment")
    torch = module(site, "torch")
    (torch / "lib").mkdir()
    (torch / "lib" / "libtorch_cpu.so").write_bytes(asking.read_bytes())
    module(site, "flash_attn")
    (site / "flash_attn_2_cuda.cpython-311-x86_64-linux-gnu.so").write_bytes(asking.read_bytes())
    found = other(str(python), ("native",)).native.binaries
    assert [(b.module, b.floors["GLIBC"]) for b in found] == [("torch", "9.10"), ("flash_attn", "9.10")]


def test_what_libstdcxx_offers_is_the_newest_by_number(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "libstdc++.so.6").write_bytes(
        b"\0GLIBCXX_3.4\0GLIBCXX_3.4.9\0GLIBCXX_3.4.30\0CXXABI_1.3.13\0CXXABI_FLOAT128\0"
    )
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert Facts.from_wire(probe.probe(["native"])).native.provided == {"GLIBCXX": "3.4.30", "CXXABI": "1.3.13"}


# ---- libcuda and toolkits


def place(folder: Path, version: str = "") -> Path:
    """A libcuda.so.1 in a folder; with a version, a link as drivers make it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "libcuda.so.1"
    if version:
        (folder / f"libcuda.so.{version}").write_bytes(b"")
        path.symlink_to(f"libcuda.so.{version}")
    else:
        path.write_bytes(b"")
    return path


def test_copies_of_libcuda_come_in_the_order_of_the_loader(tmp_path: Path) -> None:
    root = str(tmp_path) + "/"
    stub = place(tmp_path / "usr/local/cuda/lib64/stubs")
    cached = place(tmp_path / "opt/driver", "550.120")
    place(tmp_path / "usr/lib/wsl/lib")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/ld.so.cache").write_bytes(b"junk\0libcuda.so.1\0" + str(cached).encode() + b"\0more")
    found = probe.libcuda_copies([str(stub.parent)], root)
    assert [(c["kind"], c["by"], c["version"]) for c in found] == [
        ("stub", "LD_LIBRARY_PATH", ""),
        ("driver", "ld.so.cache", "550.120"),
        ("wsl", "not on the loader's path", ""),
    ]


def test_a_compatibility_package_is_told_from_a_driver(tmp_path: Path) -> None:
    place(tmp_path / "usr/local/cuda-12.8/compat", "570.86.10")
    (tmp_path / "usr/local/cuda").symlink_to("cuda-12.8")
    (found,) = probe.libcuda_copies([], str(tmp_path) + "/")
    assert (found["kind"], found["version"]) == ("compat", "570.86.10")


def test_cuda_libraries_on_the_path_have_the_version_of_their_longest_name(tmp_path: Path) -> None:
    for name in ("libnvJitLink.so.12", "libnvJitLink.so.12.1.105", "libcudart.so.12", "libother.so.1"):
        (tmp_path / name).write_bytes(b"")
    found = probe.cuda_copies([str(tmp_path), str(tmp_path / "gone")])
    assert [(c["name"], c["version"]) for c in found] == [("libcudart", "12"), ("libnvJitLink", "12.1.105")]


def test_toolkits_are_told_by_their_own_word_else_by_their_name(tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, text in (("cuda-12.4", '{"cuda" : {"name": "CUDA SDK", "version" : "12.4.1"}}'), ("cuda-11.8", "")):
        (tmp_path / "usr/local" / name).mkdir(parents=True)
        (tmp_path / "usr/local" / name / "version.json").write_text(text)
    (tmp_path / "usr/local/cuda").symlink_to("cuda-12.4")
    found = probe.toolkits(str(tmp_path) + "/")
    assert sorted(t["version"] for t in found) == ["11.8", "12.4.1"]


# ---- AMD and Intel


def card(root: Path, number: int, address: str, **files: str) -> None:
    """A card as sysfs shows it: a link to the device at this PCI address."""
    device = root / "sys/devices" / address
    device.mkdir(parents=True)
    for name, text in files.items():
        (device / name).write_text(text + "\n")
    (root / f"sys/class/drm/card{number}").mkdir(parents=True)
    (root / f"sys/class/drm/card{number}/device").symlink_to(device)


def test_cards_of_amd_and_intel_are_found_and_what_is_built_in_is_not(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").write_text("")
    card(tmp_path, 0, "0000:00:02.0", vendor="0x8086", device="0x46a6")
    card(tmp_path, 1, "0000:03:00.0", vendor="0x8086", device="0xe20b")
    card(tmp_path, 2, "0000:04:00.0", vendor="0x1002", product_name="AMD Instinct MI300X",
         mem_info_vram_total=str(192 << 30), mem_info_vram_used=str(2 << 30))  # fmt: skip
    card(tmp_path, 3, "0000:05:00.0", vendor="0x1002", mem_info_vram_total=str(512 << 20))
    card(tmp_path, 4, "0000:06:00.0", vendor="0x10de")
    found = probe.other_gpus(str(tmp_path) + "/")
    assert [(g["name"], g["vendor"], g["index"]) for g in found] == [
        ("Intel GPU 0xe20b", "intel", 0),
        ("AMD Instinct MI300X", "amd", 1),
    ]
    assert (found[1]["memory_total"], found[1]["memory_free"]) == (192 << 30, 190 << 30)


def test_an_amd_card_without_its_compute_driver_is_no_gpu_to_compute_on(tmp_path: Path) -> None:
    card(tmp_path, 0, "0000:04:00.0", vendor="0x1002", mem_info_vram_total=str(192 << 30))
    assert probe.other_gpus(str(tmp_path) + "/") == []


# ---- a libnvidia-ml that answers from a file

NVML = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* One line a GPU: name|major|minor|total|free|mig|slices|mode|ecc|errors|pid|held */
static char lines[16][512]; static unsigned count;
static const char *field(long gpu, int n) {
    static char copy[512]; strcpy(copy, lines[gpu]); char *p = copy;
    while (n--) p = strchr(p, '|') + 1;
    char *end = strpbrk(p, "|\n"); if (end) *end = 0; return p;
}
static long gpu(void *d) { return ((long)d & 0xff) - 1; }
static int slice(void *d) { return ((long)d >> 8) & 0xff; }
static long number(void *d, int n) { return atol(field(gpu(d), n)); }
int nvmlInit_v2(void) {
    FILE *f = fopen(getenv("NVML_ANSWERS"), "r"); if (!f) return 9;
    count = 0; while (count < 16 && fgets(lines[count], 512, f)) count++;
    fclose(f); return 0;
}
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *to, unsigned n) { strncpy(to, "580.95.05", n); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = 13000; return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = count; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)(long)(i + 1); return 0; }
int nvmlDeviceGetName(void *d, char *to, unsigned n) { strncpy(to, field(gpu(d), 0), n); return 0; }
int nvmlDeviceGetUUID(void *d, char *to, unsigned n) {
    if (slice(d)) snprintf(to, n, "MIG-%ld-%d", gpu(d), slice(d)); else snprintf(to, n, "GPU-%ld", gpu(d));
    return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *d, int *a, int *b) { *a = number(d, 1); *b = number(d, 2); return 0; }
int nvmlDeviceGetMemoryInfo(void *d, unsigned long long *m) {
    m[0] = (unsigned long long)number(d, 3) << 30; m[1] = (unsigned long long)number(d, 4) << 30;
    if (slice(d)) m[0] = 10ull << 30;
    return 0;
}
int nvmlDeviceGetMigMode(void *d, unsigned *a, unsigned *b) { if (number(d, 5) < 0) return 3; *a = *b = number(d, 5); return 0; }
int nvmlDeviceGetMaxMigDeviceCount(void *d, unsigned *n) { *n = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *d, unsigned i, void **s) {
    if (i >= number(d, 6)) return 6;
    *s = (void *)((long)d | ((long)(i + 1) << 8)); return 0;
}
int nvmlDeviceGetComputeMode(void *d, int *m) { *m = number(d, 7); return 0; }
int nvmlDeviceGetEccMode(void *d, unsigned *a, unsigned *b) { if (number(d, 8) < 0) return 3; *a = *b = number(d, 8); return 0; }
int nvmlDeviceGetTotalEccErrors(void *d, int kind, int counter, unsigned long long *n) {
    if (kind != 1 || counter != 0) return 2;
    *n = number(d, 9); return 0;
}
struct process { unsigned pid; unsigned long long memory; unsigned a, b; };
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *n, struct process *p) {
    *n = number(d, 10) ? 1 : 0; p[0].pid = number(d, 10); p[0].memory = (unsigned long long)number(d, 11) << 30; return 0;
}
"""


@pytest.fixture
def nvml(compiled: Compile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a libnvidia-ml where the loader looks first, which tells of GPUs with these rows."""
    if probe.nvidia_traces():
        pytest.skip("this machine has an NVIDIA driver of its own")

    def answer(*rows: str) -> None:
        compiled(tmp_path / "driver" / "libnvidia-ml.so.1", NVML)
        (tmp_path / "answers").write_text("\n".join(rows) + "\n")
        monkeypatch.setenv("NVML_ANSWERS", str(tmp_path / "answers"))
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "driver"))

    return answer


def test_eight_gpus_and_what_holds_their_memory(nvml: Callable[..., None]) -> None:
    nvml(*["NVIDIA H100 80GB HBM3|9|0|80|20|0|0|0|1|0|1|59"] * 8)
    facts = here(("gpus", "driver"))
    assert [g.index for g in facts.gpus] == list(range(8))
    assert len({g.uuid for g in facts.gpus}) == 8
    gpu = facts.gpus[7]
    assert (gpu.capability, gpu.memory_total, gpu.memory_free) == ("9.0", 80 << 30, 20 << 30)
    assert gpu.processes == (GpuProcess(1, gpu.processes[0].name, 59 << 30),)
    assert (gpu.ecc, gpu.ecc_errors, gpu.mig, gpu.slices) == (True, 0, False, None)
    assert facts.driver is not None and facts.driver.cuda == "13.0"


def test_modes_slices_and_errors_are_told(nvml: Callable[..., None]) -> None:
    nvml(
        "NVIDIA A100|8|0|80|79|1|2|3|1|4|0|0",
        "NVIDIA A100|8|0|80|79|1|0|2|0|0|0|0",
        "Tesla T4|7|5|15|15|-1|0|0|-1|0|0|0",
    )
    split, empty, plain = here(("gpus",)).gpus
    assert split.slices == (MigSlice("MIG-0-1", 10 << 30, "NVIDIA A100"), MigSlice("MIG-0-2", 10 << 30, "NVIDIA A100"))
    assert (split.compute_mode, split.ecc_errors) == ("exclusive-process", 4)
    assert (empty.mig, empty.slices, empty.compute_mode, empty.ecc) == (True, (), "prohibited", False)
    assert (plain.mig, plain.ecc, plain.ecc_errors) == (False, None, None)


def test_the_facts_of_such_a_machine_survive_the_wire(nvml: Callable[..., None]) -> None:
    nvml("NVIDIA A100|8|0|80|79|1|2|3|1|4|0|0")
    facts = here(("gpus", "driver", "native"))
    assert Facts.from_wire(json.loads(json.dumps(facts.to_wire()))) == facts
    assert isinstance(facts.native, Native)
