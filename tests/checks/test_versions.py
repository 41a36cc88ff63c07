"""QD001 to QD008: versions that do not go together are named once, at the severity of what they break."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_checks import missing, stack, versions
from qlora_doctor.facts import Distribution, Facts, Installed, Interpreter, Packages, Unknown
from qlora_doctor.finding import Finding
from qlora_doctor.judge import Case, judge
from qlora_doctor.request import LoadRequest, Requests, TrainRequest
from qlora_doctor.source import Call, Import, Script
from qlora_doctor.testing import assert_fixed_by, bnb, facts, findings, load, outcome, train

N = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "bitsandbytes": "0.50.2",
    "accelerate": "1.15.0",
    "huggingface-hub": "2.4.0",
    "tokenizers": "0.23.3",
    "numpy": "2.4.6",
    "safetensors": "0.8.0",
    "regex": "2026.11.15",
    "tqdm": "4.70.1",
    "scipy": "1.18.0",
}
FOUR_BIT = load()
EIGHT_BIT = load(quantization_config=bnb(load_in_4bit=False, load_in_8bit=True))
PLAIN = load(quantization_config=None)


def having(python: str = "3.11.7", **changes: str | None) -> Facts:
    """The sound stack with some versions changed; None takes a package out."""
    packages: dict[str, str | None] = {**N, **{k.replace("_", "-"): v for k, v in changes.items()}}
    return facts({k: v for k, v in packages.items() if v is not None}, python=python)


def all_findings(
    given: Facts, *requests: LoadRequest | TrainRequest, imports: tuple[str, ...] = ()
) -> tuple[Finding, ...]:
    loads = tuple(r for r in requests if isinstance(r, LoadRequest))
    trains = tuple(r for r in requests if isinstance(r, TrainRequest))
    verdict = judge(versions.CHECKS, given, [Case(Requests(loads, trains, imports))])
    assert not [o for o in verdict.outcomes if o.outcome == "crashed"], verdict.outcomes
    return verdict.findings


def said(found: tuple[Finding, ...]) -> list[tuple[str, str]]:
    return [(f.severity, f.code) for f in found]


@pytest.mark.parametrize("requests", [(), (FOUR_BIT,), (FOUR_BIT, train(lora={"r": 8}, load=FOUR_BIT))])
def test_a_sound_stack_is_silent(requests: Any) -> None:
    assert all_findings(having(), *requests) == ()


@pytest.mark.parametrize("check", [c for c in versions.CHECKS if "packages" in c.needs], ids=lambda c: c.code)
def test_packages_that_could_not_be_read_are_unknown_and_never_fine(check: Any) -> None:
    given = Facts(packages=Unknown("site-packages cannot be read"), interpreter=Interpreter("3.11.7"))  # type: ignore[arg-type]
    assert outcome(check, given, script=importing(Import("trl"))) == "unknown"


# ---- QD001


@pytest.mark.parametrize(
    ("package", "request_", "severity"),
    [
        ("bitsandbytes", FOUR_BIT, "error"),
        ("accelerate", FOUR_BIT, "error"),
        ("accelerate", train(), "error"),
        ("accelerate", load(quantization_config=None, device_map="auto"), "error"),
        ("bitsandbytes", train(settings={"optim": "paged_adamw_8bit"}), "error"),
        ("bitsandbytes", train(settings={"optim": "adamw_bnb_8bit"}), "error"),
        ("bitsandbytes", train(settings={"optim": "paged_adamw_32bit"}), "error"),
        ("peft", train(lora={"r": 8}), "error"),
        ("torch", PLAIN, "error"),
    ],
)
def test_a_package_that_the_run_takes_is_missing(package: str, request_: Any, severity: str) -> None:
    found = findings(missing.missing_package, having(**{package: None}), request_)
    assert [(f.severity, f.evidence["package"]) for f in found] == [(severity, package)]
    assert_fixed_by(missing.missing_package, having(**{package: None}), request_)


@pytest.mark.parametrize(("package", "request_"), [("bitsandbytes", PLAIN), ("peft", FOUR_BIT), ("accelerate", PLAIN)])
def test_a_missing_package_that_the_run_does_not_take_is_not_mentioned(package: str, request_: LoadRequest) -> None:
    assert findings(missing.missing_package, having(**{package: None}), request_) == ()


def test_an_environment_alone_is_warned_of_each_missing_package_of_the_stack() -> None:
    found = findings(missing.missing_package, having(peft=None, bitsandbytes=None))
    assert [(f.severity, f.evidence["package"]) for f in found] == [("warning", "bitsandbytes"), ("warning", "peft")]


def test_a_load_that_may_be_quantised_is_warned_and_not_failed() -> None:
    found = findings(
        missing.missing_package, having(bitsandbytes=None), load(quantization_config=None, open="**kwargs")
    )
    assert [f.severity for f in found] == ["warning"]


IMPORT = missing.import_that_is_not_installed


def importing(*imports: Import) -> Script:
    return Script("train.py", imports=imports)


def test_an_import_of_the_script_is_missing_and_an_unknown_module_is_its_own() -> None:
    script = importing(Import("trl", "SFTTrainer"), Import("trl.trainer"), Import("my_helpers"), Import("PIL", "Image"))
    found = findings(IMPORT, having(), script=script)
    assert [(f.severity, f.evidence["package"]) for f in found] == [("error", "pillow"), ("error", "trl")]


def test_an_import_that_may_fail_or_may_never_run_is_no_error() -> None:
    script = importing(Import("flash_attn", guarded=True), Import("wandb", nested=True))
    found = findings(IMPORT, having(), script=script)
    assert [(f.severity, f.evidence["package"]) for f in found] == [("warning", "wandb")]


@pytest.mark.parametrize("distribution", ["opencv-python-headless", "opencv-python"])
def test_a_variant_of_a_distribution_counts_as_installed(distribution: str) -> None:
    assert findings(IMPORT, facts({**N, distribution: "5.0"}), script=importing(Import("cv2"))) == ()


def test_a_new_bitsandbytes_is_kept_below_what_would_pull_another_torch() -> None:
    given = having(torch="2.3.1+cu121", transformers="4.44.2", bitsandbytes=None)
    (found,) = findings(missing.missing_package, given, FOUR_BIT)
    assert found.evidence["requirement"] == "bitsandbytes>=0.39.0,<0.50"


@pytest.mark.parametrize(
    ("package", "transformers", "wanted"),
    [
        ("accelerate", "4.39.3", "accelerate>=0.21.0,<1.0"),
        ("accelerate", "4.44.2", "accelerate>=0.21.0"),
        ("peft", "4.41.2", "peft>=0.5.0,<0.14.0"),
        ("peft", "5.23.0", "peft>=0.20.0"),
        ("bitsandbytes", "5.23.0", "bitsandbytes>=0.46.1"),
    ],
)
def test_what_is_missing_is_asked_for_in_a_version_that_suits_the_others(
    package: str, transformers: str, wanted: str
) -> None:
    given = having(transformers=transformers, **{package: None})
    found = {m.package: stack.requirement(given, m.package) for m in missing.find(given, Requests())}
    assert found[package] == wanted


def test_torch_is_never_installed_without_being_asked() -> None:
    (found,) = findings(missing.missing_package, having(torch=None), PLAIN)
    assert [f.applicability for f in found.fixes] == ["unsafe"]


# ---- QD002

FLOOR = versions.version_below_the_floor_of_transformers


@pytest.mark.parametrize(
    ("old", "request_", "severity"),
    [
        ({"bitsandbytes": "0.46.0"}, FOUR_BIT, "error"),
        ({"bitsandbytes": "0.46.0"}, EIGHT_BIT, "error"),
        ({"bitsandbytes": "0.46.0"}, PLAIN, "warning"),
        ({"accelerate": "1.0.1"}, FOUR_BIT, "error"),
        ({"accelerate": "1.0.1"}, train(), "error"),
        ({"peft": "0.11.1"}, train(lora={"r": 8}), "warning"),
    ],
)
def test_a_version_below_the_floor_is_an_error_only_on_the_path_that_is_refused(
    old: dict[str, str], request_: Any, severity: str
) -> None:
    found = findings(FLOOR, having(**old), request_)
    assert [f.severity for f in found] == [severity]
    assert_fixed_by(FLOOR, having(**old), request_)


@pytest.mark.parametrize(
    "sound", [{"bitsandbytes": "0.46.1"}, {"accelerate": "1.1.0"}, {"peft": "0.20.0"}, {"bitsandbytes": "0.46.1.post1"}]
)
def test_the_floor_itself_is_enough(sound: dict[str, str]) -> None:
    assert findings(FLOOR, having(**sound), FOUR_BIT) == ()


def test_an_old_transformers_has_low_floors() -> None:
    old = having(transformers="4.44.2", bitsandbytes="0.43.3", accelerate="0.33.0", peft="0.12.0")
    assert findings(FLOOR, old, FOUR_BIT, train(lora={"r": 8})) == ()


def test_what_the_installed_source_says_beats_the_table() -> None:
    stated = Installed(minimums={"transformers": {"bitsandbytes": "0.60.0"}})
    (found,) = findings(FLOOR, having().but(installed=stated), FOUR_BIT)
    assert found.evidence["floor"] == "0.60.0"
    assert "its own source" in found.evidence["source"]


def test_a_transformers_newer_than_the_table_is_judged_by_its_source_alone() -> None:
    newer = having(transformers="9.0.0", bitsandbytes="0.10")
    assert findings(FLOOR, newer, FOUR_BIT) == ()
    stated = Installed(minimums={"transformers": {"bitsandbytes": "0.60.0"}})
    assert len(findings(FLOOR, newer.but(installed=stated), FOUR_BIT)) == 1


# ---- QD003

REFUSES = versions.transformers_that_refuses_to_be_imported


@pytest.mark.parametrize(
    "wrong",
    [
        {"huggingface_hub": "1.2.3"},
        {"transformers": "4.57.6", "tokenizers": "0.22.1"},
        {"transformers": "4.42.4", "tokenizers": "0.19.1", "huggingface_hub": "0.24.0", "numpy": "2.0.1"},
        {"regex": None},
        {"safetensors": "0.7.0"},
    ],
)
def test_a_library_outside_the_range_that_transformers_checks_at_import(wrong: dict[str, str | None]) -> None:
    given = having(**wrong)
    assert [f.severity for f in findings(REFUSES, given, FOUR_BIT)] == ["error"]
    assert [f.severity for f in findings(REFUSES, given)] == ["warning"]
    assert_fixed_by(REFUSES, given, FOUR_BIT)


def test_what_is_absent_is_added_safely_and_what_is_changed_is_not() -> None:
    assert findings(REFUSES, having(regex=None))[0].fixes[0].applicability == "safe"
    assert findings(REFUSES, having(safetensors="0.7.0"))[0].fixes[0].applicability == "unsafe"


def test_the_message_says_what_was_found() -> None:
    assert "and it is not installed" in findings(REFUSES, having(regex=None))[0].text
    assert "and 0.7.0 is installed" in findings(REFUSES, having(safetensors="0.7.0"))[0].text
    assert "and it is not installed" in findings(UNMET, asking("jmespath"))[0].text


def test_tokenizers_may_be_absent() -> None:
    assert findings(REFUSES, having(tokenizers=None), FOUR_BIT) == ()


def test_the_ranges_in_the_installed_source_beat_the_table() -> None:
    stated = Installed(import_requirements={"transformers": ("huggingface-hub>=9", "python>=3.99", "numpy")})
    (found,) = findings(REFUSES, having().but(installed=stated), FOUR_BIT)
    assert found.evidence["requirement"] == "huggingface-hub>=9"


# ---- QD004

PAIR = versions.known_bad_pair


@pytest.mark.parametrize(
    ("wrong", "request_", "severity"),
    [
        ({"peft": "0.17.1"}, train(lora={"r": 8}), "error"),
        ({"peft": "0.17.1"}, PLAIN, "warning"),
        ({"peft": "0.18.1", "transformers": "4.51.3"}, train(lora={"r": 8}), "error"),
        ({"accelerate": "0.31.0", "transformers": "4.44.2"}, train(lora={"r": 8}), "error"),
        ({"peft": "0.13.2", "transformers": "4.44.2"}, train(lora={"r": 8}, load=EIGHT_BIT), "error"),
        ({"bitsandbytes": "0.44.1", "triton": "3.2.0", "transformers": "4.44.2"}, FOUR_BIT, "error"),
        ({"bitsandbytes": "0.41.1", "scipy": None, "transformers": "4.44.2"}, FOUR_BIT, "error"),
        ({"bitsandbytes": "0.42.0", "scipy": None}, FOUR_BIT, "warning"),
        ({"transformers": "4.39.3", "peft": "0.10.0"}, train(), "error"),
    ],
)
def test_a_pair_that_is_known_not_to_work(wrong: dict[str, str | None], request_: Any, severity: str) -> None:
    requests = (request_, request_.load) if getattr(request_, "load", None) else (request_,)
    found = [f for f in findings(PAIR, having(**wrong), *requests) if f.severity != "info"]
    assert [f.severity for f in found] == [severity]


@pytest.mark.parametrize(
    "sound",
    [
        {"peft": "0.15.2", "transformers": "4.57.6"},
        {"peft": "0.18.1", "transformers": "4.57.6"},
        {"peft": "0.13.2", "transformers": "4.40.0", "bitsandbytes": "0.44.1"},
        {"bitsandbytes": "0.44.1", "triton": "3.1.0", "transformers": "4.44.2"},
        {"bitsandbytes": "0.45.1", "triton": "3.2.0", "transformers": "4.44.2"},
        {"transformers": "4.40.0", "peft": "0.10.0", "bitsandbytes": "0.43.3"},
    ],
)
def test_the_neighbours_of_a_bad_pair_are_left_alone(sound: dict[str, str]) -> None:
    found = findings(PAIR, having(**sound), FOUR_BIT, train(lora={"r": 8}))
    assert [f for f in found if f.severity != "info"] == []


@pytest.mark.parametrize(
    ("request_", "severity"),
    [(PLAIN, "error"), (FOUR_BIT, "info"), (load(quantization_config=None, open="**kwargs of main()"), "info")],
)
def test_an_old_torchao_stops_adapters_on_unquantised_layers_only(request_: LoadRequest, severity: str) -> None:
    given = facts({**N, "torchao": "0.10.0"})
    assert [f.severity for f in findings(PAIR, given, request_, train(lora={"r": 8}, load=request_))] == [severity]
    assert findings(PAIR, facts({**N, "torchao": "0.16.0"}), request_, train(lora={"r": 8}, load=request_)) == ()


def test_a_pair_that_was_not_verified_never_fails_a_run() -> None:
    found = findings(PAIR, having(bitsandbytes="0.49.2"), FOUR_BIT)
    assert [f.severity for f in found] == ["info"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"peft": "0.17.1"},
        {"bitsandbytes": "0.44.1", "triton": "3.2.0", "transformers": "4.57.6"},
        {"accelerate": "0.31.0", "transformers": "4.57.6"},
        {"bitsandbytes": "0.49.2"},
    ],
)
def test_the_fix_of_a_bad_pair_ends_it(wrong: dict[str, str | None]) -> None:
    assert_fixed_by(PAIR, having(**wrong), FOUR_BIT, train(lora={"r": 8}))


def test_a_pair_is_reported_by_one_check_alone() -> None:
    """peft 0.17 with transformers 5 is below the floor as well, and its metadata may object: the precise truth wins."""
    given = having(peft="0.17.1")
    assert said(all_findings(given, train(lora={"r": 8}))) == [("error", "QD004")]


# ---- QD005 and QD006


def with_python(requires: str, name: str = "transformers") -> Facts:
    packages = Packages((Distribution(name, "1.0", requires_python=requires),))
    return Facts(interpreter=Interpreter("3.9.18"), packages=packages)


@pytest.mark.parametrize(
    ("name", "requests", "severity"),
    [("transformers", (PLAIN,), "error"), ("transformers", (), "warning"), ("some-lib", (PLAIN,), "info")],
)
def test_python_is_too_old_for_an_installed_package(name: str, requests: Any, severity: str) -> None:
    found = findings(versions.python_older_than_a_package_needs, with_python(">=3.10", name), *requests)
    assert [f.severity for f in found] == [severity]


@pytest.mark.parametrize("requires", [">=3.9", ">=3.8,!=3.9.0", "garbage"])
def test_a_python_that_suits_or_that_nobody_can_compare_is_no_finding(requires: str) -> None:
    assert findings(versions.python_older_than_a_package_needs, with_python(requires), PLAIN) == ()


def test_the_table_knows_the_python_of_a_transformers_whose_metadata_does_not_say() -> None:
    check = versions.python_older_than_a_package_needs
    assert [f.severity for f in findings(check, having(python="3.10.13"), PLAIN)] == ["error"]
    assert findings(check, having(python="3.10.13", transformers="5.20.0"), PLAIN) == ()


TORCH = versions.torch_below_the_floor_of_transformers


@pytest.mark.parametrize(
    ("transformers", "torch"),
    [("4.52.4", "2.0.1"), ("5.0.0", "2.1.2"), ("5.1.0", "2.3.1+cu121"), ("5.23.0", "2.5.1+cu124")],
)
def test_a_torch_that_transformers_switches_off(transformers: str, torch: str) -> None:
    given = having(transformers=transformers, torch=torch)
    assert [f.severity for f in findings(TORCH, given, PLAIN)] == ["error"]
    assert_fixed_by(TORCH, given, PLAIN)


@pytest.mark.parametrize(
    ("transformers", "torch"),
    [("4.51.3", "1.13.1"), ("4.57.6", "2.1.0"), ("5.0.0", "2.2.0"), ("5.23.0", "2.6.0+cu118")],
)
def test_a_torch_at_the_floor_or_a_transformers_that_does_not_compare(transformers: str, torch: str) -> None:
    assert findings(TORCH, having(transformers=transformers, torch=torch), PLAIN) == ()


# ---- QD007

UNMET = versions.requirement_that_is_not_met


def asking(*lines: str, name: str = "trl", extra: dict[str, str] | None = None) -> Facts:
    others = tuple(Distribution(n, v) for n, v in {**N, **(extra or {})}.items())
    return Facts(
        interpreter=Interpreter("3.11.7"), packages=Packages((Distribution(name, "1.0", requires=lines), *others))
    )


@pytest.mark.parametrize(
    "line",
    [
        "transformers (>=6)",
        "transformers[sentencepiece]<5,>=4",
        "jmespath",
        "transformers~=4.44",
        "transformers==4.*",
        'transformers>=6; python_version >= "3.9" and sys_platform == "linux"',
    ],
)
def test_a_requirement_that_the_metadata_states_and_the_environment_lacks(line: str) -> None:
    found = findings(UNMET, asking(line))
    assert [f.severity for f in found] == ["warning"]


@pytest.mark.parametrize(
    "line",
    [
        "transformers>=5",
        "transformers",
        "transformers @ https://example.invalid/transformers.whl",
        'jmespath; extra == "all"',
        'jmespath; sys_platform == "win32"',
        'jmespath>=1; python_version < "3.10"',
        "numpy!=1.24.*,>=1.17",
        "torch>=2.13",
        "!!! not a requirement",
        "huggingface_hub>=2",
    ],
)
def test_a_requirement_that_is_met_or_does_not_apply(line: str) -> None:
    assert findings(UNMET, asking(line)) == ()


def test_a_conflict_between_packages_that_the_run_does_not_use_is_an_info() -> None:
    assert [f.severity for f in findings(UNMET, asking("fsspec", name="dask"))] == ["info"]
    assert [f.severity for f in all_findings(asking("fsspec", name="dask"), imports=("dask",))] == ["warning"]


def test_the_conflicts_of_all_other_packages_make_one_finding() -> None:
    given = asking("fsspec", "cloudpickle", "numpy>=9", name="dask")
    (found,) = findings(UNMET, given)
    assert (found.severity, found.evidence["count"]) == ("info", 3)
    assert "dask asks for fsspec" in found.text


def test_one_finding_for_a_pair_that_disagrees_on_several_lines() -> None:
    (found,) = findings(UNMET, asking("numpy>=3", "numpy<1; python_version > '3'"))
    assert found.evidence["requirement"] == "numpy>=3,<1"


def test_what_a_precise_check_explains_is_not_repeated() -> None:
    sound = (Distribution("peft", "0.21.2", requires=("accelerate>=0.21", "tqdm")),)
    others = tuple(Distribution(n, v) for n, v in N.items() if n not in ("accelerate", "peft"))
    given = Facts(interpreter=Interpreter("3.11.7"), packages=Packages((*sound, *others)))
    assert said(all_findings(given, FOUR_BIT)) == [("error", "QD001")]


def test_a_missing_requirement_is_added_safely_and_an_upgrade_is_not() -> None:
    assert_fixed_by(UNMET, asking("jmespath>=1", "numpy>=3"))
    found = findings(UNMET, asking("jmespath>=1", "numpy>=3"))
    assert {f.evidence["requirement"]: f.fixes[0].applicability for f in found} == {
        "jmespath>=1": "safe",
        "numpy>=3": "unsafe",
    }


# ---- QD008


def test_a_package_newer_than_the_table_is_said_and_fails_nothing() -> None:
    found = all_findings(having(transformers="5.24.0.dev0", torch="2.13.1"), FOUR_BIT)
    assert said(found) == [("info", "QD008")]
    assert "transformers 5.24.0.dev0" in found[0].text
    assert "torch" not in found[0].text


def test_a_version_that_nobody_can_compare_is_unknown() -> None:
    assert outcome(FLOOR, having(bitsandbytes="not-a-version"), FOUR_BIT) == "unknown"


def test_a_config_that_quantises_with_another_method_does_not_need_bitsandbytes() -> None:
    gptq = load(quantization_config=Call("transformers.GPTQConfig", {"bits": 4}))
    assert findings(missing.missing_package, having(bitsandbytes=None), gptq) == ()
