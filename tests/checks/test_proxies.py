"""QD208 and QD210: proxies and switches that the installed huggingface_hub cannot use."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_checks import proxies
from qlora_doctor.facts import Facts
from qlora_doctor.fix import EnvVar, PipRequirement
from qlora_doctor.testing import assert_fixed_by, facts, findings, load, outcome

MODEL = load("Qwen/Qwen3-0.6B")
SOCKS = proxies.socks_proxy_without_support
SWITCH = proxies.transfer_switch_without_effect
HTTP = "http://127.0.0.1:7890"
CLASH = "socks5://127.0.0.1:7891"


def here(version: str = "2.4.0", also: tuple[str, ...] = (), **environ: str) -> Facts:
    return facts({"huggingface-hub": version, **dict.fromkeys(also, "1.0")}, environ=environ)


@pytest.mark.parametrize(
    "environ", [{"all_proxy": CLASH}, {"ALL_PROXY": "socks5h://h:1", "https_proxy": HTTP}, {"https_proxy": CLASH}, {"http_proxy": CLASH}]
)  # fmt: skip
def test_a_socks_proxy_without_socksio_stops_a_new_client_whatever_else_is_set(environ: dict[str, Any]) -> None:
    (one,) = findings(SOCKS, here(**environ), MODEL)
    assert (one.severity, one.fixes) == ("error", (PipRequirement("socksio", applicability="safe"),))
    assert_fixed_by(SOCKS, here(**environ), MODEL)


@pytest.mark.parametrize("environ", [{"all_proxy": CLASH}, {"https_proxy": "socks4://h:1"}])
def test_an_old_client_needs_pysocks(environ: dict[str, Any]) -> None:
    (one,) = findings(SOCKS, here("0.36.0", **environ), MODEL)
    assert one.fixes == (PipRequirement("PySocks", applicability="safe"),)
    assert findings(SOCKS, here("0.36.0", ("pysocks",), **environ), MODEL) == ()


def test_an_old_client_prefers_the_http_proxy() -> None:
    assert findings(SOCKS, here("0.36.0", all_proxy=CLASH, https_proxy=HTTP), MODEL) == ()


@pytest.mark.parametrize("version", ["0.36.0", "2.4.0"])
def test_a_scheme_that_no_client_knows_is_corrected(version: str) -> None:
    given = here(version, ("socksio", "pysocks"), all_proxy="socks://127.0.0.1:7891/")
    (one,) = findings(SOCKS, given, MODEL)
    assert one.fixes == (EnvVar("all_proxy", "socks5://127.0.0.1:7891/"),)
    assert_fixed_by(SOCKS, given, MODEL)


def test_a_value_whose_password_is_hidden_is_not_written_back() -> None:
    (one,) = findings(SOCKS, here(all_proxy="socks://<redacted>@h:1"), MODEL)
    assert one.fixes == ()


@pytest.mark.parametrize(
    "given",
    [
        here(all_proxy=HTTP),
        here(also=("socksio",), all_proxy=CLASH),
        here(all_proxy=CLASH, no_proxy="*"),
        here(all_proxy=CLASH, HF_HUB_OFFLINE="1"),
        here(all_proxy="", ALL_PROXY=CLASH),
        here(),
        facts({}, environ={"all_proxy": CLASH}),
    ],
    ids=["http", "socksio", "no proxy for anything", "offline", "unset by the small one", "none", "no hub"],
)
def test_what_works_is_silent(given: Facts) -> None:
    assert findings(SOCKS, given, MODEL) == ()


def test_without_a_model_of_the_hub_it_only_warns() -> None:
    assert [f.severity for f in findings(SOCKS, here(all_proxy=CLASH), load("./model"))] == ["warning"]


@pytest.mark.parametrize(
    ("given", "severity"),
    [
        (here("2.4.0", HF_HUB_ENABLE_HF_TRANSFER="1"), "info"),
        (here("0.36.0", HF_HUB_ENABLE_HF_TRANSFER="true"), "error"),
    ],
)
def test_the_old_switch_is_dropped_or_fatal(given: Facts, severity: str) -> None:
    assert [f.severity for f in findings(SWITCH, given, MODEL)] == [severity]
    assert_fixed_by(SWITCH, given, MODEL)


@pytest.mark.parametrize(
    "given",
    [
        here("0.36.0", ("hf-transfer",), HF_HUB_ENABLE_HF_TRANSFER="1"),
        here("0.36.0", HF_HUB_ENABLE_HF_TRANSFER="0"),
        here("2.4.0", HF_HUB_ENABLE_HF_TRANSFER="1", HF_XET_HIGH_PERFORMANCE="1"),
        here("2.4.0"),
    ],
)
def test_a_switch_that_works_or_is_off_is_silent(given: Facts) -> None:
    assert findings(SWITCH, given, MODEL) == ()


@pytest.mark.parametrize("check", proxies.CHECKS, ids=lambda c: c.code)
def test_what_could_not_be_read_is_unknown(check: Any) -> None:
    assert outcome(check, Facts(), MODEL) in ("unknown", "skipped")
