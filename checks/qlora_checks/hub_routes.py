"""QD2: what a download needs beside the Hub's API: the files, and the storage that holds the large ones."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.hub import hub_models, switched_on
from qlora_doctor.facts import Facts, Hub, Route
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, EnvVar
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests

# The host was reached, and said something else than the file.
_ANSWERED = ("http ", "web page", "lfs pointer", "cut short", "redirect loop", "too large")
_LATER = ("http 429", "http 5", "cut short", "timeout", "reset")


@check(
    "QD207", needs=["hub", "packages", "environ"], since="0.2", requires=["QD201", "QD202", "QD205"], wants=["model"]
)
def storage_that_is_blocked(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The Hub answers, and the host that holds the large files does not.

    Weights do not come from the Hub itself. It redirects to a storage host (cas-bridge.xethub.hf.co, cdn-lfs.hf.co), and where
    hf_xet is installed huggingface_hub asks cas-server.xethub.hf.co instead, which it learns from the Hub. A mirror passes these
    names on, so a network that blocks them lets the small files through and no weights; with hf_xet the bar stays at 0 %.

    The first bytes of one weight file were asked for, and the storage was connected to; no token is sent there. It does not apply
    where all weights lie in the cache.

    Fix: where only the storage of hf_xet is blocked, `HF_HUB_DISABLE_XET=1`; else let the hosts through, or another mirror.

    Source: the requests themselves; `file_download.py` and `utils/_xet.py` of huggingface_hub 2.4; issues 4475 of
    huggingface_hub, 470 of xet-core and 50 of hf-mirror-site.
    """
    hub = facts.hub
    if not _downloads(hub, requests):
        return
    home = _host(hub.endpoint)
    plain = next((r for r in hub.routes if r.what == "weights"), None)
    blocked = plain if plain is not None and plain.failure and plain.host != home else None
    xet = next((r for r in hub.routes if r.what == "xet"), None)
    takes_xet = (
        xet is not None
        and facts.packages.find("hf-xet") is not None
        and not switched_on(facts.environ.get("HF_HUB_DISABLE_XET"))
    )
    if takes_xet and xet is not None:
        if not xet.failure:
            return
        if plain is not None and not plain.failure:
            yield Finding(
                "{endpoint} answers, but hf_xet takes the weights from {host}, which cannot be used ({failure}). The plain way "
                "works: set HF_HUB_DISABLE_XET=1.",
                _evidence(hub, xet),
                severity="error",
                fixes=(EnvVar("HF_HUB_DISABLE_XET", "1", applicability="safe"),),
            )
            return
    if blocked is None:
        return
    hosts = [blocked.host] + ([xet.host] if xet is not None and xet.failure and takes_xet else [])
    answered = blocked.failure.startswith(_ANSWERED)
    yield Finding(
        "{endpoint} answers, but the weights lie on {hosts}, which does not give them ({failure}): try again later, or take a "
        "mirror that serves the files itself."
        if answered
        else "{endpoint} answers, but the weights lie on {hosts}, which cannot be used from here ({failure}): a firewall may block "
        "it. Let {hosts} through, go through a proxy that does, or take a mirror that serves the files itself.",
        {**_evidence(hub, blocked), "hosts": list(dict.fromkeys(hosts))},
        severity="error",
        fixes=(
            Advice("try again later, or take a mirror that serves the files itself")
            if answered
            else Advice("let the storage host through, or take a mirror that serves the files itself"),
        ),
    )


@check("QD215", needs=["hub"], since="0.2", requires=["QD201", "QD202", "QD205"], wants=["model"])
def endpoint_that_lacks_files(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The endpoint answers for the repository, and does not give its files.

    A mirror may know the list of files and not hold them, or answer with an error or a page for each.

    It does not apply where all weights lie in the cache. The storage that a redirect leads to is another check's business
    (QD207).

    Fix: another mirror, or the Hub itself.

    Source: the answers to requests for the configuration and for the first bytes of one weight file.
    """
    hub = facts.hub
    if not _downloads(hub, requests):
        return
    home = _host(hub.endpoint)
    for route in hub.routes:
        if route.what in ("file", "weights") and route.failure and route.host == home:
            yield Finding(
                "{endpoint} lists the files of the model and does not give them ({failure}): try again later, or take another "
                "endpoint."
                if hub.source == "default" or route.failure.startswith(_LATER)
                else "{endpoint} lists the files of the model and does not give them ({failure}): take another mirror, or unset "
                "HF_ENDPOINT.",
                _evidence(hub, route),
                severity="error",
                fixes=(Advice("take another endpoint, or try again later"),),
            )
            return


@check("QD218", needs=["hub"], since="0.2", requires=["QD201", "QD202", "QD205", "QD207", "QD215"], wants=["model"])
def endpoint_without_ranges(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The endpoint, or the storage behind it, ignores the range of a request and sends every file from its beginning.

    A download that breaks off then starts again from zero, where it would go on with another endpoint.

    For information. It does not apply where all weights lie in the cache.

    Fix: another endpoint, or patience.

    Source: the answer to a request for the first bytes of one weight file.
    """
    hub = facts.hub
    for route in hub.routes:
        if route.what == "range" and _downloads(hub, requests):
            yield Finding(
                "{host} ignores the range of a request, so a download that breaks off starts again from its beginning: let it "
                "run through, or take another endpoint.",
                _evidence(hub, route),
                severity="info",
                fixes=(Advice("take another endpoint"),),
            )


def _downloads(hub: Hub, requests: Requests) -> bool:
    wanted = hub_models(requests)
    return any(r.name in wanted and r.to_download for r in hub.repositories)


def _host(endpoint: str) -> str:
    return endpoint.partition("://")[2].partition("/")[0].rpartition("@")[2].lower()


def _evidence(hub: Hub, route: Route) -> dict[str, object]:
    return {"endpoint": hub.endpoint, "host": route.host, "failure": route.failure, "detail": route.detail}


CHECKS: tuple[Check, ...] = (
    storage_that_is_blocked,
    endpoint_that_lacks_files,
    endpoint_without_ranges,
)
