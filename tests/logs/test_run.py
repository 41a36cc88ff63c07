"""`qlora-doctor run` leaves a program as it is and explains its death. Every program here is a real process."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.logs.samples import kills, oom_files

PYTHON = sys.executable
# Another interpreter may hold torch while the tests run in one without it.
STACK = os.environ.get("QLORA_DOCTOR_TEST_STACK", sys.executable if find_spec("torch") else "")


def start(folder: Path, *command: str, **options: Any) -> subprocess.Popen[bytes]:
    words = [PYTHON, "-m", "qlora_doctor", "run", "--", *command]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def ended(folder: Path, *command: str) -> tuple[int, str, str, dict[str, Any]]:
    process = start(folder, *command)
    out, err = process.communicate(timeout=60)
    report = json.loads((folder / "qlora-doctor-run.json").read_text(encoding="utf-8"))
    return process.returncode, out.decode(), err.decode(), report


def causes(report: dict[str, Any]) -> list[str]:
    return [cause["id"] for found in report["diagnosis"]["diagnoses"] for cause in found["causes"]]


def test_output_and_exit_code_are_passed_through_and_a_good_run_is_not_talked_about(tmp_path: Path) -> None:
    code, out, err, report = ended(tmp_path, PYTHON, "-c", "import sys; print('a'); print('b', file=sys.stderr)")
    assert (code, out, err) == (0, "a\n", "b\n")
    assert report["diagnosis"] is None


def test_the_exit_code_of_a_failure_is_kept(tmp_path: Path) -> None:
    assert ended(tmp_path, PYTHON, "-c", "raise SystemExit(7)")[0] == 7


def test_a_python_exception_is_explained(tmp_path: Path) -> None:
    program = "raise AssertionError('Torch not compiled with CUDA enabled')"
    code, _, err, report = ended(tmp_path, PYTHON, "-c", program)
    assert code == 1
    assert causes(report) == ["torch_cpu_build"]
    assert "Install a CUDA build of torch" in err


def test_a_segmentation_fault_is_explained_with_the_native_stack(tmp_path: Path) -> None:
    program = "def load_weights():\n    import ctypes; ctypes.string_at(0)\nload_weights()"
    code, _, err, report = ended(tmp_path, PYTHON, "-c", program)
    assert code == 139
    assert report["signal"] == "SIGSEGV"
    assert "in load_weights" in err
    assert report["diagnosis"]["diagnoses"][0]["signature"] == "segfault"


@pytest.mark.parametrize(
    ("number", "signature"),
    [(signal.SIGKILL, "killed"), (signal.SIGABRT, "abort-or-assert"), (signal.SIGBUS, "shared-memory")],
)
def test_a_death_by_signal_is_explained(tmp_path: Path, number: signal.Signals, signature: str) -> None:
    code, _, _, report = ended(tmp_path, PYTHON, "-c", f"import os; os.kill(os.getpid(), {int(number)})")
    assert code == 128 + number
    assert report["signal"] == number.name
    assert report["diagnosis"]["diagnoses"][0]["signature"] == signature


@pytest.mark.skipif(
    not any(kills(p) is not None for p in oom_files()), reason="the kernel's counts cannot be read here"
)
def test_a_kill_that_the_kernel_did_not_count_is_not_called_a_lack_of_memory(tmp_path: Path) -> None:
    report = ended(tmp_path, PYTHON, "-c", "import os; os.kill(os.getpid(), 9)")[3]
    assert report["oom_killed"] is False
    assert causes(report)[0] == "killed_from_outside"


def test_memory_that_runs_into_a_limit_is_explained(tmp_path: Path) -> None:
    program = "import resource; resource.setrlimit(resource.RLIMIT_AS, (300 << 20,) * 2); bytearray(1 << 30)"
    assert causes(ended(tmp_path, PYTHON, "-c", program)[3])[0] == "ram_memoryerror_load"


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    program = "import os\nwith open('/dev/full', 'w') as file:\n    file.write('x' * 100_000)"
    assert causes(ended(tmp_path, PYTHON, "-c", program)[3])[0] == "disk_cache_on_small_root"


def test_a_program_that_is_not_there_is_a_mistake_of_the_question(tmp_path: Path) -> None:
    process = start(tmp_path, "no-such-program-here")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert b"no-such-program-here: No such file" in err


def test_a_signal_to_us_reaches_the_program(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(5)))\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    process = start(tmp_path, PYTHON, "-c", program)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (5, b"saved\n")


def test_a_program_sees_a_terminal_where_we_have_one(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [PYTHON, "-m", "qlora_doctor", "run", "--", PYTHON, "-c", "import sys; print(sys.stdout.isatty())"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=theirs, stderr=theirs)
    os.close(theirs)
    process.wait(timeout=60)
    assert b"True" in os.read(ours, 1000)
    os.close(ours)


def test_the_processes_of_a_launcher_are_counted_with_it(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'x = bytearray(b\"1\") * (200 << 20); import time; time.sleep(2)'])"
    )
    report = ended(tmp_path, PYTHON, "-c", program)[3]
    assert report["peak_memory"] > 200 << 20


def test_the_check_stops_a_script_that_cannot_work_and_lets_another_run(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    words = [PYTHON, "-m", "qlora_doctor", "run", "--check", "--", PYTHON, str(script)]
    wrong = "from transformers import AutoModelForCausalLM as A\nA.from_pretrained('a/b', load_in_4bit=True)\n"
    outputs = []
    for code in (wrong, ""):
        script.write_text("print('started')\n" + code, encoding="utf-8")
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        outputs.append((done.returncode, "started" in done.stdout))
    assert outputs == [(1, False), (0, True)]


def test_an_exception_in_a_block_gets_its_cause_as_a_note() -> None:
    import qlora_doctor

    with pytest.raises(AssertionError) as caught, qlora_doctor.explain_errors():
        raise AssertionError("Torch not compiled with CUDA enabled")
    if sys.version_info >= (3, 11):
        assert "torch is a CPU build" in caught.value.__notes__[0]


CGROUP = Path("/sys/fs/cgroup/memory")


def test_the_kernels_own_counts_are_read_for_both_kinds_of_cgroup(tmp_path: Path) -> None:
    from qlora_doctor.logs.samples import OomWatch

    kinds = {
        "v2": ("0::/user.slice/job", "user.slice/job/memory.events", "low 0\nhigh 3\nmax 40\noom 2\noom_kill {}\n"),
        "v1": ("9:name=systemd:/\n4:memory:/docker/ab\n0::/", "memory/docker/ab/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"),
        "in a container": ("0::/docker/that/is/the/hosts", "memory.events", "oom 1\noom_kill {}\n"),
    }  # fmt: skip
    killed = {}
    for kind, (row, file, text) in kinds.items():
        root = tmp_path / kind
        (root / "proc/77").mkdir(parents=True)
        (root / "proc/77/cgroup").write_text(row + "\n", encoding="utf-8")
        path = root / "sys/fs/cgroup" / file
        path.parent.mkdir(parents=True)
        path.write_text(text.format(5), encoding="utf-8")
        watch = OomWatch(str(root))
        watch.look(77)
        before = watch.killed()
        path.write_text(text.format(6), encoding="utf-8")
        killed[kind] = (before, watch.killed())
    assert killed == dict.fromkeys(kinds, (False, True))


@pytest.mark.skipif(not os.access(CGROUP / "cgroup.procs", os.W_OK), reason="needs a cgroup of its own")
def test_a_kill_for_memory_in_a_real_cgroup_is_told_from_any_other_kill(tmp_path: Path) -> None:
    group = CGROUP / f"qlora-doctor-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text("192M")
        enter = f"open('{group}/cgroup.procs', 'w').write(str(__import__('os').getpid()))\n"
        program = enter + "keep = [bytearray(1 << 20) for _ in range(600)]"
        code, _, _, report = ended(tmp_path, PYTHON, "-c", enter + "import time; time.sleep(1)\n" + program)
        assert (code, report["signal"], report["oom_killed"]) == (137, "SIGKILL", True)
        assert causes(report)[0] == "ram_limit_of_job"
        other = ended(tmp_path, PYTHON, "-c", "import os; os.kill(os.getpid(), 9)")[3]
        assert other["oom_killed"] is False
    finally:
        group.rmdir()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if (
        sys.platform != "linux"
        or os.geteuid() != 0
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_tmpfs_is_named_also_where_the_program_says_nothing(small_disk: Path, tmp_path: Path) -> None:
    program = "import os, sys\ntry:\n    open('data', 'wb').write(bytes(4 << 20))\nexcept OSError:\n    import time; time.sleep(1); sys.exit(3)"
    words = [PYTHON, "-m", "qlora_doctor", "run", "--report", str(tmp_path / "run.json"), "--", PYTHON, "-c", program]
    done = subprocess.run(words, cwd=small_disk, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert f"{small_disk} was full: 0 MiB were left" in done.stderr
    assert json.loads((tmp_path / "run.json").read_text("utf-8"))["samples"][-1]["free"]


def test_a_mapping_of_a_full_tmpfs_dies_of_sigbus_and_is_explained(small_disk: Path, tmp_path: Path) -> None:
    program = "import mmap\nf = open('data', 'wb+')\nf.truncate(8 << 20)\nm = mmap.mmap(f.fileno(), 8 << 20)\nfor i in range(0, 8 << 20, 4096):\n    m[i] = 1"
    words = [PYTHON, "-m", "qlora_doctor", "run", "--report", str(tmp_path / "run.json"), "--", PYTHON, "-c", program]
    done = subprocess.run(words, cwd=small_disk, capture_output=True, text=True, timeout=60, check=False)
    report = json.loads((tmp_path / "run.json").read_text("utf-8"))
    assert (done.returncode, report["signal"]) == (135, "SIGBUS")
    assert report["diagnosis"]["diagnoses"][0]["signature"] == "shared-memory"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_watching_takes_little_memory(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom qlora_doctor.cli import main\n"
        "code = main(['run', '--', sys.executable, '-c', 'import time; time.sleep(4); raise SystemExit(1)'])\n"
        "most = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print('USED', int(most.split()[1]) >> 10)\n"
    )
    done = subprocess.run([PYTHON, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=180, check=True)
    assert int(done.stdout.split("USED")[1]) < 60


@pytest.mark.torch
@pytest.mark.skipif(not STACK, reason="torch is not installed")
def test_a_rank_that_dies_under_torchrun_is_explained_from_outside_and_from_inside(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys, time\nimport torch.distributed as dist\ndist.init_process_group('gloo')\ndist.barrier()\n"
        "if dist.get_rank() == 1:\n    raise RuntimeError('CUDA error: no kernel image is available for execution on the device')\n"
        "time.sleep(30)\n",
        encoding="utf-8",
    )
    launch = [STACK, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    outside = subprocess.run(
        [PYTHON, "-m", "qlora_doctor", "run", "--", *launch, str(script)],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert outside.returncode == 1
    report = json.loads((tmp_path / "qlora-doctor-run.json").read_text("utf-8"))
    assert report["diagnosis"]["diagnoses"][0]["signature"] == "no-kernel-image"
    inner = [PYTHON, "-m", "qlora_doctor", "run", "--", STACK, str(script)]
    inside = subprocess.run(
        [*launch, "--no-python", *inner],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert inside.returncode == 1
    report = json.loads((tmp_path / "qlora-doctor-run.1.json").read_text("utf-8"))
    assert report["diagnosis"]["diagnoses"][0]["signature"] == "no-kernel-image"
