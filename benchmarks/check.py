"""Times `qlora-doctor check --offline` against the environment reports that people use today.

Every round runs each command once, so that a busy machine slows all of them alike. The figures are medians of whole
processes: CPU seconds (user and system, children included), wall seconds, and the peak memory of the largest process.

    python benchmarks/check.py --python PATH_OF_AN_INTERPRETER_WITH_THE_STACK [--runs 5] [--script train.py]

With a C compiler, and no NVIDIA driver here, it also times an environment of 600 distributions beside eight GPUs, which
are a libnvidia-ml of our own that answers from a file (tests/gather/nvml_stub.c).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Timed:
    """One command and what its runs took."""

    title: str
    command: list[str]
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)
    exit: int = 0
    output: str = ""
    environ: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        start = time.perf_counter()
        process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**environment(), **self.environ},
        )
        assert process.stdout is not None
        self.output = process.stdout.read().decode("utf-8", "replace")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = self.exit = os.waitstatus_to_exitcode(status)
        self.wall.append(time.perf_counter() - start)
        self.cpu.append(usage.ru_utime + usage.ru_stime)
        self.peak.append(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))

    def names(self, version: str) -> bool:
        """Whether its output names the torch version and speaks of CUDA."""
        return version in self.output and "cuda" in self.output.lower()


def environment() -> dict[str, str]:
    """Ours, offline, so that no command waits for a network; byte code is written, as pip does when it installs."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}


def commands(python: str, scripts: list[str]) -> list[Timed]:
    """The commands that this environment has."""
    bin_folder = Path(python).parent
    doctor = [sys.executable, "-m", "qlora_doctor", "check", "--offline"]
    rows = [Timed("qlora-doctor check --offline --python EXE", [*doctor, "--python", python])]
    if subprocess.run([python, "-c", "import qlora_doctor.cli"], capture_output=True, check=False).returncode == 0:
        rows.insert(0, Timed("qlora-doctor check --offline", [python, *doctor[1:]]))
    rows += [
        Timed(f"qlora-doctor check --offline --python EXE {Path(s).name}", [*doctor, "--python", python, s])
        for s in scripts
    ]
    rows += [
        Timed('python -c "import torch"', [python, "-c", "import torch"]),
        Timed("python -m torch.utils.collect_env", [python, "-m", "torch.utils.collect_env"]),
        Timed("python -m bitsandbytes", [python, "-m", "bitsandbytes"]),
        Timed("pip check", [python, "-m", "pip", "check", "--disable-pip-version-check"]),
    ]
    rows += [
        Timed(f"{name} env", [str(bin_folder / name), "env"])
        for name in ("transformers", "accelerate")
        if (bin_folder / name).exists()
    ]
    return rows


STACK = {
    "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "bitsandbytes": "0.50.2", "accelerate": "1.15.0",
    "trl": "1.16.0", "datasets": "5.0.0", "huggingface-hub": "2.4.0", "tokenizers": "0.23.3", "numpy": "2.4.6",
}  # fmt: skip
REQUIRES = tuple(f"some-package-{n:03d}>=1.0,<9; python_version >= '3.8'" for n in range(8))


