"""QD2: the repositories that a run needs: whether they may be read, and whether there is room for them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from qlora_checks.hub import hub_models
from qlora_doctor.errors import UnknownFact
from qlora_doctor.facts import Facts, Repository, known
from qlora_doctor.families import KNOWN
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, EnvVar
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests

GIB = 2**30
_TEXTS = {
    "gated": "{model} is gated, and nobody is logged in: accept its terms on {page}, then run `hf auth login`",
    "gated, withheld": "{model} is gated. {endpoint} was asked without your token, which this check sends to the Hub alone; "
    "huggingface_hub will send it there: make sure that its account has accepted the terms",
    "not granted": "{model} may not be read with the token that is set here: accept its terms on {page} with the account of this "
    "token; a fine-grained token also needs the right to read public gated repositories",
    "fine-grained": "{model} is gated, and the token that is set here is a fine-grained one without the right to read public gated "
    "repositories: tick that right in the settings of the token, or take a token of the kind `read`",
    "pending": "{model} is gated, and the owners have not yet answered the request for access of this account: wait for them",
    "rejected": "{model} is gated, and the owners have refused the request for access of this account: take another model",
    "disabled": "{model} was disabled on {endpoint}; nobody can download it: take another model",
    "not found": "{endpoint} has no repository {model}, or it is private and nobody is logged in (without a token the Hub answers "
    "both in the same way): check the name{near}, or run `hf auth login`",
    "not found, token": "{endpoint} has no repository {model}, or it is private and this token may not read it: check the name{near}",
    "not found, withheld": "{endpoint} shows no repository {model} without a token, and yours was not sent there: check the name{near}",
    "bad token": "{endpoint} does not accept the token that is set here{anyway}: run `hf auth login` again, or unset HF_TOKEN",
    "expired token": "the token that is set here has expired{anyway}: make a new one and run `hf auth login`, or unset HF_TOKEN",
}
_WAYS = {
    "gated": ("accept the terms and log in", "hf auth login"),
    "not granted": ("ask for access with the account of this token", ""),
    "fine-grained": ("give the token the right to read public gated repositories", ""),
    "pending": ("wait for the owners", ""),
    "rejected": ("take another model", ""),
    "disabled": ("take another model", ""),
    "not found": ("correct the name", ""),
    "bad token": ("log in again", "hf auth login"),
    "expired token": ("log in with a new token", "hf auth login"),
}


@check("QD205", needs=["hub"], since="0.1", requires=["QD201", "QD202"], wants=["model"])
def repository_that_cannot_be_read(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """A model that the run loads is gated, private, not there, or the token is not accepted.

    The Hub was asked for the repository and for its configuration, as the load will ask. 401, 403 and 404 mean different
    things with and without a token, and the message says which it is, and where two things look the same: without a token a
    private repository and none at all. A token can be unknown, expired, or a fine-grained one without the right to gated
    repositories; a request for access can be open or refused. For a name that is not there, ids that are nearly the same are
    looked for on the Hub. Another endpoint than the Hub is asked without the token.

    A warning where the model lies in the local cache already (it loads from there), and where a token exists that was not sent;
    else an error. Unknown where the Hub gave no usable answer for the repository (too many requests, an error of the server, no
    answer in time).

    Fix: accept the terms and log in; correct the name; take a token with the right.

    Source: the answers of the Hub, which huggingface_hub tells apart in the same way (`hf_raise_for_status`).
    """
    wanted = hub_models(requests)
    for repository in facts.hub.repositories:
        if repository.name not in wanted or repository.status == "ok":
            continue
        if repository.status == "unanswered":
            raise UnknownFact(f"repository {repository.name}", repository.detail or "no usable answer")
        how = "token" if repository.token else "withheld" if repository.withheld else "nobody"
        unsure = repository.withheld and repository.status in ("gated", "not found")
        yield Finding(
            _TEXTS.get(f"{repository.status}, {how}", _TEXTS[repository.status]),
            {
                "model": repository.name,
                "endpoint": facts.hub.endpoint,
                "page": f"{facts.hub.endpoint}/{repository.name}",
                "near": _near(repository),
                "anyway": _ANYWAY[repository.public],
                "detail": repository.detail,
            },
            severity="warning" if unsure or repository.name in facts.hub.cached else "error",
            fixes=(Advice(*_WAYS[repository.status]),),
        )


# Whether the repository can be read without the token that the Hub does not accept.
_ANYWAY: Mapping[bool | None, str] = {
    True: ", so that the download fails although everybody may read this model",
    False: ", so that every download fails",
    None: ", so that every download fails, also of public models",
}


def _near(repository: Repository) -> str:
    """Repositories whose name is nearly the same, for the middle of the message: those that the Hub lists, else known ones."""
    import difflib

    names = {k: m.name for k, m in KNOWN.items()} | {m.instead.lower(): m.instead for m in KNOWN.values() if m.instead}
    known = difflib.get_close_matches(repository.name.lower(), list(names), 1, 0.8)
    near = [*repository.near, *(names[k] for k in known)][:2]
    return f" (did you mean {' or '.join(dict.fromkeys(near))}?)" if near else ""


@check("QD206", needs=["hub", "disks"], since="0.1", requires=["QD201", "QD202", "QD205"], wants=["model"])
def no_room_for_the_download(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The weights that are still to be downloaded are larger than what the disk of the Hub cache has free.

    The sizes are those that the Hub states for the files that the load takes, without what the cache holds already. A download
    that fills the disk ends after the hours that it took.

    Fix: free room, or set HF_HOME to a folder on a larger disk.
    """
    wanted = hub_models(requests)
    needed = sum(r.to_download or 0 for r in facts.hub.repositories if r.name in wanted)
    if not needed:
        return
    disk = next((d for d in facts.disks if d.purpose == "hf-cache"), None)
    if disk is None:
        raise UnknownFact("disks", "the disk of the Hub cache was not read")
    free = known(disk.free, f"free space of {disk.path}")
    if free < needed:
        yield Finding(
            "The download takes {needed} GiB, and {path} has {free} GiB free: free some room, or set HF_HOME to a folder on a "
            "larger disk",
            {"needed": f"{needed / GIB:.1f}", "free": f"{free / GIB:.1f}", "path": disk.path},
            severity="error",
            fixes=(Advice("set HF_HOME to a folder on a larger disk"),),
        )


