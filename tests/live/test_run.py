"""Live probes against interpreters whose torch, bitsandbytes, ... really crash, hang and lie."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import which

import pytest

from qlora_doctor.facts import LiveProbe
from qlora_doctor.live.run import ending, last_frame, missing_thing, run
from tests.gather.environments import executable, module, virtual_environment

pytestmark = pytest.mark.skipif(os.name == "nt", reason="makes interpreters out of links, and ends them by signals")

SOUND_TORCH = "__version__ = '2.0'\nclass cuda:\n    is_available = staticmethod(lambda: False)\n"
Environment = Callable[..., str]


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """An interpreter in whose environment each given module has this source."""

    def make(**modules: str) -> str:
        python, site = virtual_environment(tmp_path / "environment")
        for name, source in modules.items():
            module(site, name, {"__init__.py": source})
        return str(python)

    return make


def probes(python: str, **more: float) -> dict[str, LiveProbe]:
    return {p.name: p for p in run(python, **more)}  # type: ignore[arg-type]


def torch_of(python: str, **more: float) -> LiveProbe:
    return probes(python, **more)["import torch"]


# ---- how a process ends


def test_a_crash_in_native_code_is_named_with_its_signal_and_where_it_was(environment: Environment) -> None:
    torch = torch_of(environment(torch="import ctypes\ndef load():\n    ctypes.string_at(0)\nload()\n"))
    assert (torch.outcome, torch.signal, torch.exit_code) == ("died", "SIGSEGV", -signal.SIGSEGV)
    assert "ctypes/__init__.py" in torch.last_frame or "torch/__init__.py:3 in load" in torch.last_frame


def test_an_abort_keeps_the_words_that_were_printed_before_it(environment: Environment) -> None:
    source = (
        "import os, sys\nprint('terminate called: hf_abcdefghijklmnopqrstu', file=sys.stderr, flush=True)\nos.abort()\n"
    )
    torch = torch_of(environment(torch=source))
    assert (torch.outcome, torch.signal) == ("died", "SIGABRT")
    assert torch.detail == "terminate called: <redacted>"
    assert torch.last_frame == "torch/__init__.py:3 in <module>"


def test_what_the_kernel_kills_for_memory_is_named_killed(environment: Environment) -> None:
    torch = torch_of(environment(torch="import os\nos._exit(137)\n"))
    assert (torch.outcome, torch.signal, torch.exit_code) == ("died", "SIGKILL", 137)


def test_an_exit_without_a_signal_or_an_exception_has_died_too(environment: Environment) -> None:
    torch = torch_of(environment(torch="import os\nos._exit(3)\n"))
    assert (torch.outcome, torch.signal, torch.exit_code) == ("died", "", 3)


def test_one_that_hangs_is_ended_and_the_others_still_run(environment: Environment) -> None:
    found = probes(environment(torch="import time\nwhile True: time.sleep(1)\n", peft=""), budget=3.0)
    assert found["import torch"].outcome == "timeout"
    assert found["4-bit round trip, float32, on cpu"].outcome == "absent"


def test_what_there_is_no_time_for_is_a_timeout_and_never_ok(environment: Environment) -> None:
    found = probes(environment(torch=SOUND_TORCH, peft=""), budget=0.5)
    assert {p.outcome for p in found.values()} <= {"timeout", "absent"}
    assert "not started" in found["import torch"].detail
    assert all(p.cut for p in found.values() if p.outcome == "timeout")


def test_one_that_is_ended_for_the_time_of_all_is_told_from_one_that_hangs(environment: Environment) -> None:
    found = torch_of(environment(torch="import time\nwhile True: time.sleep(1)\n"), budget=2.0)
    assert (found.outcome, found.cut) == ("timeout", True)
    assert "were used up" in found.detail


def test_a_crash_at_the_very_end_is_not_hidden_by_the_result_before_it(environment: Environment) -> None:
    torch = torch_of(environment(torch=SOUND_TORCH + "import atexit, os\natexit.register(os._exit, 3)\n"))
    assert (torch.outcome, torch.exit_code) == ("died", 3)


def test_garbage_and_an_outcome_of_its_own_are_not_believed(environment: Environment) -> None:
    source = 'import os\nos.write(1, b\'{"outcome": "ok"}\\xff\\x00\' * 1000)\nos._exit(0)\n'
    torch = torch_of(environment(torch=source))
    assert (torch.outcome, torch.detail) == ("failed", "it ended without a result")


def test_garbage_around_a_sound_import_does_no_harm(environment: Environment) -> None:
    torch = torch_of(environment(torch=SOUND_TORCH + "import os\nos.write(1, b'\\xff\\x00noise')\n"))
    assert (torch.outcome, torch.detail) == ("ok", "2.0")


def test_a_missing_library_is_named(environment: Environment) -> None:
    source = "raise ImportError('libcudart.so.12: cannot open shared object file: No such file or directory')\n"
    found = probes(environment(torch=SOUND_TORCH, bitsandbytes=source))
    bnb = found["import bitsandbytes"]
    assert (bnb.outcome, bnb.missing) == ("failed", "libcudart.so.12")
    assert "libcudart.so.12" in bnb.detail and bnb.last_frame == "bitsandbytes/__init__.py:1 in <module>"
    assert found["4-bit round trip, bfloat16, on cpu"] == LiveProbe(
        "4-bit round trip, bfloat16, on cpu", "absent", detail="bitsandbytes cannot be imported"
    )


@pytest.fixture
def library(tmp_path: Path) -> Callable[..., Path]:
    """Makes a shared library of C source."""
    compiler = which("cc") or which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler to make libraries for Linux with")

    def make(name: str, source: str, *options: str) -> Path:
        (tmp_path / "source.c").write_text(source)
        command = [compiler, "-shared", "-fPIC", "-o", str(tmp_path / name), str(tmp_path / "source.c"), *options]
        subprocess.run(command, check=True)
        return tmp_path / name

    return make


def test_a_symbol_that_the_real_loader_does_not_find_is_named(
    environment: Environment, library: Callable[..., Path]
) -> None:
    path = library("libtorch_cuda.so", "int ncclCommRegister(void); int use(void) { return ncclCommRegister(); }\n")
    torch = torch_of(environment(torch=f"import ctypes, os\nctypes.CDLL({str(path)!r}, mode=os.RTLD_NOW)\n"))
    assert (torch.outcome, torch.missing) == ("failed", "ncclCommRegister")
    assert torch.last_frame.endswith("in __init__") and "ncclCommRegister" in torch.detail


def test_a_library_that_the_real_loader_does_not_find_is_named(
    environment: Environment, library: Callable[..., Path]
) -> None:
    gone = library("libcudart.so.12", "int cudart;\n", "-Wl,-soname,libcudart.so.12")
    path = library("libbnb.so", "int bnb;\n", "-Wl,--no-as-needed", str(gone))
    gone.unlink()
    source = f"import ctypes\nctypes.CDLL({str(path)!r})\n"
    found = probes(environment(torch=SOUND_TORCH, bitsandbytes=source))["import bitsandbytes"]
    assert (found.outcome, found.missing) == ("failed", "libcudart.so.12")


def test_a_crash_in_native_code_of_a_library_is_told_from_one_in_python(
    environment: Environment, library: Callable[..., Path]
) -> None:
    path = library("libcrash.so", "int crash(void) { return *(volatile int *)8; }\n")
    torch = torch_of(environment(torch=f"import ctypes\ndef load():\n    ctypes.CDLL({str(path)!r}).crash()\nload()\n"))
    assert (torch.outcome, torch.signal) == ("died", "SIGSEGV")
    assert "torch/__init__.py:3 in load" in torch.last_frame or "libcrash.so" in torch.last_frame


def test_a_part_of_transformers_that_breaks_only_when_a_model_is_loaded_is_found(environment: Environment) -> None:
    python = environment(torch=SOUND_TORCH, transformers="__version__ = '5'\n")
    site = next(Path(python).parents[1].glob("lib/python*/site-packages"))
    broken = "raise ImportError('undefined symbol: _ZN3c105ErrorC2E')\n"
    module(site, "transformers/models/llama", {"modeling_llama.py": broken, "../__init__.py": ""})
    found = probes(python)["import transformers"]
    assert (found.outcome, found.missing) == ("failed", "_ZN3c105ErrorC2E")


@pytest.mark.parametrize(
    ("torch", "device"),
    [
        (
            "class xpu:\n    is_available = staticmethod(lambda: True)\n    device_count = staticmethod(lambda: 1)\n",
            "xpu:0",
        ),
        ("class backends:\n    class mps:\n        is_available = staticmethod(lambda: True)\n", "mps"),
    ],
    ids=["Intel", "Apple"],
)
def test_gpus_of_other_makers_are_tried_too(environment: Environment, torch: str, device: str) -> None:
    found = probes(environment(torch=SOUND_TORCH + torch, bitsandbytes=""))
    assert found[f"allocate on {device}"].outcome == "failed"
    assert f"4-bit round trip, bfloat16, on {device}" in found
    assert not any("NCCL" in name for name in found)


def test_devices_that_a_program_makes_up_are_not_believed(environment: Environment) -> None:
    torch = (
        "class cuda:\n    is_available = staticmethod(lambda: True)\n    device_count = staticmethod(lambda: 1)\n"
        "import builtins\nbuiltins.range = lambda n: ['0; rm', 1]\n"
    )
    found = probes(environment(torch=torch))
    assert [n for n in found if n.startswith("allocate")] == ["allocate on cuda:1"]


def test_what_is_not_installed_is_absent_and_no_fault(environment: Environment) -> None:
    found = probes(environment())
    assert {p.outcome for p in found.values()} == {"absent"}
    assert found["import flash_attn"].detail == "it is not installed"


def test_a_module_of_the_current_folder_is_not_taken(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = environment(torch=SOUND_TORCH)
    (tmp_path / "json.py").write_text("raise SystemExit('taken')\n")
    (tmp_path / "bitsandbytes.py").write_text("raise SystemExit('taken')\n")
    monkeypatch.chdir(tmp_path)
    found = probes(python)
    assert (found["import torch"].outcome, found["import bitsandbytes"].outcome) == ("ok", "absent")


def test_gpus_that_torch_sees_are_each_tried(environment: Environment) -> None:
    torch = (
        "class cuda:\n    is_available = staticmethod(lambda: True)\n    device_count = staticmethod(lambda: 2)\n"
        "def manual_seed(seed): raise RuntimeError('CUDA error: all CUDA-capable devices are busy or unavailable')\n"
    )
    found = probes(environment(torch=torch))
    for number in (0, 1):
        probe = found[f"allocate on cuda:{number}"]
        assert probe.outcome == "failed" and "busy or unavailable" in probe.detail
    assert "all-reduce of 2 ranks, NCCL" in found


def test_a_rank_that_crashes_is_named(environment: Environment) -> None:
    source = SOUND_TORCH + "import sys, os\nif '3' in sys.argv or 'gloo' in sys.argv[1:2]: os.kill(os.getpid(), 11)\n"
    probe = probes(environment(torch=source))["all-reduce of 2 ranks, gloo"]
    assert probe.outcome == "failed" and "rank 0 was ended by signal 11" in probe.detail


def test_no_interpreter_is_a_failure_of_every_probe(tmp_path: Path) -> None:
    python = executable(tmp_path / "python", "#!/gone/python\n")
    assert torch_of(str(python)).outcome == "failed"


def test_progress_names_each_probe_before_and_after(environment: Environment) -> None:
    told: list[tuple[str, str]] = []
    run(environment(torch=SOUND_TORCH), lambda name, outcome: told.append((name, outcome)))
    assert told[:2] == [("import torch", ""), ("import torch", "ok")]


# ---- reading what is left of a process


@pytest.mark.parametrize(
    ("status", "name"),
    [(-11, "SIGSEGV"), (139, "SIGSEGV"), (134, "SIGABRT"), (0xC0000005, "ACCESS_VIOLATION"), (-1073741819, "ACCESS_VIOLATION"), (1, ""), (0, "")],
)  # fmt: skip
def test_the_ways_to_say_a_signal_are_one(status: int, name: str) -> None:
    assert ending(status)[1] == name


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ("ImportError: /x/libbitsandbytes.so: undefined symbol: cquantize_blockwise", "cquantize_blockwise"),
        (
            "/lib/libc.so.6: version `GLIBC_2.28' not found (required by /x/torch/lib/libtorch.so)",
            "libc.so.6 GLIBC_2.28",
        ),
        ("ModuleNotFoundError: No module named 'triton.ops'", "triton.ops"),
        ("ImportError: DLL load failed while importing _C: The specified module could not be found.", "_C"),
        ("ValueError: no", ""),
    ],
)
def test_what_the_loader_did_not_find_is_read_from_its_words(words: str, missing: str) -> None:
    assert missing_thing(words) == missing


def test_a_native_frame_comes_before_a_python_frame() -> None:
    err = (
        "Fatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call first):\n"
        '  File "/v/lib/python3.14/site-packages/torch/__init__.py", line 5 in load\n\n'
        "Current thread's C stack trace (most recent call first):\n"
        '  Binary file "/usr/bin/python3.14", at _Py_DumpStack+0x1\n'
        '  Binary file "/v/lib/python3.14/site-packages/torch/lib/libtorch.so", at _ZN3foo+0x12\n'
    )
    assert last_frame(err) == "torch/lib/libtorch.so at _ZN3foo+0x12"


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the other test's words are of 3.14")
def test_a_program_that_says_nothing_has_no_frame() -> None:
    assert last_frame("some words\n") == ""
