"""The rooms and arrows of the design, drawn from the code and compared; and what importing us brings along."""

from __future__ import annotations

import ast
import email
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATIENT = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "qlora_core")
NOUNS = {"errors", "wire", "source", "facts", "request", "finding", "fix"}

# A room may import what its row names, and itself. Nothing else.
ARROWS = {
    "errors": set[str](),
    "i18n": {"nouns"},
    "messages": {"registry", "logs"},
    "wire": {"errors"},
    "families": set[str](),
    "nouns": {"errors", "wire"},
    "registry": {"nouns", "errors"},
    "config": {"nouns", "errors"},
    "gather": {"nouns", "errors", "wire", "families", "config", "version"},
    "memory": {"nouns", "errors", "families"},
    "tables": {"nouns", "errors"},
    "install": {"tables", "nouns", "errors"},
    "setup": {"stage", "install", "repair", "examine", "judge", "gather", "registry", "tables", "nouns", "errors"},
    "judge": {"registry", "nouns", "errors"},
    "collect": {"stage", "gather", "judge", "live", "nouns"},
    "examine": {"stage", "collect", "judge", "gather", "registry", "families", "nouns", "errors"},
    "repair": {"stage", "install", "tables", "examine", "judge", "gather", "registry", "families", "version", "nouns", "errors", "wire"},
    "logs": {"stage", "examine", "judge", "gather", "registry", "families", "nouns", "errors", "wire"},
    "live": {"gather", "nouns", "errors"},
    "compare": {"nouns"},
    "redaction": set[str](),
    "bundle": {"redaction", "logs", "repair", "examine", "judge", "gather", "version", "nouns", "errors"},
    "download": {"gather", "config", "version", "nouns", "errors"},
    "report": {"i18n", "redaction", "compare", "install", "setup", "examine", "logs", "repair", "memory", "version", "nouns", "errors"},
    "docs": {"i18n", "messages", "registry", "logs", "tables", "nouns"},
    "testing": {"judge", "registry", "repair", "nouns"},
    "cli": {
        "i18n", "stage", "bundle", "redaction", "report", "setup", "repair", "logs", "live", "compare", "download", "gather", "memory", "collect", "examine", "registry", "config", "docs", "version", "nouns", "errors",
    },
    "__main__": {"cli"},
    "stage": set[str](),
    # Types only: the functions are imported when they are first used.
    "version": {"api", "logs", "notebook"},
    "api": {"i18n", "redaction", "cli", "report", "logs", "memory", "collect", "examine", "gather", "judge", "nouns", "errors"},
    "notebook": {"api", "cli", "report", "logs", "gather", "judge", "nouns", "errors"},
    "checks": {"registry", "tables", "install", "memory", "families", "nouns", "errors"},
}  # fmt: skip


def room(module: str) -> str:
    """The room of a dotted module name: `qlora_doctor.gather.hub` is in `gather`."""
    top, _, rest = module.partition(".")
    if top == "qlora_checks":
        return "checks"
    name = rest.partition(".")[0]
    if name in NOUNS - {"errors", "wire"}:
        return "nouns"
    return name or "version"


def modules() -> Iterator[tuple[str, Path]]:
    for folder in (ROOT / "qlora_doctor", ROOT / "checks" / "qlora_checks"):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            yield ".".join(p for p in parts if p != "__init__"), path


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions; `from package import module` names the module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import hides its arrow"
            for alias in node.names:
                inside = ROOT / node.module.replace(".", "/") / alias.name
                is_module = inside.with_suffix(".py").exists() or (inside / "__init__.py").exists()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def test_every_arrow_in_the_code_is_an_arrow_of_the_design() -> None:
    wrong = []
    for module, path in modules():
        here = room(module)
        for name in imported(path):
            if name.partition(".")[0] in ("qlora_doctor", "qlora_checks") and room(name) not in {here, *ARROWS[here]}:
                wrong.append(f"{module} -> {name}")
    assert wrong == []


def test_nothing_in_the_doctor_or_the_checks_imports_the_patient() -> None:
    wrong = [
        f"{module} -> {name}"
        for module, path in modules()
        if ".live.programs" not in module
        for name in imported(path)
        if name.partition(".")[0] in PATIENT
    ]
    assert wrong == []


def test_no_package_is_named_checks() -> None:
    assert not (ROOT / "checks" / "__init__.py").exists()


def test_a_check_of_a_script_imports_no_patient_and_nothing_heavy(tmp_path: Path) -> None:
    for name in PATIENT[:-1]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"print('IMPORTED {name}')\n", encoding="utf-8")
    script = tmp_path / "train.py"
    script.write_text("from transformers import AutoModel\nAutoModel.from_pretrained('gpt2')\n", encoding="utf-8")
    program = (
        "import sys; from qlora_doctor.cli import main; code = main(sys.argv[1:])\n"
        "print('CODE', code); print('MODULES', *sorted(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "check", str(script), "--offline"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert "IMPORTED" not in done.stdout
    assert done.stdout.splitlines()[-2] in ("CODE 0", "CODE 1")
    loaded = set(done.stdout.splitlines()[-1].split())
    assert loaded & {*PATIENT, "rich", "libcst", "huggingface_hub", "http.client", "ssl", "importlib.metadata"} == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from this tree."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_installing_the_wheel_pulls_no_torch_and_no_transformers(wheel: zipfile.ZipFile) -> None:
    name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    requires = email.message_from_string(wheel.read(name).decode("utf-8")).get_all("Requires-Dist") or []
    base = [r for r in requires if "extra ==" not in r]
    assert base != []
    for patient in PATIENT[:-1]:
        assert not [r for r in base if r.lower().startswith(patient)]
    assert [r for r in requires if r.startswith("torch") and "extra == 'train'" in r] != []


def test_the_wheel_holds_the_packages_their_data_and_the_entry_points(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert {n.partition("/")[0] for n in names if ".dist-info" not in n} <= {
        "qlora_doctor",
        "qlora_core",
        "qlora_checks",
    }
    for path in (*(ROOT / "qlora_doctor").rglob("*"), *(ROOT / "checks" / "qlora_checks").rglob("*")):
        if path.suffix in (".py", ".toml", ".typed", ".css", ".js", ".mo", ".md", ".json"):
            assert str(path.relative_to(ROOT).as_posix()).removeprefix("checks/") in names
    entry_points = wheel.read(next(n for n in names if n.endswith("entry_points.txt"))).decode("utf-8")
    assert "qlora = qlora_checks:CHECKS" in entry_points
