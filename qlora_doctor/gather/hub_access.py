"""What a refusal of the Hub means: 401, 403 and 404 say different things with and without a token."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import replace

from qlora_doctor.facts import Repository, RepositoryStatus
from qlora_doctor.gather.hub import redact
from qlora_doctor.gather.hub_client import Answer, Ask, Client

LARGEST_LIST = 2 * 2**20
# What the Hub says, in the order in which it is looked for. Its words are its own; a part of each is enough.
_SAID: tuple[tuple[str, RepositoryStatus], ...] = (
    ("is expired", "expired token"),
    ("invalid credentials", "bad token"),
    ("invalid user token", "bad token"),
    ("fine-grained", "fine-grained"),
    ("awaiting a review", "pending"),
    ("has been rejected", "rejected"),
    ("resource is disabled", "disabled"),
    ("has been disabled", "disabled"),
)
TOKEN_TROUBLE = ("bad token", "expired token")


def refused(client: Client, name: str, answer: Answer, exists: bool = False) -> Repository:
    """The repository after an answer that is not the repository; asks once more for what would help a person.

    A name that is not there: ids that are nearly the same. A token that is not accepted: whether it can be read without.
    """
    status = status_of(answer, client.token, exists)
    said = redact(answer.error or f"http {answer.status}")[:200]
    found = Repository(name, status, client.token, said)
    if status == "not found":
        return replace(found, near=nearest(name, _listed(client, name)))
    if status in TOKEN_TROUBLE:
        alone = Client(client.session, client.endpoint, _without_token(client), client.deadline)
        return replace(found, public=alone.one(Ask(f"{client.endpoint}/api/models/{name}")).status == 200)
    return found


def status_of(answer: Answer, token: bool, exists: bool = False) -> RepositoryStatus:
    """The word for an answer to a request with or without a token; `exists` where the repository itself was shown."""
    said = answer.error.lower()
    if answer.status not in (401, 403, 404):
        return "unanswered"
    for words, status in _SAID:
        if words in said:
            return status
    if answer.status == 401 and token:
        return "bad token"
    if exists or "gated" in said or "restricted" in said or answer.status == 403:
        return "not granted" if token else "gated"
    return "not found"


def _without_token(client: Client) -> dict[str, str]:
    return {k: v for k, v in client.headers.items() if k.lower() != "authorization"}


def _listed(client: Client, name: str) -> Iterable[str]:
    """Repositories of the same owner, and those whose name has the same last part; both asked for at once."""
    from urllib.parse import quote

    owner, _, last = name.rpartition("/")
    base = f"{client.endpoint}/api/models?limit=100&sort=downloads"
    tasks = {"search": Ask(f"{base}&search={quote(last)}", most=LARGEST_LIST)}
    if owner:
        tasks["author"] = Ask(f"{base}&author={quote(owner)}", most=LARGEST_LIST)
    for answer in client.all(tasks, seconds=1.5).values():
        entries = answer.objects()
        for entry in entries[:200]:
            found = entry.get("id") or entry.get("modelId") if isinstance(entry, dict) else None
            if isinstance(found, str) and len(found) < 200:
                yield found


def nearest(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """Up to three of `known` that are nearly `name`; those that differ in case alone come first."""
    names = {k.lower(): k for k in known if k != name}
    close = difflib.get_close_matches(name.lower(), list(names), 3, 0.8)
    return tuple(names[c] for c in close)
