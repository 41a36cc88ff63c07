"""QD2: the Hub and the network, first cut."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from qlora_doctor.errors import UnknownArgument
from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, EnvVar, Fix
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests

# Addresses of proxies that serve the Hub under a path of their own (Artifactory, Nexus).
_PATH_IS_MEANT = re.compile(r"/(api/huggingfaceml|artifactory|repository|nexus|proxy)(/|\Z)", re.IGNORECASE)


@check("QD201", needs=["environ"], since="0.1")
def malformed_endpoint(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """HF_ENDPOINT is not the address of a Hub.

    huggingface_hub puts `HF_ENDPOINT` before every path as it stands, and takes only slashes off its end. Without
    `https://`, with quotes or spaces from a shell line, or with the path of a page, every download fails with a
    message about an unsupported protocol, or with 404.

    An error where the run loads a model from the Hub, else a warning. A path is a warning: a proxy of your own may
    serve the Hub under one, and the well-known ones are left alone.

    Fix: the address in its proper form.

    Source: `constants.py` of huggingface_hub 2.4.
    """
    value = facts.environ.get("HF_ENDPOINT")
    if value is None or value == "":
        return
    better, problem = corrected(value)
    if not problem:
        return
    fatal = not problem.startswith("it has a path")
    fixes: tuple[Fix, ...] = (EnvVar("HF_ENDPOINT", better),) if better else (EnvVar("HF_ENDPOINT", None),)
    yield Finding(
        "HF_ENDPOINT={value} is not the address of a Hub: {problem}. Set it to {better}.",
        {"value": value, "problem": problem, "better": better or "an address such as https://HOST, or unset it"},
        severity="error" if fatal and hub_models(requests) else "warning",
        fixes=fixes,
    )


def corrected(value: str) -> tuple[str, str]:
    """The endpoint as it was probably meant ("" where nobody can tell), and what is wrong ("" for nothing)."""
    text = value.strip().strip("'\"").strip()
    problem = "" if text == value else "it has spaces or quotes around it"
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        text, problem = f"https://{text.lstrip('/')}", "it does not begin with https://"
    try:
        parts = urlsplit(text)
        host = parts.hostname
    except ValueError:
        return "", "it cannot be read as an address"
    if parts.scheme not in ("http", "https") or not host or re.search(r"\s", text):
        return "", problem or "it is no http or https address"
    root = f"{parts.scheme}://{parts.netloc}"
    if parts.query or parts.fragment:
        return root, problem or "it has a query"
    path = parts.path.rstrip("/")
    if path and not _PATH_IS_MEANT.search(path):
        return root, problem or f"it has a path ({path}), which comes before every file's own"
    return root + path, problem


@check("QD204", needs=["script"], since="0.1")
def malformed_endpoint_in_the_script(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The script sets HF_ENDPOINT to something that is not the address of a Hub.

    See `explain QD201` for what huggingface_hub makes of such a value. Whether the assignment comes early enough to
    have an effect at all is another check's business.

    An error where the run loads a model from the Hub, else a warning; a path is a warning.

    Fix: the address in its proper form.

    Source: `constants.py` of huggingface_hub 2.4.
    """
    for write in facts.script.environ:
        if write.name != "HF_ENDPOINT" or not isinstance(write.value, str) or not write.value:
            continue
        better, problem = corrected(write.value)
        if problem:
            fatal = not problem.startswith("it has a path")
            yield Finding(
                "the script sets HF_ENDPOINT to {value}, which is not the address of a Hub: {problem}. Write {better}.",
                {"value": write.value, "problem": problem, "better": better or "an address such as https://HOST"},
                severity="error" if fatal and hub_models(requests) else "warning",
                site=write.site,
                fixes=(Advice(f"write {better}" if better else "write an address such as https://HOST"),),
            )


