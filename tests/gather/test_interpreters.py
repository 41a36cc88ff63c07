from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.errors import NewerSchema, ProbeError, UsageError, WireError
from qlora_doctor.facts import Driver, Gpu, GpuProcess, Unknown
from qlora_doctor.gather import probe
from qlora_doctor.gather.interpreters import here, other, saved
from tests.gather.environments import executable, install, module, virtual_environment

pytestmark = pytest.mark.skipif(os.name == "nt", reason="makes interpreters out of shell scripts and links")


@pytest.fixture
def environment(tmp_path: Path) -> tuple[Path, Path]:
    """The interpreter and the site-packages of a virtual environment with torch in it."""
    python, site = virtual_environment(tmp_path / "environment")
    install(site, "torch", "2.13.0", package=False)
    module(site, "torch", {"version.py": "__version__ = '2.13.0+cu126'\ncuda = '12.6'\n"})
    return python, site


# ---- here and other


def test_here_describes_the_interpreter_that_runs() -> None:
    facts = here(("interpreter", "packages", "host"))
    assert facts.interpreter.executable == sys.executable
    assert facts.packages.find("pytest") is not None
    assert facts.state("torch").skipped


def test_parts_that_others_gather_are_left_alone() -> None:
    assert here(("hub", "installed", "script")).state("hub").skipped


@pytest.mark.parametrize("give", ["interpreter", "folder"])
def test_another_environment_is_described_from_outside(environment: tuple[Path, Path], give: str) -> None:
    python, site = environment
    facts = other(str(python if give == "interpreter" else python.parent.parent), probe.PARTS)
    assert facts.interpreter.prefix == str(python.parent.parent)
    assert facts.interpreter.venv and not facts.interpreter.pip
    assert [(d.name, d.location) for d in facts.packages.distributions] == [("torch", str(site))]
    assert facts.torch is not None and facts.torch.cuda == "12.6"


def test_here_and_other_agree_on_the_same_interpreter() -> None:
    parts = ("interpreter", "packages", "torch", "environ", "host")
    ours, theirs = here(parts).to_wire(), other(sys.executable, parts).to_wire()
    for data in (ours, theirs):
        del data["host"]["memory_available"]
    assert ours == theirs


def test_a_json_module_in_the_current_folder_does_no_harm(
    environment: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name in ("json", "ast", "re", "os"):
        (project / f"{name}.py").write_text("raise SystemExit('taken')\n")
    monkeypatch.chdir(project)
    assert other(str(environment[0]), ("packages",)).packages.find("torch") is not None


def test_pythonpath_is_part_of_what_is_judged(
    environment: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "extra", "peft", "0.1.0")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "extra"))
    peft = other(str(environment[0]), ("packages",)).packages.find("peft")
    assert peft is not None and peft.location == str(tmp_path / "extra")


def test_noise_on_both_streams_does_no_harm(environment: tuple[Path, Path]) -> None:
    python, site = environment
    (site / "noise.pth").write_text(
        "import sys, atexit; print('{\"schema\": 1}', sys.argv); atexit.register(print, 'bye'); print('err', file=sys.stderr)\n"
    )
    assert other(str(python), ("packages",)).packages.find("torch") is not None


# ---- interpreters that cannot be asked


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#!/bin/sh\nexit 3\n", "exit status 3"),
        ("#!/bin/sh\necho hello\n", "Check that it is a Python"),
        ("#!/bin/sh\necho 'cannot find libpython3.11.so' >&2\nexit 127\n", "cannot find libpython3.11.so"),
        ("#!/bin/sh\nkill -SEGV $$\n", "killed by signal 11"),
        (
            "#!/bin/sh\necho 'too old: Python 2.7' >&2\nexit 1\n",
            "is Python 2.7; the doctor can ask Python 3.6 and later",
        ),
        ("#!/gone/python\n", "cannot be started"),
        ("not a program", "cannot be started"),
    ],
)
def test_an_interpreter_that_gives_no_facts_is_an_error_that_says_why(tmp_path: Path, text: str, message: str) -> None:
    python = executable(tmp_path / "python", text)
    with pytest.raises(ProbeError, match=message):
        other(str(python), ("packages",))


