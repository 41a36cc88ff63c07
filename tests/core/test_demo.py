"""`qlora-core demo`, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_without_the_stack_the_command_says_which_extra_it_needs(tmp_path: Path) -> None:
    code = "import sys; sys.modules.update(torch=None, transformers=None); from qlora_core.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "qlora-doctor[train]" in done.stderr and "Traceback" not in done.stderr


def test_the_demo_loads_three_families_over_the_planted_faults_and_each_answers(tmp_path: Path) -> None:
    code = [sys.executable, "-c", "from qlora_core.cli import main; main()", "demo", "--out", str(tmp_path)]
    done = subprocess.run(
        code, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "2"}, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("  answer   '") == 3 and "  answer   ''" not in done.stdout
    assert done.stdout.count("QD102: trust_remote_code True -> not given") == 3
    assert done.stdout.count("rebuilt from the model's configuration") == 2
    assert "QD333" not in done.stdout, "the processor was rebuilt, so that its files are missing is settled"
    assert {p.name for p in tmp_path.iterdir()} == {"llava", "qwen3", "instructblip_t5"}