@check("QD202", needs=["hub"], since="0.1", requires=["QD201"])
def unreachable_hub(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The Hub that the run would download from did not answer.

    One small request is made, with three seconds for everything and without a token. huggingface_hub itself tries
    again for a long time: with a dead mirror in `HF_ENDPOINT` a load takes more than a minute to fail, and its message
    does not name the mirror.

    An error where a model is needed that does not lie in the local cache; a warning where all of them do (they load,
    after the time-outs). It does not apply offline, and where no model comes from the Hub.

    Fix: another endpoint, or none; the proxy; or `HF_HUB_OFFLINE=1` where everything is cached.

    Source: the request itself; `file_download.py` of huggingface_hub 2.4.
    """
    hub = facts.hub
    models = _needed(facts, requests)
    if hub.reachable is not False or hub.offline or not models:
        return
    missing = [m for m in models if m not in hub.cached]
    evidence = {
        "endpoint": hub.endpoint,
        "reason": _REASONS.get(hub.failure.partition(" ")[0], "it did not answer as a Hub does"),
        "failure": hub.failure,
        "detail": hub.detail,
        "models": missing or models,
        "source": hub.source,
        "where": " (from HF_ENDPOINT)" if hub.source != "default" else "",
    }
    if not missing:
        yield Finding(
            "{endpoint}{where} cannot be used: {reason} ({failure}). {models} lies in the cache and loads after the time-outs;"
            " set HF_HUB_OFFLINE=1 to spare them.",
            evidence,
            severity="warning",
            fixes=(EnvVar("HF_HUB_OFFLINE", "1"),),
        )
        return
    own = hub.source != "default"
    yield Finding(
        "{endpoint}{where} cannot be used: {reason} ({failure}). {models} is not in the cache and cannot be downloaded. {remedy}.",
        {
            **evidence,
            "remedy": "Correct or unset HF_ENDPOINT"
            if own
            else "Check the network or proxy, or set HF_ENDPOINT to a mirror",
        },
        severity="error",
        fixes=(Advice("unset HF_ENDPOINT, or set it to a mirror that answers", "unset HF_ENDPOINT"),)
        if own
        else (Advice("check the network and the proxy, or set HF_ENDPOINT to a mirror"),),
    )


_REASONS = {
    "dns": "its name cannot be resolved",
    "refused": "nothing listens there",
    "reset": "the connection was cut",
    "timeout": "it gave no answer in time",
    "tls": "its certificate or TLS setup was not accepted",
    "proxy": "the proxy did not let the request through",
    "http": "it answered with an error",
    "not": "it answered with something else than the Hub's data (a login page or a wrong address)",
}


def hub_models(requests: Requests) -> list[str]:
    """The models that a run loads from the Hub, by id; paths and what cannot be resolved are left out."""
    found = []
    for load in requests.loads:
        try:
            name = load.model
        except UnknownArgument:
            continue
        if re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name) and name not in found:
            found.append(name)
    return found


def _needed(facts: Facts, requests: Requests) -> list[str]:
    """The models that come from the Hub: no folders, as far as the machine was asked; else no bare names."""
    names = hub_models(requests)
    return [m for m in names if (m in facts.hub.asked if facts.hub.asked else "/" in m)]


@check("QD203", needs=["environ", "hub"], since="0.1")
def offline_without_the_model(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, and a model that is loaded does not lie in the cache.

    Offline, huggingface_hub opens no connection: what is not in the cache cannot be loaded, whatever the network.

    It does not apply where the id is a folder, nor where `cache_dir` names another cache.

    Fix: download the model first, or unset the variable.

    Source: `constants.py` of huggingface_hub 2.4.
    """
    name = next((n for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if _true(facts.environ.get(n))), "")
    if not name:
        return
    hub = facts.hub
    elsewhere = any("cache_dir" in load.call.arguments for load in requests.loads)
    missing = [m for m in _needed(facts, requests) if m not in hub.cached]
    if missing and not elsewhere:
        yield Finding(
            "{name} is set, and {models} is not in the cache: the load fails. Unset {name} for the first run, or download the"
            " model before.",
            {"name": name, "models": missing},
            severity="error",
            fixes=(EnvVar(name, None),),
        )


def _true(value: str | None) -> bool:
    return value is not None and value.upper() in ("1", "ON", "YES", "TRUE")


CHECKS: tuple[Check, ...] = (
    malformed_endpoint,
    unreachable_hub,
    offline_without_the_model,
    malformed_endpoint_in_the_script,
)
