"""What a download needs beside the Hub's API, and which host it needs it from.

Large files do not come from the Hub itself: it redirects to a storage host, and where hf_xet is installed that asks yet
another one. A mirror that answers the API may send a client to hosts that a firewall blocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from qlora_doctor.facts import Route
from qlora_doctor.gather.hub import DEFAULT_ENDPOINT, host_of
from qlora_doctor.gather.hub_client import Answer, Ask, Client
from qlora_doctor.gather.model_files import impostor_of

FIRST = 64
_LINK = re.compile(r"<([^>]+)>\s*;\s*rel=\"?xet-auth\"?")


def try_routes(client: Client, base: str, weights: Sequence[str]) -> tuple[Route, ...]:
    """The ways to the weights, by the first bytes of one file; `base` is the address of a revision's files."""
    answers = client.all({n: Ask(base + n, FIRST, FIRST) for n in weights})
    return routes_of(client, base, answers, weights, dict.fromkeys(weights, FIRST + 1))


def routes_of(
    client: Client, base: str, answers: Mapping[str, Answer], weights: Sequence[str], sizes: Mapping[str, int]
) -> tuple[Route, ...]:
    """The ways as the answers to requests for files show them; the xet storage is asked on top, where it is named."""
    found = []
    small = [a for n, a in answers.items() if n not in weights and n.endswith(".json")]
    if small and all(a.status != 200 for a in small):
        found.append(_route("file", small[0]))
    for name in weights:
        answer = answers.get(name)
        if answer is None:
            continue
        found.append(_route("weights", answer))
        if not found[-1].failure and answer.status == 200 and sizes.get(name, 0) > len(answer.body) > 0:
            found.append(Route("range", answer.host, "no ranges", "asked for a part, it sends the whole file"))
        found += _xet(client, answer)
    return tuple(found)


def _route(what: str, answer: Answer) -> Route:
    impostor = impostor_of(answer.body[:300]) if answer.status in (200, 206) else None
    good = answer.status in (200, 206) and impostor is None
    failure = "" if good else impostor.fault if impostor else answer.failure or f"http {answer.status}"
    return Route("file" if what == "file" else "weights", answer.host, failure, "" if good else answer.error[:200])


def _xet(client: Client, answer: Answer) -> list[Route]:
    """The storage that hf_xet would ask: first the Hub for the way to it, as huggingface_hub does, then its host."""
    if "x-xet-hash" not in answer.headers:
        return []
    linked = _LINK.search(answer.headers.get("link", ""))
    place = linked[1] if linked else answer.headers.get("x-xet-refresh-route", "")
    if place.startswith(DEFAULT_ENDPOINT + "/"):
        place = client.endpoint + place[len(DEFAULT_ENDPOINT) :]
    if not place.startswith(("https://", "http://")):
        return []
    told = client.one(Ask(place))
    storage = told.headers.get("x-xet-cas-url", "")
    if told.status != 200 or not storage.startswith(("https://", "http://")):
        return [Route("xet", told.host, told.failure or f"http {told.status}", told.error[:200])]
    asked = client.one(Ask(storage))
    # Any answer at all shows that the host can be reached; it has nothing to give without a key.
    return [Route("xet", host_of(storage), "" if asked.status else asked.failure, asked.error[:200])]