def crowd(folder: Path) -> Timed | None:
    """A check of 600 distributions with eight requirements each, and eight GPUs; None where that cannot be made here."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    stub = Path(__file__).parents[1] / "tests" / "gather" / "nvml_stub.c"
    if compiler is None or sys.platform != "linux" or shutil.which("nvidia-smi"):
        return None
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1"), str(stub)], check=True)
    gpu = {
        "name": "NVIDIA H100 80GB HBM3",
        "major": 9,
        "minor": 0,
        "total": 80,
        "free": 79,
        "mig": 0,
        "mode": 0,
        "ecc": 1,
    }
    answers = {"driver": "580.95.05", "cuda": 13000, "gpus": [{**gpu, "errors": 0}] * 8}
    (folder / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    python = folder / "environment" / "bin" / "python"
    site = folder / "environment" / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
    python.parent.mkdir(parents=True)
    site.mkdir(parents=True)
    python.symlink_to(os.path.realpath(sys.executable))
    home = Path(os.path.realpath(sys.executable)).parent
    (folder / "environment" / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
    names = {**STACK, **{f"some-package-{n:03d}": f"1.{n}" for n in range(600 - len(STACK))}}
    for name, version in names.items():
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = [
            "Metadata-Version: 2.1",
            f"Name: {name}",
            f"Version: {version}",
            *(f"Requires-Dist: {r}" for r in REQUIRES),
        ]
        (info / "METADATA").write_text("\n".join(lines) + "\n\n" + "A long description.\n" * 300, encoding="utf-8")
        (site / name.replace("-", "_")).mkdir(exist_ok=True)
    (site / "torch" / "__init__.py").write_text("")
    (site / "torch" / "version.py").write_text("__version__ = '2.13.0+cu130'\ncuda = '13.0'\nhip = None\n")
    command = [sys.executable, "-m", "qlora_doctor", "check", "--offline", "--python", str(python)]
    environ = {"LD_LIBRARY_PATH": str(folder), "NVML_ANSWERS": str(folder / "answers.json")}
    return Timed("qlora-doctor check, 600 distributions, 8 GPUs", command, environ=environ)


def table(rows: list[Timed], version: str) -> list[str]:
    """The figures, as Markdown."""
    own = statistics.median(rows[0].cpu)
    lines = [
        "| command | CPU s | wall s (min - max) | peak MiB | CPU against ours | torch and CUDA named | exit |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cpu, wall = statistics.median(row.cpu), statistics.median(row.wall)
        named = "yes" if row.names(version) else "no"
        spread = f"{wall:.2f} ({min(row.wall):.2f} - {max(row.wall):.2f})"
        lines.append(
            f"| {row.title} | {cpu:.2f} | {spread} | {max(row.peak):.0f} | x{cpu / own:.1f} | {named} | {row.exit} |"
        )
    return lines


def main() -> int:
    """Runs the rounds and prints the table.

    Exit 1 where we are not ten times faster, take 60 MB and more, or 0.5 s of CPU for 600 distributions and eight GPUs.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="an interpreter whose environment has the stack")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--script", action="append", default=[], help="also time a check of this script")
    options = parser.parse_args()
    asked = subprocess.run(
        [options.python, "-c", "import importlib.metadata as m; print(m.version('torch'))"],
        capture_output=True,
        check=False,
        text=True,
    )
    if asked.returncode:
        print(
            f"error: {options.python} has no torch; name an interpreter with the stack: --python EXE", file=sys.stderr
        )
        return 2
    version = asked.stdout.strip().partition("+")[0]
    rows = commands(options.python, options.script)
    with tempfile.TemporaryDirectory() as folder:
        crowded = crowd(Path(folder))
        return measure(options, rows, crowded, version)


def measure(options: argparse.Namespace, rows: list[Timed], crowded: Timed | None, version: str) -> int:
    """The rounds, the table, and the exit status."""
    rows = [*rows, crowded] if crowded else rows
    for number in range(options.runs + 1):
        for row in rows:
            row.run()
            if number == 0:  # a warm-up: the first run fills the page cache and writes byte code
                for figures in (row.cpu, row.wall, row.peak):
                    figures.clear()
        print(f"round {number} of {options.runs}", file=sys.stderr)
    print("\n".join(table(rows, version)))
    rivals = [statistics.median(r.cpu) for r in rows if "qlora-doctor" not in r.title and r.names(version)]
    own, peak = statistics.median(rows[0].cpu), max(rows[0].peak)
    ratio = min(rivals) / own if rivals else float("nan")
    print(f"\nThe fastest that names torch and CUDA takes {ratio:.1f} times our CPU; our peak is {peak:.0f} MiB.")
    good = ratio >= 10 and peak < 60
    if crowded:
        cpu, most = statistics.median(crowded.cpu), max(crowded.peak)
        seen = "8 x NVIDIA H100" in crowded.output
        print(
            f"With 600 distributions and 8 GPUs{'' if seen else ' (WHICH IT DID NOT SEE)'}: {cpu:.2f} s CPU, {most:.0f} MiB."
        )
        good = good and seen and cpu < 0.5 and most < 60
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
