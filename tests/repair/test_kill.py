"""SIGKILL and Ctrl-C at every moment of an apply and of an undo: undo gives every byte back.

The moments are not listed here: a first run writes their names down, and each is then made the last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

SCRIPT = """import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B", quantization_config=bnb)  # 模型
"""
FIX = ("fix", ".", "--offline", "--select", "QD101,QD201,QD114", "--apply", "--unsafe")
APPLY_MOMENTS = (
    *(f"journal-{m}" for m in ("temporary", "written", "replaced")),
    *(f"file-{n}-{m}" for n in range(4) for m in ("before", "temporary", "written", "replaced")),
    *(f"noted-file-{n}" for n in range(4)),
    "noted-applied",
)
UNDO_MOMENTS = (
    *(f"undo-{n}-{m}" for n in range(4) for m in ("before", "replaced")),
    *(f"undo-{n}-{m}" for n in (3,) for m in ("temporary", "written")),
    "noted-undone",
)


@pytest.fixture
def broken(project: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A project with a script and a malformed HF_ENDPOINT: four files to write."""
    (project.path / "a.py").write_bytes(SCRIPT.replace("\n", "\r\n").encode())
    facts = {"transformers": "5.23.0", "bitsandbytes": "0.50.2"}
    site = project.path.parent / "site"
    site.mkdir()
    for name, version in facts.items():
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\n")
    project.environ.update(PYTHONPATH=str(site), HF_ENDPOINT="hf-mirror.example")
    monkeypatch.syspath_prepend(str(site))
    return project


def state(folder: Path) -> dict[str, bytes]:
    """Every file of a project but the journal's own."""
    own = folder / ".qlora-doctor"
    files = (p for p in folder.rglob("*") if p.is_file())
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in files
        if own not in p.parents or p.name.startswith(("env.", ".env."))
    }


def test_the_moments_named_here_are_all_there_are(broken: Any, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    assert broken.child(*FIX, QLORA_DOCTOR_TRACE=str(trace)).code in (0, 1)
    assert sorted(trace.read_text().split()) == sorted(APPLY_MOMENTS)
    trace.unlink()
    assert broken.child("undo", QLORA_DOCTOR_TRACE=str(trace)).code == 0
    assert sorted(trace.read_text().split()) == sorted(UNDO_MOMENTS)


@pytest.mark.parametrize("how", ["", ":interrupt"], ids=["SIGKILL", "Ctrl-C"])
def test_an_apply_stopped_at_any_moment_is_undone_byte_for_byte(broken: Any, how: str) -> None:
    before = state(broken.path)
    for moment in APPLY_MOMENTS:
        stopped = broken.child(*FIX, QLORA_DOCTOR_STOP_AT=moment + how)
        assert stopped.code == -9 or (how and stopped.code in (2, 130)), (moment, stopped)
        assert not how or moment.startswith("journal") or "qlora-doctor undo" in stopped.err, (moment, stopped)
        undone = broken.child("undo")
        assert undone.code == 0, (moment, undone)
        assert state(broken.path) == before, moment


def test_an_undo_killed_at_any_moment_is_finished_by_the_next_one(broken: Any) -> None:
    before = state(broken.path)
    for moment in UNDO_MOMENTS:
        assert broken.child(*FIX).code in (0, 1)
        assert state(broken.path) != before
        assert broken.child("undo", QLORA_DOCTOR_STOP_AT=moment).code == -9
        assert broken.child("undo").code == 0, moment
        assert state(broken.path) == before, moment
