"""QD2: the repositories that a run needs: whether they may be read, and whether there is room for them."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.hub import hub_models
from qlora_doctor.errors import UnknownFact
from qlora_doctor.facts import Facts, Repository, known
from qlora_doctor.families import KNOWN
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests

GIB = 2**30
_TEXTS = {
    "gated": "{model} is gated, and nobody is logged in: accept its terms on {page}, then run `hf auth login`",
    "not granted": "{model} may not be read with the token that is set here: accept its terms on {page}; a fine-grained token also "
    "needs the right to read public gated repositories",
    "not found": "{endpoint} has no repository {model}, or it is private and nobody is logged in: check the name{near}",
    "not found, token": "{endpoint} has no repository {model}, or it is private and this token may not read it: check the name{near}",
    "bad token": "{endpoint} does not accept the token that is set here, so that every download fails, also of public models: run "
    "`hf auth login` again, or unset HF_TOKEN",
}
_WAYS = {
    "gated": ("accept the terms and log in", "hf auth login"),
    "not granted": ("ask for access with the account of this token", ""),
    "not found": ("correct the name", ""),
    "bad token": ("log in again", "hf auth login"),
}


@check("QD205", needs=["hub"], since="0.1", requires=["QD201", "QD202"])
def repository_that_cannot_be_read(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """A model that the run loads is gated, private, not there, or the token is not accepted.

    The Hub was asked for the repository and for its configuration, as the load will ask. 401, 403 and 404 mean different
    things with and without a token, and the message says which it is. A mirror is asked without the token, so a
    gated repository is named there even for those who may read it.

    A warning where the model lies in the local cache already (it loads from there); else an error. Unknown where the Hub gave
    no usable answer for the repository (too many requests, an error of the server, no answer in time).

    Fix: accept the terms and log in; correct the name; take a token with the right.

    Source: the answers of the Hub, which huggingface_hub tells apart in the same way (`hf_raise_for_status`).
    """
    wanted = hub_models(requests)
    for repository in facts.hub.repositories:
        if repository.name not in wanted or repository.status == "ok":
            continue
        if repository.status == "unanswered":
            raise UnknownFact(f"repository {repository.name}", repository.detail or "no usable answer")
        word = f"{repository.status}, token" if repository.token else repository.status
        yield Finding(
            _TEXTS.get(word, _TEXTS[repository.status]),
            {
                "model": repository.name,
                "endpoint": facts.hub.endpoint,
                "page": f"{facts.hub.endpoint}/{repository.name}",
                "near": _near(repository),
                "detail": repository.detail,
            },
            severity="warning" if repository.name in facts.hub.cached else "error",
            fixes=(Advice(*_WAYS[repository.status]),),
        )


def _near(repository: Repository) -> str:
    """A known repository whose name is nearly the same, for the end of the message."""
    import difflib

    names = {k: m.name for k, m in KNOWN.items()} | {m.instead.lower(): m.instead for m in KNOWN.values() if m.instead}
    near = difflib.get_close_matches(repository.name.lower(), list(names), 1, 0.8)
    return f" (did you mean {names[near[0]]}?)" if near else ""


@check("QD206", needs=["hub", "disks"], since="0.1", requires=["QD201", "QD202", "QD205"])
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


CHECKS: tuple[Check, ...] = (repository_that_cannot_be_read, no_room_for_the_download)
