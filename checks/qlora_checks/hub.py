"""QD2: the Hub's address, whether it answers, and what is needed from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from qlora_checks.hub_reasons import SUGGESTED, Cause, cause_of
from qlora_doctor.errors import UnknownArgument
from qlora_doctor.facts import Facts, Hub
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


@check("QD202", needs=["hub"], since="0.1", requires=["QD201"], wants=["environ", "host", "packages"])
def unreachable_hub(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The Hub that the run would download from did not answer.

    One small request is made, with three seconds for everything. huggingface_hub itself tries again for a long time:
    with a dead mirror in `HF_ENDPOINT` a load takes more than a minute to fail, and its message does not name the mirror.

    The message says which it is: the name that does not resolve, nothing that listens, a connection that is cut, no answer in
    time, a certificate (of an authority that is not trusted here, out of date, not valid yet, of another host), the proxy (not
    there, asking for a password, refusing; in WSL 2 a proxy on 127.0.0.1 that runs in Windows), an error of the server, too
    many requests, a login page, redirects in a circle; and the host, where a redirect led to another one.

    An error where a model is needed that does not lie whole in the local cache; a warning where all of them do (they load,
    after the time-outs). It does not apply offline, and where no model comes from the Hub.

    Fix: where a mirror is configured and answers, that one; `HF_HUB_OFFLINE=1` where everything is cached; else what the message
    says of its cause. A mirror that nobody configured is named, never used.

    Source: the request itself; `file_download.py` and `_http.py` of huggingface_hub 2.4; `X509_V_ERR_*` of OpenSSL; Microsoft's
    pages on networking in WSL.
    """
    hub = facts.hub
    models = needed(facts, requests)
    if hub.reachable is not False or hub.offline or not models:
        return
    partly = {s.name for s in hub.snapshots if s.missing}
    missing = [m for m in models if m not in hub.cached or m in partly]
    cause = cause_of(facts, hub)
    evidence = {
        "endpoint": hub.endpoint,
        "reason": cause.reason,
        "failure": hub.failure,
        "detail": hub.detail,
        "seconds": hub.seconds,
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
    remedy, fixes = _remedy(hub, cause)
    yield Finding(
        "{endpoint}{where} cannot be used: {reason} ({failure}). {models} is not in the cache and cannot be downloaded. {remedy}.",
        {**evidence, "remedy": remedy},
        severity="error",
        fixes=fixes,
    )


def _remedy(hub: Hub, cause: Cause) -> tuple[str, tuple[Fix, ...]]:
    """What to do, as a sentence and as fixes: a configured mirror that answers comes first."""
    answers = next((m.endpoint for m in hub.mirrors if m.reachable), "")
    if answers:
        return f"The mirror {answers} is configured and answers: set HF_ENDPOINT to it", (
            EnvVar("HF_ENDPOINT", answers),
        )
    own = hub.source != "default"
    first = cause.remedy[0].upper() + cause.remedy[1:]
    if not cause.elsewhere:
        return first, (Advice(cause.remedy),)
    if own:
        return f"{first}; correct or unset HF_ENDPOINT", (
            Advice("unset HF_ENDPOINT, or set it to a mirror that answers", "unset HF_ENDPOINT"),
        )
    return f"{first}, or set HF_ENDPOINT to a mirror that you trust, such as {SUGGESTED}", (
        Advice("set HF_ENDPOINT to a mirror that you trust", f"export HF_ENDPOINT={SUGGESTED}"),
    )


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


def needed(facts: Facts, requests: Requests) -> list[str]:
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
    name = next((n for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if switched_on(facts.environ.get(n))), "")
    if not name:
        return
    hub = facts.hub
    elsewhere = any("cache_dir" in load.call.arguments for load in requests.loads)
    missing = [m for m in needed(facts, requests) if m not in hub.cached]
    if missing and not elsewhere:
        yield Finding(
            "{name} is set, and {models} is not in the cache: the load fails. Unset {name} for the first run, or download the"
            " model before.",
            {"name": name, "models": missing},
            severity="error",
            fixes=(EnvVar(name, None),),
        )


def switched_on(value: str | None) -> bool:
    return value is not None and value.upper() in ("1", "ON", "YES", "TRUE")


CHECKS: tuple[Check, ...] = (
    malformed_endpoint,
    unreachable_hub,
    offline_without_the_model,
    malformed_endpoint_in_the_script,
)
