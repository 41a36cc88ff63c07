"""Certificates that are not accepted, told apart: through urllib, and through huggingface_hub's own client."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.gather.hub import reach
from qlora_doctor.gather.hub_client import Ask, Client
from tests.certificates import Kind, certificate
from tests.hub_server import hub_server

BAD: list[tuple[Kind, str]] = [
    ("expired", "tls expired"),
    ("not yet valid", "tls not yet valid"),
    ("wrong host", "tls wrong host"),
]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def trust(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user would for huggingface_hub 1.0 and newer, and for 0.x."""
    monkeypatch.setenv("SSL_CERT_FILE", str(made))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(made))


def by_the_client(endpoint: str) -> str:
    """The failure as huggingface_hub's client meets it, with certificates as they are set right now."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import _http

    # Its name before huggingface_hub 1.0 was another.
    forget: Any = getattr(_http, "close_session", None) or vars(_http)["reset_sessions"]
    forget()
    try:
        return Client(get_session(), endpoint, {}, time.monotonic() + 5).one(Ask(endpoint + "/api/models")).failure
    finally:
        forget()


def test_an_authority_that_is_not_trusted_is_named_and_trusting_it_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = certificate(tmp_path / "tls")
    with hub_server(tmp_path / "hub", made) as server:
        environ = {"HF_ENDPOINT": server.address}
        assert reach(environ).failure == "tls unknown authority"
        assert by_the_client(server.address) == "tls unknown authority"
        trust(made, monkeypatch)
        assert reach(environ).reachable is True
        assert by_the_client(server.address) == ""


def test_a_bundle_for_requests_is_taken_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = certificate(tmp_path / "tls")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(made))
    with hub_server(tmp_path / "hub", made) as server:
        assert reach({"HF_ENDPOINT": server.address}).reachable is True


@pytest.mark.parametrize(("kind", "failure"), BAD)
def test_each_bad_certificate_has_its_own_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, failure: str
) -> None:
    made = certificate(tmp_path / "tls", kind)
    trust(made, monkeypatch)
    with hub_server(tmp_path / "hub", made) as server:
        assert reach({"HF_ENDPOINT": server.address}).failure == failure
        assert by_the_client(server.address) == failure
