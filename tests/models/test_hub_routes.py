"""The way to the weights: storage that a redirect leads to, storage of hf_xet, mirrors that lack files or ranges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qlora_checks import hub_routes
from qlora_doctor.examine import Question, examine
from qlora_doctor.facts import Hub, Repository, Route
from qlora_doctor.fix import EnvVar
from qlora_doctor.testing import assert_fixed_by, facts, findings, load
from tests.hub_server import HubServer, dead_address, hub_server
from tests.models.conftest import NAME

CODES = ("QD202", "QD205", "QD207", "QD215", "QD218")
CDN = "cas-bridge.example"
CAS = "cas-server.example"


@pytest.fixture
def storage(hub: HubServer) -> Iterator[HubServer]:
    """A second host that holds the large files; the Hub redirects there."""
    with hub_server(hub.root) as server:
        hub.storage = server.address
        yield server


def found(name: str = NAME) -> dict[str, str]:
    """The code and the text of each finding."""
    return {f.code: f.text for f in examine(Question(model=name, select=CODES)).verdict.findings}


def host(address: str) -> str:
    return address.partition("//")[2]


def test_weights_on_another_host_that_answers_are_silent(hub: HubServer, storage: HubServer) -> None:
    assert found() == {}
    assert storage.asked


def test_a_storage_host_that_is_blocked_is_named(hub: HubServer) -> None:
    hub.storage = dead_address()
    answer = found()
    assert list(answer) == ["QD207"] and host(hub.storage) in answer["QD207"]


@pytest.mark.parametrize(
    ("wrong", "failure"), [("reset", "reset"), ("hang", "timeout"), ("503", "http 503"), ("html", "web page")]
)
def test_a_storage_host_that_misbehaves_is_named_by_its_cause(
    hub: HubServer, storage: HubServer, wrong: str, failure: str
) -> None:
    storage.misbehave = wrong
    answer = examine(Question(model=NAME, select=CODES))
    assert [(r.what, r.host, r.failure) for r in answer.facts.hub.routes if r.what == "weights"] == [
        ("weights", host(storage.address), failure)
    ]


def test_the_storage_of_xet_is_asked_as_the_hub_names_it(hub: HubServer, storage: HubServer) -> None:
    hub.xet = dead_address()
    routes = examine(Question(model=NAME, select=CODES)).facts.hub.routes
    assert [(r.what, r.host, r.failure) for r in routes] == [
        ("weights", host(storage.address), ""),
        ("xet", host(hub.xet), "refused"),
    ]


def test_a_mirror_is_asked_for_the_way_to_xet_although_it_names_the_hub_itself(
    hub: HubServer, storage: HubServer
) -> None:
    hub.xet, hub.xet_home = storage.address, "https://huggingface.co"
    routes = examine(Question(model=NAME, select=CODES)).facts.hub.routes
    assert [(r.what, r.host, r.failure) for r in routes][1:] == [("xet", host(storage.address), "")]


def test_a_mirror_that_lists_files_and_lacks_them_is_found(hub: HubServer) -> None:
    hub.misbehave, hub.only = "missing", "/resolve/"
    assert "does not give them (http 404)" in found()["QD215"]


def test_a_mirror_without_the_api_is_found(hub: HubServer) -> None:
    hub.misbehave, hub.only = "missing", "/api/"
    assert "not as a Hub does (http 404)" in found()["QD202"]


def test_a_mirror_that_ignores_ranges_is_told_for_information(hub: HubServer, storage: HubServer) -> None:
    large = hub.root / NAME / "model.safetensors"
    header = large.read_bytes()
    large.write_bytes(header + bytes(100_000))
    storage.ranges = False
    answer = examine(Question(model=NAME, select=CODES))
    assert [(f.code, f.severity) for f in answer.verdict.findings] == [("QD218", "info")]
    assert answer.verdict.findings[0].evidence["host"] == host(storage.address)


def given(*routes: Route, packages: tuple[str, ...] = ("hf-xet",), to_download: int = 9, **environ: str) -> Any:
    hub = Hub(
        "https://mirror.example", "HF_ENDPOINT", True, repositories=(Repository(NAME, "ok", to_download=to_download),)
    )
    from dataclasses import replace

    return facts(
        {"huggingface-hub": "2.4.0", **dict.fromkeys(packages, "1.0")}, environ=environ, hub=replace(hub, routes=routes)
    )


OPEN = Route("weights", CDN)
SHUT = Route("weights", CDN, "timeout")
XET = Route("xet", CAS)
NO_XET = Route("xet", CAS, "timeout")


def test_where_only_xet_is_blocked_the_plain_way_is_the_fix() -> None:
    check = hub_routes.storage_that_is_blocked
    (one,) = findings(check, given(OPEN, NO_XET), load(NAME))
    assert one.fixes == (EnvVar("HF_HUB_DISABLE_XET", "1", applicability="safe"),)
    assert (one.severity, CAS in one.text) == ("error", True)
    assert_fixed_by(check, given(OPEN, NO_XET), load(NAME))


@pytest.mark.parametrize(
    ("here", "hosts"),
    [
        (given(SHUT, packages=()), [CDN]),
        (given(SHUT, NO_XET), [CDN, CAS]),
        (given(SHUT, XET, HF_HUB_DISABLE_XET="1"), [CDN]),
    ],
)
def test_where_the_plain_way_is_blocked_too_the_hosts_are_named(here: Any, hosts: list[str]) -> None:
    (one,) = findings(hub_routes.storage_that_is_blocked, here, load(NAME))
    assert one.evidence["hosts"] == hosts and one.severity == "error"


@pytest.mark.parametrize(
    "here",
    [
        given(OPEN, XET),
        given(OPEN, NO_XET, packages=()),
        given(OPEN, NO_XET, HF_HUB_DISABLE_XET="1"),
        given(SHUT, XET),
        given(SHUT, NO_XET, to_download=0),
        given(),
    ],
    ids=["all open", "no hf_xet", "xet is off", "xet works", "all in the cache", "nothing asked"],
)
def test_a_way_that_works_is_silent(here: Any) -> None:
    assert findings(hub_routes.storage_that_is_blocked, here, load(NAME)) == ()
