"""Why the Hub could not be reached, and what a person does about each: the words of QD202."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from qlora_doctor.facts import Facts, Host, Hub, Packages, Unknown

# Only ever named in advice; whoever wants it says so.
SUGGESTED = "https://hf-mirror.com"
_TRUST = {True: "SSL_CERT_FILE", False: "REQUESTS_CA_BUNDLE"}


@dataclass(frozen=True, slots=True)
class Cause:
    """What it is, what to do, and whether another endpoint helps (`elsewhere`) or the trouble is nearer than that."""

    reason: str
    remedy: str
    elsewhere: bool = True


_CAUSES: Mapping[str, Cause] = {
    "dns": Cause("its name cannot be resolved", "check the network and its DNS"),
    "refused": Cause("nothing listens there", "check the address and the network"),
    "reset": Cause("the connection was cut, as a firewall does", "check the network"),
    "cut short": Cause("its answer broke off in the middle", "try again, and check the network"),
    "timeout": Cause("it gave no answer in time, as behind a firewall or on a slow line", "check the network"),
    "tls": Cause("its TLS was not accepted", "check the address; a proxy or firewall may answer in its place"),
    "tls unknown authority": Cause(
        "its certificate is signed by an authority that is not trusted here, as in networks that inspect traffic",
        "set {variable} to the file with the certificate of your network's authority",
        elsewhere=False,
    ),
    "tls expired": Cause(
        "its certificate has expired, or the clock of this machine is ahead", "check the date (`date`)", elsewhere=False
    ),
    "tls not yet valid": Cause(
        "its certificate is not valid yet, which means that the clock of this machine is behind",
        "set the clock (`date`)",
        elsewhere=False,
    ),
    "tls wrong host": Cause(
        "its certificate is for another name, so something else answers in its place",
        "check the address, the DNS, and whether the network has a login page",
    ),
    "proxy": Cause("the proxy{proxy} did not let the request through", "check the proxy and its rules", False),
    "proxy refused": Cause(
        "nothing listens at the proxy{proxy}", "start it, correct its variable, or unset it", elsewhere=False
    ),
    "proxy password": Cause(
        "the proxy{proxy} asks for a user name and password",
        "put them into its variable, as http://USER:PASSWORD@HOST:PORT",
        elsewhere=False,
    ),
    "http 429": Cause("it has had too many requests from here", "{wait}; logging in raises the limit", elsewhere=False),
    "http 4": Cause("it answered with an error, and not as a Hub does", "check that the address is one of a Hub"),
    "http 5": Cause("it has trouble of its own", "try again later"),
    "not json": Cause(
        "it answered with a page instead of data: a login page of the network, or a wrong address",
        "open it in a browser and log in to the network, or correct the address",
    ),
    "redirect loop": Cause(
        "it redirects in a circle", "check the address; a login page of the network may be in between"
    ),
}
_OTHER = Cause("it did not answer as a Hub does", "check the address and the network")


def cause_of(facts: Facts, hub: Hub) -> Cause:
    """The cause with its words filled in, for this machine."""
    word = hub.failure
    found = _CAUSES.get(word) or _CAUSES.get(word[:6]) or _CAUSES.get(word.partition(" ")[0]) or _OTHER
    name, value = proxy_of(facts, hub.endpoint)
    remedy = found.remedy
    if word == "proxy refused" and _wsl_loopback(facts, value):
        remedy = (
            "in WSL 2, 127.0.0.1 is not Windows: set networkingMode=mirrored under [wsl2] in .wslconfig, or name the "
            "address that `ip route show default` gives and let the proxy accept connections from the LAN"
        )
    return Cause(
        found.reason.replace("{proxy}", f" {value} (from {name})" if name else "")
        + (f" (at {hub.redirected}, where it redirects to)" if hub.redirected else ""),
        remedy.replace("{variable}", _bundle(facts)).replace("{wait}", _wait(hub)),
        found.elsewhere,
    )


def proxy_of(facts: Facts, url: str) -> tuple[str, str]:
    """The variable and the value of the proxy for `url`, as the facts show them; "" where none is set."""
    given = facts.state("environ")
    environ: Mapping[str, str] = {} if isinstance(given, Unknown) else given
    for name in (f"{url.partition(':')[0]}_proxy", "all_proxy"):
        for spelled in (name, name.upper()):
            if environ.get(spelled):
                return spelled, environ[spelled]
    return "", ""


def _wsl_loopback(facts: Facts, proxy: str) -> bool:
    host: Host | Unknown = facts.state("host")
    return (
        isinstance(host, Host)
        and host.wsl == 2
        and bool(re.search(r"(//|\A|@)(127\.\d+\.\d+\.\d+|localhost)(:|/|\Z)", proxy))
    )


def _bundle(facts: Facts) -> str:
    """The variable that names trusted certificates for the huggingface_hub that is installed."""
    packages = facts.state("packages")
    found = packages.find("huggingface-hub") if isinstance(packages, Packages) else None
    major = found.version.partition(".")[0] if found else ""
    return _TRUST[int(major) >= 1] if major.isdigit() else "SSL_CERT_FILE (REQUESTS_CA_BUNDLE with huggingface_hub 0.x)"


def _wait(hub: Hub) -> str:
    return "wait a while" if hub.retry_after is None else f"wait {hub.retry_after} seconds"
