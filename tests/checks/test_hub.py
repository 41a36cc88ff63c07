"""QD201 to QD203: the address of the Hub, whether it answers, and what is needed from it."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_checks import hub
from qlora_doctor.facts import Facts, Hub, Unknown
from qlora_doctor.fix import EnvVar
from qlora_doctor.judge import Case, judge
from qlora_doctor.request import Requests
from qlora_doctor.source import EnvironWrite, Script, Unresolved
from qlora_doctor.testing import assert_fixed_by, findings, load, outcome

MODEL = load("Qwen/Qwen3-0.6B")
LOCAL = load("./models/qwen")
DEAD = Hub("http://127.0.0.1:9", source="HF_ENDPOINT", reachable=False, failure="refused")


def environ(**values: str) -> Facts:
    return Facts(environ=values, hub=Hub(offline=True))


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("hf-mirror.example", "https://hf-mirror.example"),
        ("hf-mirror.example/", "https://hf-mirror.example"),
        ("//hf-mirror.example", "https://hf-mirror.example"),
        (" https://hf-mirror.example", "https://hf-mirror.example"),
        ('"https://hf-mirror.example"', "https://hf-mirror.example"),
        ("https://hf-mirror.example/models", "https://hf-mirror.example"),
        ("https://hf-mirror.example?x=1", "https://hf-mirror.example"),
        ("10.0.0.5:8080", "https://10.0.0.5:8080"),
    ],
)
def test_an_endpoint_that_is_no_address_is_corrected(value: str, meant: str) -> None:
    (found,) = findings(hub.malformed_endpoint, environ(HF_ENDPOINT=value), MODEL)
    assert found.fixes == (EnvVar("HF_ENDPOINT", meant),)
    assert_fixed_by(hub.malformed_endpoint, environ(HF_ENDPOINT=value), MODEL)


@pytest.mark.parametrize("value", ["ftp://hf-mirror.example", "https://", "https://a b.example", "http://[::1"])
def test_an_endpoint_that_nobody_can_correct_is_to_be_unset(value: str) -> None:
    (found,) = findings(hub.malformed_endpoint, environ(HF_ENDPOINT=value), MODEL)
    assert found.fixes == (EnvVar("HF_ENDPOINT", None),)


@pytest.mark.parametrize(
    "value",
    [
        "https://hf-mirror.example",
        "https://hf-mirror.example/",
        "http://127.0.0.1:8080",
        "https://corp.example/artifactory/api/huggingfaceml/hub",
        "https://nexus.example/repository/hf",
        "",
    ],
)
def test_a_sound_endpoint_is_silent(value: str) -> None:
    assert findings(hub.malformed_endpoint, environ(HF_ENDPOINT=value), MODEL) == ()


def test_a_malformed_endpoint_fails_only_a_run_that_downloads() -> None:
    given = environ(HF_ENDPOINT="hf-mirror.example")
    assert [f.severity for f in findings(hub.malformed_endpoint, given, MODEL)] == ["error"]
    assert [f.severity for f in findings(hub.malformed_endpoint, given, LOCAL)] == ["warning"]
    path = environ(HF_ENDPOINT="https://hf-mirror.example/models")
    assert [f.severity for f in findings(hub.malformed_endpoint, path, MODEL)] == ["warning"]


@pytest.mark.parametrize("check", [c for c in hub.CHECKS if c.needs != ("script",)], ids=lambda c: c.code)
def test_what_could_not_be_read_is_unknown(check: Any) -> None:
    unread: Any = Unknown("could not be read")
    assert outcome(check, Facts(environ=unread, hub=unread), MODEL) == "unknown"


def test_a_dead_endpoint_fails_a_load_that_is_not_cached_and_names_the_endpoint() -> None:
    (found,) = findings(hub.unreachable_hub, Facts(hub=DEAD), MODEL)
    assert found.severity == "error"
    assert "http://127.0.0.1:9 (from HF_ENDPOINT)" in found.text
    assert "Qwen/Qwen3-0.6B" in found.text


def test_a_dead_endpoint_only_warns_where_the_cache_has_the_model() -> None:
    cached = Hub(DEAD.endpoint, "HF_ENDPOINT", False, "timeout", cached=("Qwen/Qwen3-0.6B",))
    (found,) = findings(hub.unreachable_hub, Facts(hub=cached), MODEL)
    assert (found.severity, found.fixes) == ("warning", (EnvVar("HF_HUB_OFFLINE", "1"),))


@pytest.mark.parametrize(
    "given", [Hub(reachable=True), Hub(reachable=None), Hub(reachable=False, failure="dns", offline=True)]
)
def test_a_hub_that_answers_or_was_not_asked_is_silent(given: Hub) -> None:
    assert findings(hub.unreachable_hub, Facts(hub=given), MODEL) == ()


@pytest.mark.parametrize(
    "request_", [LOCAL, load("C:\\models\\qwen"), load("/data/qwen"), load(None, open="args.model")]
)
def test_a_run_that_needs_no_hub_is_silent(request_: Any) -> None:
    assert findings(hub.unreachable_hub, Facts(hub=DEAD), request_) == ()


def test_a_folder_with_the_look_of_an_id_is_no_download_where_the_machine_was_asked() -> None:
    given = Hub(DEAD.endpoint, "HF_ENDPOINT", False, "refused", asked=("org/other",))
    assert findings(hub.unreachable_hub, Facts(hub=given), load("output/checkpoint")) == ()


def test_a_malformed_endpoint_is_the_one_finding() -> None:
    given = Facts(environ={"HF_ENDPOINT": "hf-mirror.example"}, hub=DEAD)
    verdict = judge(hub.CHECKS, given, [Case(Requests(loads=(MODEL,)))])
    assert [f.code for f in verdict.findings] == ["QD201"]


def test_offline_without_the_model_fails_and_the_cache_makes_it_sound() -> None:
    given = Facts(environ={"HF_HUB_OFFLINE": "1"}, hub=Hub(offline=True))
    assert [f.severity for f in findings(hub.offline_without_the_model, given, MODEL)] == ["error"]
    assert_fixed_by(hub.offline_without_the_model, given, MODEL)
    cached = given.but(hub=Hub(offline=True, cached=("Qwen/Qwen3-0.6B",)))
    assert findings(hub.offline_without_the_model, cached, MODEL) == ()
    assert findings(hub.offline_without_the_model, given, load("Qwen/Qwen3-0.6B", cache_dir="/data")) == ()
    assert findings(hub.offline_without_the_model, given.but(environ={"HF_HUB_OFFLINE": "0"}), MODEL) == ()


def test_an_endpoint_that_the_script_sets_is_looked_at_too() -> None:
    writes = (EnvironWrite("HF_ENDPOINT", "hf-mirror.example"), EnvironWrite("HF_HOME", "x y"))
    (found,) = findings(hub.malformed_endpoint_in_the_script, Facts(), MODEL, script=Script("a.py", environ=writes))
    assert (found.severity, found.evidence["better"]) == ("error", "https://hf-mirror.example")
    sound = Script("a.py", environ=(EnvironWrite("HF_ENDPOINT", "https://hf-mirror.example"),))
    assert findings(hub.malformed_endpoint_in_the_script, Facts(), MODEL, script=sound) == ()
    unresolved = Script("a.py", environ=(EnvironWrite("HF_ENDPOINT", Unresolved("args.mirror")),))
    assert findings(hub.malformed_endpoint_in_the_script, Facts(), MODEL, script=unresolved) == ()
