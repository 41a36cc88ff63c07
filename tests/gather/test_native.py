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

from qlora_doctor.facts import Facts, GpuProcess, MigSlice, Native, Unknown
from qlora_doctor.gather import probe
from qlora_doctor.gather.interpreters import here, other
from tests.gather.environments import executable, module, virtual_environment

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


AMD_STATIC = {
    "gpu": 0,
    "asic": {"market_name": "AMD Radeon RX 7900 XTX", "device_id": "0x744c", "target_graphics_version": "gfx1100"},
    "vram": {"type": "GDDR6", "size": {"value": 24560, "unit": "MB"}},
}
RADEON = {"name": "AMD GPU 0x744c", "vendor": "amd", "arch": "", "index": 0}


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a program on PATH that prints this text (a shell script's `case` where it holds one)."""

    def write(name: str, text: str) -> None:
        executable(tmp_path / "bin" / name, text if text.startswith("#!") else f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    return write


@pytest.mark.parametrize("shape", [{"gpu_data": [AMD_STATIC]}, [AMD_STATIC]], ids=["ROCm 6.4", "ROCm 6.0"])
def test_amd_smi_names_a_card_that_the_kernel_does_not(tool: Any, shape: Any) -> None:
    tool("amd-smi", "WARNING: the user is not in the render group\n" + json.dumps(shape, indent=1))
    (gpu,) = probe.named_gpus([RADEON.copy()])
    assert (gpu["name"], gpu["arch"], gpu["memory_total"]) == ("AMD Radeon RX 7900 XTX", "gfx1100", 24560 << 20)


@pytest.mark.parametrize("series", ["Card Series", "Card series"])
def test_rocm_smi_is_asked_where_amd_smi_is_not_there_or_fails(tool: Any, series: str) -> None:
    tool("amd-smi", "#!/bin/sh\necho 'ERROR: DRIVER_NOT_LOADED' >&2\nexit 1\n")
    card0 = {"VRAM Total Memory (B)": str(16 << 30), "VRAM Total Used Memory (B)": str(1 << 30), series: "RX 6800"}
    small = {"VRAM Total Memory (B)": "67108864", "VRAM Total Used Memory (B)": "26079232", series: "Raphael"}
    answer = {"card0": {**card0, "GFX Version": "gfx1030"}, "card1": small, "system": {"Driver version": "6.8"}}
    tool("rocm-smi", json.dumps(answer))
    (gpu,) = probe.named_gpus([RADEON.copy()])
    assert (gpu["name"], gpu["arch"]) == ("RX 6800", "gfx1030")
    assert (gpu["memory_total"], gpu["memory_free"]) == (16 << 30, 15 << 30)


@pytest.mark.parametrize(
    "answer", ["[]", '{"gpu_data": 3}', "[{", '{"gpu_data": [{"asic": null}]}', "no cards", "[" * 99_999]
)
def test_a_tool_that_answers_strangely_leaves_the_general_name(tool: Any, answer: str) -> None:
    tool("amd-smi", answer)
    tool("rocm-smi", answer)
    assert probe.named_gpus([RADEON.copy()]) == [RADEON]


def test_a_tool_that_hangs_is_ended(tool: Any) -> None:
    tool("amd-smi", "#!/bin/sh\nsleep 60\n")
    assert probe.named_gpus([RADEON.copy()], limit=0.3) == [RADEON]


def test_xpu_smi_tells_the_name_and_memory_of_an_intel_card(tool: Any) -> None:
    every = {"device_list": [{"device_id": 0, "device_name": "Intel(R) Arc(TM) B580 Graphics"}]}
    one = {"device_id": 0, "memory_physical_size_byte": str(12 << 30), "memory_free_size_byte": str(11 << 30)}
    tool(
        "xpu-smi", f"#!/bin/sh\ncase \"$*\" in *-d*) echo '{json.dumps(one)}';; *) echo '{json.dumps(every)}';; esac\n"
    )
    (gpu,) = probe.named_gpus([{"name": "Intel GPU 0xe20b", "vendor": "intel", "index": 0}])
    assert gpu["name"] == "Intel Arc B580 Graphics"
    assert (gpu["memory_total"], gpu["memory_free"]) == (12 << 30, 11 << 30)


def test_a_card_without_a_name_has_that_of_the_list_of_pci_devices(tmp_path: Path) -> None:
    (tmp_path / "usr/share/misc").mkdir(parents=True)
    (tmp_path / "usr/share/misc/pci.ids").write_text(
        "# names\n8086  Intel Corporation\n\t46a6  Alder Lake-P GT2 [Iris Xe Graphics]\n\te20b  Battlemage G21 [Arc B580]\n"
        "\t\t8086 1100  a board\n8087  Another\n\te20c  not this\n"
    )
    card(tmp_path, 0, "0000:03:00.0", vendor="0x8086", device="0xe20b")
    card(tmp_path, 1, "0000:04:00.0", vendor="0x8086", device="0xe20c")
    assert [g["name"] for g in probe.other_gpus(str(tmp_path) + "/")] == ["Intel Arc B580", "Intel GPU 0xe20c"]


@pytest.mark.parametrize(("number", "kind"), [(90402, "gfx942"), (90010, "gfx90a"), (110000, "gfx1100"), (0, "")])
def test_the_kind_of_an_amd_card_comes_from_its_compute_driver(tmp_path: Path, number: int, kind: str) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").write_text("")
    card(tmp_path, 0, "0000:04:00.0", vendor="0x1002", device="0x74a1", product_name="AMD Instinct MI300X")
    (tmp_path / "sys/devices/0000:04:00.0/drm/renderD128").mkdir(parents=True)
    node = tmp_path / "sys/class/kfd/kfd/topology/nodes/1"
    node.mkdir(parents=True)
    (node / "properties").write_text(f"simd_count 1216\ngfx_target_version {number}\ndrm_render_minor 128\n")
    (gpu,) = probe.other_gpus(str(tmp_path) + "/")
    assert gpu["arch"] == kind


# ---- a libnvidia-ml that answers from a JSON file, asked by ctypes and by the real nvidia-ml-py

H100_GPU = {"name": "NVIDIA H100 80GB HBM3", "major": 9, "minor": 0, "total": 80, "free": 20, "mig": 0, "mode": 0}
A100_GPU = {"name": "NVIDIA A100", "major": 8, "minor": 0, "total": 80, "free": 79, "mig": 1}
Answer = Callable[..., Path]


@pytest.fixture
def nvml(compiled: Compile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answer:
    """Puts a libnvidia-ml where the loader looks first, which tells of these GPUs."""
    if probe.nvidia_traces():
        pytest.skip("this machine has an NVIDIA driver of its own")

    def answer(*gpus: dict[str, Any], **more: Any) -> Path:
        source = (Path(__file__).parent / "nvml_stub.c").read_text(encoding="utf-8")
        compiled(tmp_path / "driver" / "libnvidia-ml.so.1", source)
        data = {"driver": "580.95.05", "cuda": 13000, **more, "gpus": list(gpus)}
        (tmp_path / "answers.json").write_text(json.dumps(data))
        monkeypatch.setenv("NVML_ANSWERS", str(tmp_path / "answers.json"))
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "driver"))
        return tmp_path / "answers.json"

    return answer


def asked(bindings: str) -> Facts:
    """The facts of a process without site-packages, told of this nvidia-ml-py ("" for none)."""
    command = [sys.executable, "-I", "-S", "-B", probe.__file__, "ab", "cd", "", "gpus", "driver"]
    out = run(command, env={**os.environ, probe.BINDINGS: bindings}, capture_output=True, check=True).stdout
    return Facts.from_wire(json.loads(out.decode().strip()[2:-2]))


def nvidia_ml_py() -> str:
    found = probe.bindings_file()
    if not found:
        pytest.skip("nvidia-ml-py is not installed here")
    return found


def test_eight_gpus_and_what_holds_their_memory(nvml: Answer) -> None:
    nvml(*[{**H100_GPU, "ecc": 1, "errors": 0, "pid": 1, "held": 59}] * 8)
    facts = here(("gpus", "driver"))
    assert [g.index for g in facts.gpus] == list(range(8))
    assert len({g.uuid for g in facts.gpus}) == 8
    gpu = facts.gpus[7]
    assert (gpu.capability, gpu.memory_total, gpu.memory_free) == ("9.0", 80 << 30, 20 << 30)
    assert gpu.processes == (GpuProcess(1, gpu.processes[0].name, 59 << 30),)
    assert (gpu.ecc, gpu.ecc_errors, gpu.mig, gpu.slices) == (True, 0, False, None)
    assert facts.driver is not None and facts.driver.cuda == "13.0"


def test_modes_slices_and_errors_are_told(nvml: Answer) -> None:
    nvml(
        {**A100_GPU, "slices": 2, "mode": 3, "ecc": 1, "errors": 4},
        {**A100_GPU, "slices": 0, "mode": 2, "ecc": 0, "errors": 0},
        {"name": "Tesla T4", "major": 7, "minor": 5, "total": 15, "free": 15, "mode": 0},
    )
    split, empty, plain = here(("gpus",)).gpus
    assert split.slices == (MigSlice("MIG-0-1", 10 << 30, "NVIDIA A100"), MigSlice("MIG-0-2", 10 << 30, "NVIDIA A100"))
    assert (split.compute_mode, split.ecc_errors) == ("exclusive-process", 4)
    assert (empty.mig, empty.slices, empty.compute_mode, empty.ecc) == (True, (), "prohibited", False)
    assert (plain.mig, plain.ecc, plain.ecc_errors) == (False, None, None)


def test_the_facts_of_such_a_machine_survive_the_wire(nvml: Answer) -> None:
    nvml({**A100_GPU, "slices": 2, "mode": 3, "ecc": 1, "errors": 4})
    facts = here(("gpus", "driver", "native"))
    assert Facts.from_wire(json.loads(json.dumps(facts.to_wire()))) == facts
    assert isinstance(facts.native, Native)


def test_nvidias_own_bindings_and_ctypes_alone_say_the_same(nvml: Answer) -> None:
    nvml(
        {**A100_GPU, "slices": 2, "mode": 3, "ecc": 1, "errors": 4},
        {**H100_GPU, "ecc": 1, "errors": 0, "pid": 1, "held": 59},
        {**H100_GPU, "ecc": 0, "pid": 1, "held": -1},
        {"name": "Tesla T4", "major": 7, "minor": 5, "total": 15, "free": 15, "mode": 0},
    )
    by_bindings, by_ctypes = asked(nvidia_ml_py()), asked("")
    assert len(by_ctypes.gpus) == 4 and by_ctypes.gpus[2].processes[0].memory is None
    assert by_bindings.gpus == by_ctypes.gpus
    sources = [d.source for d in (by_bindings.driver, by_ctypes.driver) if d is not None]
    assert sources == ["nvidia-ml-py", "NVML"]


def test_bindings_that_are_broken_are_no_reason_to_know_nothing(nvml: Answer, tmp_path: Path) -> None:
    nvml(H100_GPU)
    (tmp_path / "pynvml.py").write_text("raise RuntimeError('an old fork')\n")
    facts = asked(str(tmp_path / "pynvml.py"))
    assert [g.name for g in facts.gpus] == ["NVIDIA H100 80GB HBM3"]
    assert facts.driver is not None and facts.driver.source == "NVML"


@pytest.mark.parametrize(
    ("code", "words"), [(18, "restart the machine"), (9, "not loaded"), (15, "fallen off the bus"), (77, "error 77")]
)
def test_a_driver_that_refuses_says_why(nvml: Answer, code: int, words: str) -> None:
    nvml(H100_GPU, init=code)
    gpus = asked("").state("gpus")
    assert isinstance(gpus, Unknown) and words in gpus.reason


def test_a_driver_library_that_aborts_takes_nobody_along(nvml: Answer) -> None:
    nvml(H100_GPU, init=-6)
    facts = here(("gpus", "interpreter"))
    gpus = facts.state("gpus")
    assert isinstance(gpus, Unknown) and "ended the process" in gpus.reason
    assert facts.interpreter.executable == sys.executable
