"""A log is read to its cause: decisive lines, facts that decide, the order of several failures, and silence where nothing is known."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from qlora_doctor.facts import Distribution, Facts, Gpu, Packages, TorchBuild
from qlora_doctor.logs.diagnose import diagnose, findings, findings_of_log
from qlora_doctor.logs.signatures import installed_signatures, load, read_fix

NO_KERNEL = "RuntimeError: CUDA error: no kernel image is available for execution on the device"
TO = "ValueError: `.to` is not supported for `4-bit` or `8-bit` bitsandbytes models."


def negatives() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("negatives", Path(__file__).parent / "negatives.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, str] = module.logs()
    return found


def packages(**versions: str) -> Facts:
    return Facts().but(packages=Packages(tuple(Distribution(n, v) for n, v in versions.items())))


def test_the_decisive_line_is_found_among_benign_ones_and_named_by_its_number() -> None:
    text = "FutureWarning: `torch_dtype` is deprecated! Use `dtype` instead!\nloading\nAttributeError: 'Parameter' object has no attribute 'SCB'\n"
    report = diagnose(text)
    assert [d.line.number for d in report.diagnoses] == [3]
    assert report.causes[0] == "missing_weights_reinitialised"
    assert [d.signature.id for d in report.benign] == ["known-notices"]


def test_a_fact_decides_between_the_causes_of_one_message() -> None:
    old = Facts().but(gpus=(Gpu("Tesla P100", "6.0"),), torch=TorchBuild("2.11.0+cu130", cuda="13.0"))
    new = Facts().but(gpus=(Gpu("NVIDIA GeForce RTX 5090", "12.0"),), torch=TorchBuild("2.6.0+cu124", cuda="12.4"))
    assert diagnose(NO_KERNEL, old).causes[0] == "arch_gpu_too_old_for_torch"
    assert diagnose(NO_KERNEL, new).causes[0] == "arch_sm120_torch_too_old"
    assert diagnose(NO_KERNEL, new).diagnoses[0].best.confidence == "sure"
    assert diagnose(NO_KERNEL).diagnoses[0].best.confidence == "possible"


def test_what_the_facts_exclude_is_said() -> None:
    ruled = diagnose("CUDA out of memory", packages(bitsandbytes="0.50.2")).diagnoses[0].ruled_out
    assert "oom_on_save_bnb" in [r.cause.id for r in ruled]


def test_a_version_that_the_log_itself_names_counts_as_a_fact() -> None:
    message = "TypeError: LlamaForCausalLM.__init__() got an unexpected keyword argument 'load_in_4bit'"
    assert diagnose(f"transformers==4.28.1\n{message}").causes[0] == "load_in_4bit_needs_newer_transformers"
    assert diagnose(f"transformers==5.1.0\n{message}").causes[0] == "load_in_4bit_kwarg_removed"


def test_several_failures_come_in_the_order_in_which_they_happened_and_the_launcher_is_no_cause() -> None:
    text = (
        "ERROR:bitsandbytes.cextension:Could not load bitsandbytes native library: libcusparse.so.11: cannot open shared object file\n"
        "AttributeError: 'NoneType' object has no attribute 'cquantize_blockwise_fp16_nf4'\n"
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n"
    )
    assert [d.signature.id for d in diagnose(text).diagnoses] == ["cuda-library-missing", "bnb-native-function-none"]


def test_a_launcher_that_alone_reports_a_failure_is_shown_without_confidence() -> None:
    report = diagnose("torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n")
    assert [d.best.confidence for d in report.diagnoses] == ["possible"]


@pytest.mark.parametrize(
    "raw",
    [
        f"{NO_KERNEL}\n".encode("utf-16"),
        f"{NO_KERNEL}\n".encode("utf-16-le"),
        f"  0%|  | 0/10\r 10%|# | 1/10\r{NO_KERNEL}".encode(),
        f"[rank3]: {NO_KERNEL}".encode(),
        b"\x1b[31mRuntimeError: CUDA error: no kernel \x1b[0mimage is available for execution on the device",
        b"\x80\xfe\x00garbage\x00\x01\n" * 50 + NO_KERNEL.encode(),
        f"{NO_KERNEL[:60]}\n{NO_KERNEL[60:]}\n".replace(" \n", "\n").encode(),
        "训练失败\n".encode("gb18030") + NO_KERNEL.encode(),
        (NO_KERNEL + "\n").encode() * 5000,
    ],
    ids=["utf-16", "no-bom", "progress-bar", "rank", "colours", "garbage", "wrapped", "gbk", "repeated"],
)
def test_the_dress_of_a_log_does_not_hide_its_message(raw: bytes) -> None:
    assert [d.signature.id for d in diagnose(raw).diagnoses] == ["no-kernel-image"]


def test_repetitions_are_counted() -> None:
    assert diagnose((NO_KERNEL + "\n") * 700).diagnoses[0].line.count == 700


def test_chinese_messages_are_known_in_utf8_and_gbk() -> None:
    for encoding in ("utf-8", "gb18030"):
        report = diagnose("/bin/bash: 段错误 (核心已转储)\n".encode(encoding))
        assert report.diagnoses[0].signature.id == "segfault"


def test_the_exit_code_alone_is_a_symptom() -> None:
    assert diagnose("", exit_code=139).diagnoses[0].signature.id == "segfault"
    assert diagnose("", exit_code=-9).causes[0] == "ram_oom_killed"


def test_exit_codes_that_differ_in_a_digit_are_not_folded_into_one() -> None:
    found = {d.signature.id for d in diagnose("exit code: 137\nexit code: 139\n").diagnoses}
    assert found == {"killed", "segfault"}


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ([2.1, 1.4, 31.45, 0.0, 0.0], "loss_zero_after_spike"),
        ([1.9, 0.8, 0.9, 3.0, 6.1, 6.2, 6.3], "loss_rises_lr_too_high"),
        ([4.9, float("nan"), float("nan")], "nan_fp16_adapters"),
    ],
)
def test_the_course_of_the_losses_is_a_symptom(values: list[float], cause: str) -> None:
    assert diagnose("\n".join(f"{{'loss': {v}, 'epoch': 0.1}}" for v in values)).causes[0] == cause


def test_nothing_known_names_no_cause_and_shows_the_decisive_line() -> None:
    report = diagnose("starting\nTraceback (most recent call last):\nbilling.errors.CardDeclinedError: no funds\n")
    assert report.diagnoses == ()
    assert [line.text for line in report.unknown] == ["billing.errors.CardDeclinedError: no funds"]


def test_no_log_without_a_failure_of_the_stack_gets_a_confident_diagnosis() -> None:
    logs = negatives()
    assert len(logs) >= 60
    confident = {
        n: [d.best.cause.id for d in diagnose(t).diagnoses if d.best.confidence != "possible"] for n, t in logs.items()
    }
    assert {n: c for n, c in confident.items() if c} == {}


def test_a_healthy_run_is_given_no_cause_at_all() -> None:
    blamed = {
        n: diagnose(t).causes for n, t in negatives().items() if n.startswith("healthy") and diagnose(t).diagnoses
    }
    assert blamed == {}


def test_a_long_log_is_folded_and_its_last_line_is_seen() -> None:
    noise = b"".join(
        b"{'loss': %.4f, 'epoch': %.2f} model cuda error %x\n" % (2 - i / 1e6, i / 1e5, i * 7919)
        for i in range(300_000)
    )
    assert diagnose(noise + b"Segmentation fault (core dumped)\n").diagnoses[-1].signature.id == "segfault"


def test_a_line_in_the_middle_of_very_many_short_ones_is_found_with_its_number() -> None:
    chaff = b"".join(b"%x\n" % (i * 7919 % 2**24) for i in range(400_000))
    found = diagnose(chaff + NO_KERNEL.encode() + b"\n" + chaff).diagnoses[0]
    assert (found.signature.id, found.line.number) == ("no-kernel-image", 400_001)


def test_an_exit_code_among_many_lines_that_differ_in_digits_keeps_its_number() -> None:
    lines = b"".join(b"step %d signal of life\n" % i for i in range(200))
    found = {d.signature.id for d in diagnose(lines * 3 + b"exit code: 137\nexit code: 139\n").diagnoses}
    assert found == {"killed", "segfault"}


def test_adversarial_lines_do_not_stall_the_patterns() -> None:
    evil = ["Found duplicate " * 3000, "Target modules " + "{'a'} " * 5000, "'" * 30000, "size mismatch for " * 3000]
    assert diagnose("\n".join(evil)).lines == 4


def test_findings_carry_the_fixes_and_an_unsure_one_is_never_applied() -> None:
    sure = findings(diagnose("ModuleNotFoundError: No module named 'triton.ops'"))[0]
    assert [f.kind for f in sure.fixes] == ["pip-requirement", "advice"]
    unsure = findings(diagnose(TO))[0]
    assert {f.applicability for f in unsure.fixes} == {"display-only"}


def test_a_log_file_gives_findings(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text("No module named 'triton.ops'\n", encoding="utf-8")
    assert findings_of_log(str(path))[0].name == "bnb-triton-ops"


def test_the_signatures_are_many_and_every_condition_and_fix_can_be_read() -> None:
    found = installed_signatures().all
    assert len(found) >= 150
    assert len({c.id for s in found for c in s.causes}) >= 120


def test_a_signature_without_a_telling_word_is_refused(tmp_path: Path) -> None:
    from qlora_doctor.errors import RegistryError

    path = tmp_path / "s.toml"
    row = "[[signature]]\nid='x'\ncategory='y'\nsource='z'\npatterns=['{}']\ncauses=[{{id='a', says='b', fix='c'{}}}]\n"
    for pattern, more in ((r"\d+", ""), ("fine", ", when=\"__import__('os')\""), ("fine", ", fixes=['rm x']")):
        path.write_text(row.format(pattern, more), encoding="utf-8")
        with pytest.raises(RegistryError):
            load(path)
    path.write_text(row.format("fine", ""), encoding="utf-8")
    assert load(path)[0].id == "x"


def test_short_forms_of_fixes_become_fixes() -> None:
    assert read_fix("pip -bitsandbytes-windows").title == "uninstall bitsandbytes-windows"
    assert read_fix("env -HF_HUB_OFFLINE").title == "unset HF_HUB_OFFLINE"
    assert read_fix('train optim="paged_adamw_8bit"').title == "pass optim='paged_adamw_8bit'"
    assert read_fix("load torch_dtype->dtype").title.startswith("torch_dtype= becomes dtype=")


def test_wordings_of_the_libraries_own_source_are_known_by_their_cause() -> None:
    path = Path(__file__).parent / "wordings.jsonl"
    cases = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    wrong = {
        case["error_lines"][0][:80]: found[:2]
        for case in cases
        if case["cause_id"] not in (found := diagnose("\n".join(case["error_lines"])).causes)[:1]
    }
    assert wrong == {}
    assert len(cases) >= 60


def test_an_advice_about_offline_mode_is_no_sign_of_offline_mode() -> None:
    text = (
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.\n"
        "Check your internet connection or see how to run the library in offline mode at 'https://huggingface.co/docs'.\n"
    )
    assert diagnose(text).causes[0] == "hub_unreachable"
    assert diagnose(text, Facts().but(environ={"HF_HUB_OFFLINE": "1"})).causes[0] == "hub_offline_not_cached"