@check("QD216", needs=["hub"], since="0.2", requires=["QD201", "QD202"], wants=["model"])
def repository_under_another_name(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """A model is loaded by a name that the Hub knows under another one: it was renamed, or the case differs.

    The Hub redirects, so the load works while the network does. The cache keeps the files under the name that is asked for:
    a second script with the right name downloads them again, and offline only the name that was used before is found.

    For information.

    Fix: write the name that the Hub gives.

    Source: the `id` in the Hub's answer; the folders of the cache are named after the id that is asked for.
    """
    wanted = hub_models(requests)
    for repository in facts.hub.repositories:
        if repository.name not in wanted or not repository.canonical:
            continue
        case = repository.canonical.lower() == repository.name.lower()
        yield Finding(
            "{model} is written {canonical} on the Hub: it works, but the cache takes it for another model. Write {canonical}."
            if case
            else "{model} has been renamed to {canonical}: the Hub redirects for now, and the cache takes it for another model. "
            "Write {canonical}.",
            {"model": repository.name, "canonical": repository.canonical},
            severity="info",
            fixes=(Advice(f"write {repository.canonical}"),),
        )


@check("QD217", needs=["hub"], since="0.2", requires=["QD201"], wants=["model"])
def token_over_plain_http(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """HF_ENDPOINT is a plain http address of another machine, and a token is set here.

    huggingface_hub sends the token with every request to the endpoint. Over http everybody on the way can read it, and it opens
    the private repositories of its account.

    It does not apply to this machine itself (127.0.0.1, localhost), without a token, and where nothing was asked. This check
    itself sends the token to the Hub's own address alone.

    Fix: the https address of the endpoint, or `HF_HUB_DISABLE_IMPLICIT_TOKEN=1`, with which only an explicit token is sent.

    Source: `build_hf_headers` and `constants.py` of huggingface_hub 2.4.
    """
    endpoint = facts.hub.endpoint
    host = endpoint.partition("://")[2].partition("/")[0].rpartition("@")[2]
    if not endpoint.startswith("http://") or re.match(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?\Z", host):
        return
    if any(r.withheld for r in facts.hub.repositories):
        yield Finding(
            "huggingface_hub sends your token to {endpoint} unencrypted, where everybody on the way can read it. Use an https "
            "address, or set HF_HUB_DISABLE_IMPLICIT_TOKEN=1.",
            {"endpoint": endpoint},
            severity="warning",
            fixes=(EnvVar("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"),),
        )


CHECKS: tuple[Check, ...] = (
    repository_that_cannot_be_read,
    no_room_for_the_download,
    repository_under_another_name,
    token_over_plain_http,
)
