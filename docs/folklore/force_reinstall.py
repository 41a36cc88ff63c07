"""Claim: a dependency conflict is cured by `pip install --force-reinstall PACKAGE`.

Makes three small packages: `trainer` 1.0 asks for `stack` below 2; `stack` exists as 1.0 and 2.0. Then, in a fresh
environment and without a network, it does what the guides say.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path
from typing import Any


def wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    """An empty package with this name, version and requirements."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", f"version = {version!r}\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def measure(work: Path) -> dict[str, Any]:
    """Conflicts that `pip check` reports, before and after each way of repair."""
    wheels = work / "wheels"
    wheels.mkdir()
    wheel(wheels, "stack", "1.0")
    wheel(wheels, "stack", "2.0")
    wheel(wheels, "trainer", "1.0", "stack<2")
    venv.create(work / "venv", with_pip=True)
    python = next(p for p in (work / "venv/bin/python", work / "venv/Scripts/python.exe") if p.exists())

    def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
        quiet = ["-m", "pip", "--isolated", "--disable-pip-version-check", *arguments]
        return subprocess.run([str(python), *quiet], capture_output=True, text=True, check=False)

    def install(*names: str) -> int:
        return pip("install", "--no-index", "--find-links", str(wheels), *names).returncode

    def conflicts() -> list[str]:
        return [line for line in pip("check").stdout.splitlines() if " has requirement " in line]

    assert install("trainer") == 0
    seen: dict[str, Any] = {"before anything": conflicts()}
    install("stack==2.0")
    seen["after `pip install stack==2.0`"] = conflicts()
    code = install("--force-reinstall", "stack")
    seen["after `pip install --force-reinstall stack`"] = conflicts()
    seen["its exit code"] = code
    install("trainer", "stack")
    seen["after `pip install trainer stack` (all that must agree, named together)"] = conflicts()
    return seen


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        print(sys.version.split()[0])
        for case, found in measure(Path(work)).items():
            print(f"{case}: {found}")
