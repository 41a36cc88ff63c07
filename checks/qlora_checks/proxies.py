"""QD2: proxies that the installed huggingface_hub cannot use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qlora_checks.common import at_least
from qlora_checks.hub import hub_models, switched_on
from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding
from qlora_doctor.fix import EnvVar, Fix, PipRequirement
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests

_SOCKS = ("socks5", "socks5h")
_OF_REQUESTS = (*_SOCKS, "socks4", "socks4a")


@check("QD208", needs=["environ", "packages"], since="0.2")
def socks_proxy_without_support(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """A SOCKS proxy is set that the installed huggingface_hub cannot use.

    Clash and similar programs set `all_proxy=socks5://127.0.0.1:7891`, some desktops `socks://`. huggingface_hub 1.0 and newer
    (on httpx) makes a transport for every proxy variable when it makes its client: without the package socksio each call ends in
    an ImportError, even where `https_proxy` names an HTTP proxy; with `socks://` or `socks4://` in a ValueError about the scheme.
    huggingface_hub 0.x (on requests) uses `all_proxy` only where `https_proxy` is not set, and needs PySocks.

    An error where the run loads a model from the Hub, else a warning. It does not apply with `HF_HUB_OFFLINE=1`, with
    `NO_PROXY=*`, and where huggingface_hub is not installed.

    Fix: install the small package; or `socks5://` in place of the scheme that is not known.

    Source: `_transports/default.py` and `get_environment_proxies` of httpx2 2.16, tried with huggingface_hub 2.4;
    `select_proxy` of requests 2.34.
    """
    environ = facts.environ
    version = facts.version("huggingface-hub")
    if version is None or any(switched_on(environ.get(n)) for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        return
    if "*" in [w.strip() for w in (_variable(environ, "no_proxy")[1]).split(",")]:
        return
    new = at_least(version, "1.0")
    package, module = ("socksio", "socksio") if new else ("PySocks", "pysocks")
    for name, value in _used(environ, new):
        scheme = value.partition("://")[0].lower()
        if not scheme.startswith("socks"):
            continue
        unknown_scheme = scheme not in (_SOCKS if new else _OF_REQUESTS)
        if not unknown_scheme and facts.packages.find(module) is not None:
            continue
        severity = "error" if hub_models(requests) else "warning"
        if unknown_scheme:
            better = "socks5://" + value.partition("://")[2]
            fixes: tuple[Fix, ...] = () if "redacted" in value else (EnvVar(name, better),)
            yield Finding(
                "{name}={value}: huggingface_hub {version} knows no proxy of the kind {scheme}, and fails at its first call. Set "
                "{name} to {better}, or unset it.",
                {"name": name, "value": value, "version": str(version), "scheme": scheme, "better": better},
                severity=severity,  # type: ignore[arg-type]
                fixes=fixes,
            )
            return
        yield Finding(
            "{name}={value} is a SOCKS proxy, and huggingface_hub {version} needs {package} for it: it fails at its first call. "
            "Install {package}, or unset {name} where an HTTP proxy is set too.",
            {"name": name, "value": value, "version": str(version), "package": package},
            severity=severity,  # type: ignore[arg-type]
            fixes=(PipRequirement(package, applicability="safe"),),
        )
        return


def _used(environ: Mapping[str, str], new: bool) -> list[tuple[str, str]]:
    """The proxy variables that the client reads: each of three with httpx, the first that is set with requests."""
    found = [_variable(environ, name) for name in ("https_proxy", "http_proxy", "all_proxy")]
    if new:
        return [f for f in found if f[1]]
    return [f for f in (found[0], found[2]) if f[1]][:1]


def _variable(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    """The variable as it is spelled here, and its value: the small one counts before the capital one."""
    for spelled in (name, name.upper()):
        if spelled in environ:
            return spelled, environ[spelled].strip()
    return name, ""


@check("QD210", needs=["environ", "packages"], since="0.2")
def transfer_switch_without_effect(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """HF_HUB_ENABLE_HF_TRANSFER is set, and hf_transfer is not installed or not used any more.

    With huggingface_hub 0.x the switch without the package ends every download of a plain file in a ValueError. From 1.0
    on it does nothing but print a warning: hf_transfer was dropped, and Xet transfers have `HF_XET_HIGH_PERFORMANCE`.

    An error where a model is loaded from the Hub with huggingface_hub 0.x, a warning where none is; with 1.0 and newer it
    is for information only. It does not apply where huggingface_hub is not installed.

    Fix: unset it.

    Source: `constants.py` of huggingface_hub 2.4; `http_get` of huggingface_hub 0.36.
    """
    value = facts.environ.get("HF_HUB_ENABLE_HF_TRANSFER")
    version = facts.version("huggingface-hub")
    if not switched_on(value) or version is None:
        return
    fix = EnvVar("HF_HUB_ENABLE_HF_TRANSFER", None, applicability="safe")
    if at_least(version, "1.0"):
        if switched_on(facts.environ.get("HF_XET_HIGH_PERFORMANCE")):
            return
        yield Finding(
            "HF_HUB_ENABLE_HF_TRANSFER does nothing with huggingface_hub {version}, which dropped hf_transfer. Unset it; "
            "HF_XET_HIGH_PERFORMANCE=1 is what speeds up downloads now.",
            {"version": str(version)},
            severity="info",
            fixes=(fix,),
        )
    elif facts.packages.find("hf-transfer") is None:
        yield Finding(
            "HF_HUB_ENABLE_HF_TRANSFER is set, and hf_transfer is not installed: downloads end in a ValueError. Unset it, or "
            "install hf_transfer.",
            {"version": str(version)},
            severity="error" if hub_models(requests) else "warning",
            fixes=(fix,),
        )


CHECKS: tuple[Check, ...] = (socks_proxy_without_support, transfer_switch_without_effect)
