"""QD202: every way in which the Hub cannot be reached has its own words, and the remedy follows the cause."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qlora_checks.hub import unreachable_hub
from qlora_doctor.facts import Facts, Host, Hub, Mirror, Snapshot
from qlora_doctor.fix import Advice, EnvVar
from qlora_doctor.testing import facts, findings, load

MODEL = load("Qwen/Qwen3-0.6B")
DOWN = Hub(reachable=False)
CLASH = {"https_proxy": "http://127.0.0.1:7890"}


def found(hub: Hub, given: Facts | None = None) -> Any:
    (one,) = findings(unreachable_hub, (given or Facts()).but(hub=hub), MODEL)
    return one


@pytest.mark.parametrize(
    ("failure", "reason", "remedy"),
    [
        ("dns", "cannot be resolved", "DNS"),
        ("refused", "nothing listens there", "address"),
        ("reset", "connection was cut", "network"),
        ("cut short", "broke off", "try again"),
        ("timeout", "no answer in time", "network"),
        ("tls", "TLS was not accepted", "address"),
        ("tls unknown authority", "authority that is not trusted", "SSL_CERT_FILE"),
        ("tls expired", "clock of this machine is ahead", "date"),
        ("tls not yet valid", "clock of this machine is behind", "set the clock"),
        ("tls wrong host", "for another name", "login page"),
        ("proxy", "did not let the request through", "its rules"),
        ("proxy refused", "nothing listens at the proxy", "unset it"),
        ("proxy password", "asks for a user name", "USER:PASSWORD"),
        ("http 429", "too many requests", "wait a while"),
        ("http 404", "not as a Hub does", "address"),
        ("http 503", "trouble of its own", "later"),
        ("not json", "login page", "browser"),
        ("redirect loop", "in a circle", "login page"),
        ("a word of a later version", "did not answer as a Hub does", "address"),
    ],
)
def test_each_cause_has_its_own_words(failure: str, reason: str, remedy: str) -> None:
    one = found(replace(DOWN, failure=failure))
    assert reason in one.evidence["reason"]
    assert remedy.lower() in one.evidence["remedy"].lower()
    assert "{" not in one.text


def test_the_waiting_time_that_a_busy_hub_asks_for_is_said() -> None:
    assert "Wait 60 seconds" in found(replace(DOWN, failure="http 429", retry_after=60)).text


def test_the_host_that_a_redirect_leads_to_is_named() -> None:
    assert (
        "(at other.example, where it redirects to)"
        in found(replace(DOWN, failure="dns", redirected="other.example")).text
    )


@pytest.mark.parametrize(("version", "variable"), [("2.4.0", "SSL_CERT_FILE"), ("0.36.0", "REQUESTS_CA_BUNDLE")])
def test_the_variable_for_certificates_is_that_of_the_installed_client(version: str, variable: str) -> None:
    one = found(replace(DOWN, failure="tls unknown authority"), facts({"huggingface-hub": version}))
    assert f"Set {variable} to" in one.text and one.fixes[0].kind == "advice"


def test_the_proxy_and_its_variable_are_named() -> None:
    one = found(replace(DOWN, failure="proxy refused"), Facts(environ=CLASH))
    assert "http://127.0.0.1:7890 (from https_proxy)" in one.text


@pytest.mark.parametrize(
    ("wsl", "proxy", "told"),
    [(2, "http://127.0.0.1:7890", True), (2, "localhost:7890", True), (2, "http://172.20.0.1:7890", False), (0, "http://127.0.0.1:7890", False)],
)  # fmt: skip
def test_a_proxy_on_the_loopback_of_wsl_2_is_not_that_of_windows(wsl: int, proxy: str, told: bool) -> None:
    given = Facts(environ={"https_proxy": proxy}, host=Host(wsl=wsl))
    assert ("networkingMode=mirrored" in found(replace(DOWN, failure="proxy refused"), given).text) is told


def test_a_configured_mirror_that_answers_is_the_fix_and_one_that_does_not_is_none() -> None:
    mirrors = (Mirror("https://a.example", False, "dns"), Mirror("https://b.example", True))
    one = found(replace(DOWN, failure="reset", mirrors=mirrors))
    assert one.fixes == (EnvVar("HF_ENDPOINT", "https://b.example"),)
    assert found(replace(DOWN, failure="reset", mirrors=mirrors[:1])).fixes[0].kind == "advice"


def test_a_mirror_that_nobody_configured_is_named_and_never_a_fix_that_is_applied() -> None:
    one = found(replace(DOWN, failure="timeout"))
    assert "https://hf-mirror.com" in one.text
    assert all(isinstance(f, Advice) for f in one.fixes)


@pytest.mark.parametrize("failure", ["tls unknown authority", "proxy refused", "http 429", "tls expired"])
def test_another_endpoint_is_not_advised_where_the_trouble_is_nearer(failure: str) -> None:
    assert "mirror" not in found(replace(DOWN, failure=failure)).text


def test_a_model_that_the_cache_holds_in_part_cannot_be_loaded() -> None:
    cached = replace(DOWN, failure="dns", cached=("Qwen/Qwen3-0.6B",))
    assert found(cached).severity == "warning"
    partly = replace(cached, snapshots=(Snapshot("Qwen/Qwen3-0.6B", missing=("model.safetensors",)),))
    assert found(partly).severity == "error"
