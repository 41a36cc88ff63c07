"""QD9: what is said of each way in which a live probe can end."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_checks import live
from qlora_doctor.facts import Facts, LiveProbe, Unknown
from qlora_doctor.finding import Finding
from qlora_doctor.judge import Case, judge
from qlora_doctor.request import Requests
from qlora_doctor.testing import facts, findings, load, outcome, train

SOUND = (
    LiveProbe("import torch", "ok", detail="2.13.0"),
    LiveProbe("import bitsandbytes", "ok"),
    LiveProbe("import flash_attn", "absent", detail="it is not installed"),
    LiveProbe("allocate on cuda:0", "ok"),
    LiveProbe("4-bit round trip, bfloat16, on cuda:0", "ok"),
    LiveProbe("LoRA step, bfloat16, on cuda:0", "ok"),
    LiveProbe("paged 8-bit optimizer on cuda:0", "ok"),
    LiveProbe("all-reduce of 2 ranks, gloo", "ok"),
)
CODE_OF = {
    "import torch": "QD901",
    "allocate on cuda:0": "QD902",
    "4-bit round trip, bfloat16, on cuda:0": "QD903",
    "LoRA step, bfloat16, on cuda:0": "QD904",
    "paged 8-bit optimizer on cuda:0": "QD905",
    "all-reduce of 2 ranks, gloo": "QD906",
}


def tried(*probes: LiveProbe) -> Facts:
    named = {p.name: p for p in (*SOUND, *probes)}
    return facts({"torch": "2.13.0"}, live=tuple(named.values()))


def said(given: Facts, *requests: Any) -> list[Finding]:
    loads = tuple(r for r in requests if hasattr(r, "class_name"))
    trains = tuple(r for r in requests if not hasattr(r, "class_name"))
    return list(judge(live.CHECKS, given, [Case(Requests(loads, trains))]).findings)


def test_probes_that_went_well_or_had_nothing_to_try_are_silent() -> None:
    assert said(tried(), load(attn_implementation="flash_attention_2"), train()) == []


@pytest.mark.parametrize("check", live.CHECKS, ids=lambda c: c.code)
def test_without_live_they_are_skipped_and_what_failed_to_run_is_unknown(check: Any) -> None:
    assert outcome(check, facts({})) == "skipped"
    assert outcome(check, facts({}, live=Unknown("no interpreter"))) == "unknown"


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (
            {"outcome": "died", "signal": "SIGSEGV", "last_frame": "torch/__init__.py:3 in load"},
            "died of SIGSEGV (a crash in native code), at torch/__init__.py:3 in load",
        ),
        ({"outcome": "died", "signal": "SIGKILL", "exit_code": 137}, "for lack of memory"),
        ({"outcome": "died", "signal": "ACCESS_VIOLATION"}, "0xC0000005"),
        ({"outcome": "died", "exit_code": 3}, "ended the whole process with exit status 3"),
        ({"outcome": "timeout", "detail": "no end after 60 s"}, "did not end (no end after 60 s)"),
        ({"outcome": "failed", "detail": "ImportError: no", "missing": "libcudart.so.12"}, "missing: libcudart.so.12"),
    ],
)
@pytest.mark.parametrize("name", CODE_OF)
def test_each_end_of_each_probe_is_a_finding_with_its_cause(name: str, end: dict[str, Any], words: str) -> None:
    (finding,) = said(tried(LiveProbe(name, **end)))
    assert finding.code == CODE_OF[name]
    assert words in finding.text
    assert finding.evidence["probe"] == name and finding.fixes


def test_an_import_that_fails_is_not_told_again_by_what_rests_on_it() -> None:
    given = tried(
        LiveProbe("import torch", "died", "SIGSEGV"), LiveProbe("4-bit round trip, bfloat16, on cuda:0", "failed")
    )
    assert [f.code for f in said(given)] == ["QD901"]


@pytest.mark.parametrize(
    ("module", "requests", "severity"),
    [
        ("torch", (), "error"),
        ("peft", (load(),), "warning"),
        ("peft", (load(), train(lora={})), "error"),
        ("bitsandbytes", (load(quantization_config=None),), "warning"),
        ("flash_attn", (load(),), "warning"),
        ("flash_attn", (load(attn_implementation="flash_attention_2"),), "error"),
    ],
)
def test_an_import_is_as_grave_as_the_run_makes_it(module: str, requests: Any, severity: str) -> None:
    (finding,) = said(tried(LiveProbe(f"import {module}", "failed", detail="no")), *requests)
    assert finding.severity == severity


def test_a_paged_optimizer_is_an_error_only_where_it_is_asked_for() -> None:
    given = tried(LiveProbe("paged 8-bit optimizer on cuda:0", "failed", detail="no"))
    check = live.broken_paged_optimizer
    assert findings(check, given, train(settings={"optim": "adamw_torch"}))[0].severity == "warning"
    assert findings(check, given, train(settings={"optim": "paged_adamw_8bit"}))[0].severity == "error"


@pytest.mark.parametrize(
    ("module", "missing", "words"),
    [
        ("torch", "libcuda.so.1", "--gpus all"),
        ("torch", "libcudnn.so.9", "cuDNN 9"),
        ("torch", "ncclCommRegister", "libnccl"),
        ("torch", "__nvJitLinkComplete_12_4", "Two CUDA versions"),
        ("torch", "libc.so.6 GLIBC_2.28", "older than"),
        ("bitsandbytes", "libcudart.so.12", "CUDA 12: bitsandbytes was built for that CUDA"),
        ("flash_attn", "_ZN3c105ErrorC2ENS_14SourceLocationE", "flash-attn was built for another torch"),
        ("transformers", "libGL.so.1", "libgl1"),
        ("torch", "libamdhip64.so.6", "ROCm"),
        ("torch", "something_else", "--force-reinstall"),
    ],
)
def test_what_is_missing_says_what_to_do(module: str, missing: str, words: str) -> None:
    (finding,) = said(tried(LiveProbe(f"import {module}", "failed", missing=missing, detail="ImportError")))
    assert words in finding.text and words in finding.fixes[0].title


@pytest.mark.parametrize("name", CODE_OF)
def test_a_probe_that_was_cut_short_is_unknown_and_no_finding(name: str) -> None:
    given = tried(LiveProbe(name, "timeout", detail="not started: the 120 s of --live were used up", cut=True))
    verdict = judge(live.CHECKS, given, [Case(Requests())])
    assert verdict.findings == ()
    assert {o.outcome for o in verdict.outcomes if o.code == CODE_OF[name]} == {"unknown"}
