"""`qlora-doctor run` leaves a program as it is and explains its death. Every program here is a real process."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PYTHON = sys.executable


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

    with pytest.raises(AssertionError) as caught, qlora_doctor.explain_errors():  # type: ignore[operator]
        raise AssertionError("Torch not compiled with CUDA enabled")
    if sys.version_info >= (3, 11):
        assert "torch is a CPU build" in caught.value.__notes__[0]