def test_one_that_echoes_its_arguments_is_not_believed(tmp_path: Path) -> None:
    python = executable(tmp_path / "python", '#!/bin/sh\necho "$4{}$5"\necho "$4" "$5"\n')
    with pytest.raises(ProbeError, match="gave no facts"):
        other(str(python), ("packages",))


@pytest.mark.parametrize("text", ["#!/bin/sh\nsleep 60\n", "#!/bin/sh\nsleep 60 &\nwait\n", "#!/bin/sh\nexec yes\n"])
def test_one_that_hangs_or_prints_without_end_is_ended(tmp_path: Path, text: str) -> None:
    python = executable(tmp_path / "python", text)
    with pytest.raises(ProbeError, match=r"no facts within 0\.5 s"):
        other(str(python), ("packages",), timeout=0.5)


def test_one_that_hangs_with_its_streams_closed_is_ended_too(tmp_path: Path) -> None:
    python = executable(tmp_path / "python", f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec >&- 2>&-\nexec sleep 60\n")
    with pytest.raises(ProbeError, match="gave no facts within"):
        other(str(python), ("packages",), timeout=0.5)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_one_that_leaves_a_child_behind_is_not_waited_for(environment: tuple[Path, Path]) -> None:
    python, site = environment
    (site / "child.pth").write_text("import subprocess, sys; subprocess.Popen(['sleep', '60'])\n")
    assert other(str(python), ("packages",), timeout=20).packages.find("torch") is not None


def test_a_crash_in_the_standard_library_is_told_with_its_last_words(environment: tuple[Path, Path]) -> None:
    python, site = environment
    (site / "crash.pth").write_text("import os; os.write(2, b'hf_abcdefghijklmnopqrstu is my token\\n'); os._exit(4)\n")
    with pytest.raises(ProbeError, match="exit status 4: <redacted> is my token"):
        other(str(python), ("packages",))


@pytest.mark.parametrize("kind", ["absent", "folder", "not executable", "dangling"])
def test_what_is_no_interpreter_is_refused_with_what_to_give(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "python"
    if kind == "folder":
        path.mkdir()
    elif kind == "not executable":
        path.write_text("")
    elif kind == "dangling":
        path.symlink_to(tmp_path / "removed")
    with pytest.raises(ProbeError, match=r"Give|Make the environment anew"):
        other(str(path), ("packages",))


# ---- NVIDIA's library

NVML = """
#include <string.h>
#include <stdlib.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *to, unsigned n) { strncpy(to, "550.54.15", n); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = 12040; return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)0x7f0000000010; return 0; }
int nvmlDeviceGetName(void *d, char *to, unsigned n) {
    if (d != (void *)0x7f0000000010) return 2;
    strncpy(to, "NVIDIA H100 80GB HBM3", n); return 0;
}
int nvmlDeviceGetUUID(void *d, char *to, unsigned n) { strncpy(to, "GPU-1", n); return 0; }
int nvmlDeviceGetCudaComputeCapability(void *d, int *a, int *b) { *a = 9; *b = 0; return 0; }
int nvmlDeviceGetMemoryInfo(void *d, unsigned long long *m) { m[0] = 80ull << 30; m[1] = 79ull << 30; m[2] = 1ull << 30; return 0; }
int nvmlDeviceGetMigMode(void *d, unsigned *a, unsigned *b) { *a = 1; *b = 1; return 0; }
int nvmlDeviceGetComputeMode(void *d, int *m) { *m = 3; return 0; }
struct process { unsigned pid; unsigned long long memory; unsigned a, b; };
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *n, struct process *p) {
    *n = 2; p[0].pid = 1; p[0].memory = 5; p[1].pid = 2; p[1].memory = ~0ull; return 0;
}
"""


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a libnvidia-ml made of C source where the loader looks first."""
    from shutil import which
    from subprocess import run

    compiler = which("cc") or which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler to make the library with")
    if probe.nvidia_traces():
        pytest.skip("this machine has an NVIDIA driver of its own")

    def make(source: str) -> None:
        (tmp_path / "nvml.c").write_text(source)
        library = tmp_path / "libnvidia-ml.so.1"
        run([compiler, "-shared", "-fPIC", "-o", str(library), str(tmp_path / "nvml.c")], check=True)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    return make


def test_gpus_and_driver_are_asked_of_nvidias_library(nvml: Callable[[str], None]) -> None:
    nvml(NVML)
    facts = here(("gpus", "driver"))
    first, second = GpuProcess(1, facts.gpus[0].processes[0].name, 5), facts.gpus[0].processes[1]
    assert facts.gpus == (
        Gpu(
            "NVIDIA H100 80GB HBM3",
            "9.0",
            80 << 30,
            79 << 30,
            uuid="GPU-1",
            mig=True,
            compute_mode="exclusive-process",
            processes=(first, second),
        ),
    )
    assert second.memory is None
    assert facts.driver == Driver("550.54.15", "12.4", "NVML")


def test_a_library_of_another_version_than_the_driver_is_unknown_with_what_to_do(nvml: Callable[[str], None]) -> None:
    nvml("int nvmlInit_v2(void) { return 18; }\n")
    gpus = here(("gpus",)).state("gpus")
    assert isinstance(gpus, Unknown) and "restart the machine" in gpus.reason


def test_a_library_that_kills_the_process_that_asks_is_unknown(nvml: Callable[[str], None]) -> None:
    nvml("#include <stdlib.h>\nint nvmlInit_v2(void) { abort(); }\n")
    facts = here(("gpus", "driver", "interpreter"))
    gpus = facts.state("gpus")
    assert isinstance(gpus, Unknown) and "ended the process" in gpus.reason
    assert facts.interpreter.executable == sys.executable


# ---- saved facts


def test_saved_facts_are_read_back_as_they_were(tmp_path: Path) -> None:
    facts = here(("interpreter", "packages", "environ", "torch"))
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(facts.to_wire()), encoding="utf-8-sig")
    assert saved(str(path)).to_wire() == facts.to_wire()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b'{"schema": 1, "interpreter": {"version": "3.1', "not JSON"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"schema": 1, "disks": [{"purpose": "tmp", "path": "/", "free": NaN}]}', "NaN"),
        (b'{"schema": 1, "extra": {"a": ' + b"9" * 5000 + b"}}", "not JSON|expected"),
        (b"[" * 200_000, "deep|not JSON"),
        (b'{"schema": 1, "extra": {"a": ' + b"[" * 500 + b"]" * 500 + b"}}", "deep"),
        (b'{"schema": 1, "extra": {"a": "\\ud800"}}', "Unicode"),
        (b'{"schema": 1, "gpus": [{"nme": "x"}]}', r"\$\.gpus\[0\]: unknown key"),
        (b"[]", "expected an object"),
        (b'{"schema": "1"}', "format"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:12],
)
def test_what_is_not_facts_is_refused_with_the_name_of_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(content)
    with pytest.raises(WireError, match=message) as caught:
        saved(str(path))
    assert str(path) in str(caught.value)


def test_facts_of_a_newer_doctor_ask_for_an_update(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text('{"schema": 99}')
    with pytest.raises(NewerSchema, match="pip install -U qlora-doctor"):
        saved(str(path))


def test_a_missing_and_a_huge_file_are_usage_errors(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(UsageError, match="facts --save"):
        saved(str(tmp_path / "none.json"))
    path = tmp_path / "huge.json"
    with open(path, "wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(UsageError, match="larger than 64 MB"):
        saved(str(path))
