"""The Hub's own client with a deadline, a limit on every body, and redirects that it follows itself.

Following them here is what names the host that failed, and what keeps a token with the endpoint that it belongs to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

from qlora_doctor.facts import Hub
from qlora_doctor.gather.hub import classify, failed, host_of, redact
from qlora_doctor.gather.safetensors import Refused, strict_json

AT_ONCE = 24
MOST_REDIRECTS = 10
SECONDS = 3.0
_KEPT = ("etag", "link", "x-xet-hash", "x-xet-refresh-route", "x-xet-cas-url", "retry-after", "x-error-code")


@dataclass(frozen=True, slots=True)
class Ask:
    """One GET: the first `length` bytes (0: all), of which no more than `most` are taken. `etag`: only if it is another."""

    url: str
    length: int = 0
    most: int = 2**20
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, as far as it was read. `status` is 0 where there was none; then `failure` is the word for why.

    `host` is who gave it, after redirects. `headers` are a few of it, and of the redirects before it, by lower-case name.
    """

    status: int
    body: bytes = b""
    error: str = ""
    host: str = ""
    failure: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def object(self) -> dict[str, Any] | None:
        """The JSON object that the body is, or None."""
        try:
            data = strict_json(self.body)
        except Refused:
            return None
        return data if isinstance(data, dict) else None

    def objects(self) -> list[Any]:
        """The JSON list that the body is, or an empty one."""
        try:
            data = strict_json(self.body)
        except Refused:
            return []
        return data if self.status == 200 and isinstance(data, list) else []


class Client:
    """Asks within a deadline. Every request runs in a daemon thread, so that a server that drips ends nobody."""

    def __init__(self, session: Any, endpoint: str, headers: Mapping[str, str], deadline: float) -> None:
        self.session = session
        self.endpoint = endpoint
        self.headers = dict(headers)
        self.deadline = deadline
        self.token = any(k.lower() == "authorization" for k in headers)

    def all(self, tasks: Mapping[str, Ask], *, seconds: float = 60.0) -> dict[str, Answer]:
        """The answers of all tasks, as many at once as is polite, within `seconds` and the deadline."""
        from threading import Thread

        answers: dict[str, Answer] = {}
        places = {key: host_of(task.url) for key, task in tasks.items()}
        left = list(tasks.items())
        end = min(self.deadline, time.monotonic() + seconds)

        def work() -> None:
            while left and time.monotonic() < end:
                try:
                    key, task = left.pop(0)
                except IndexError:
                    return
                answers[key] = self._one(task, lambda host, key=key: places.update({key: host}))  # type: ignore[misc]

        threads = [Thread(target=work, name="hub model", daemon=True) for _ in range(min(AT_ONCE, len(tasks)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        late = {key: Answer(0, error="no answer in time", host=places[key], failure="timeout") for key in tasks}
        return late | {key: answers[key] for key in tasks if key in answers}

    def one(self, task: Ask, *, seconds: float = SECONDS) -> Answer:
        """The answer of one task, given up after `seconds`."""
        return self.all({"": task}, seconds=seconds)[""]

    def _one(self, task: Ask, tell: Callable[[str], None]) -> Answer:
        """Follows redirects to the answer. `tell` is told each host, for who waits no longer."""
        url, said = task.url, dict[str, str]()
        for _ in range(MOST_REDIRECTS):
            try:
                answer, place = self._get(url, task)
            except Exception as error:  # noqa: BLE001 - the client is requests, httpx or httpx2; each has errors of its own
                failure, detail = classify(error)
                failure = failed(Hub(), failure, detail, url).failure
                return Answer(0, error=redact(f"{type(error).__name__}: {error}"), host=host_of(url), failure=failure)
            said = {**answer.headers, **said}
            if not place:
                return Answer(answer.status, answer.body, answer.error, host_of(url), answer.failure, said)
            url = urljoin(url, place)
            tell(host_of(url))
            if not url.startswith(("https://", "http://")):
                return Answer(0, error="a redirect to no http address", host=host_of(url), failure="redirect loop")
        return Answer(302, error="it redirects in a circle", host=host_of(url), failure="redirect loop")

    def _get(self, url: str, task: Ask) -> tuple[Answer, str]:
        """One GET, and where it redirects to ("" for nowhere)."""
        headers = {**self.headers, "Accept-Encoding": "identity"}
        if not same_origin(url, self.endpoint):
            headers = {k: v for k, v in headers.items() if k.lower() != "authorization"}
        if task.length:
            headers["Range"] = f"bytes=0-{task.length - 1}"
        if task.etag:
            headers["If-None-Match"] = task.etag
        timeout = max(0.1, min(SECONDS, self.deadline - time.monotonic()))
        with _opened(self.session, url, headers, timeout) as answer:
            kept = {k: answer.headers[k] for k in _KEPT if k in answer.headers}
            place = answer.headers.get("Location", "") if answer.status_code in (301, 302, 303, 307, 308) else ""
            if place:
                return Answer(answer.status_code, headers=kept), place
            return _body(answer, task, kept), ""


def _opened(session: Any, url: str, headers: Mapping[str, str], timeout: float) -> Any:
    """One GET with either kind of client: httpx (huggingface_hub 1.0 and newer) or requests."""
    if hasattr(session, "stream") and not hasattr(session, "adapters"):
        return session.stream("GET", url, headers=dict(headers), timeout=timeout, follow_redirects=False)
    return session.get(url, stream=True, headers=dict(headers), timeout=timeout, allow_redirects=False)


def _body(answer: Any, task: Ask, kept: Mapping[str, str]) -> Answer:
    body = bytearray()
    # Bytes as they came: a few kilobytes that unpack to gigabytes are refused below, not unpacked.
    for chunk in answer.iter_raw() if hasattr(answer, "iter_raw") else answer.raw.stream(2**16, decode_content=False):
        body += chunk
        if len(body) > task.most:
            break
    said = " ".join(answer.headers.get(h, "") for h in ("X-Error-Code", "X-Error-Message")).strip()
    whole = answer.headers.get("Content-Length", "")
    if answer.status_code == 200 and whole.isdigit() and len(body) < min(int(whole), task.most):
        return Answer(0, error="the answer was cut short", failure="cut short")
    if answer.headers.get("Content-Encoding", "identity").lower() in ("gzip", "deflate"):
        body = _unpacked(bytes(body), task.most)
    if len(body) > task.most and not task.length:
        return Answer(0, error="the answer is larger than is read", failure="too large")
    result = Answer(answer.status_code, bytes(body[: task.most]), said, headers=kept)
    if result.status >= 400 and not said:
        told = (result.object() or {}).get("error")
        return Answer(result.status, result.body, told[:300] if isinstance(told, str) else "", headers=kept)
    return result


def _unpacked(body: bytes, most: int) -> bytearray:
    """A body that was packed although nobody asked for that, no further than one byte beyond what is read."""
    import zlib

    try:
        return bytearray(zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, most + 1))
    except zlib.error:
        return bytearray(body)


def same_origin(one: str, other: str) -> bool:
    """Whether two addresses have the same scheme, host and port."""
    a, b = urlsplit(one), urlsplit(other)
    try:
        ports = [p.port or {"http": 80, "https": 443}.get(p.scheme) for p in (a, b)]
    except ValueError:
        return False
    return (a.scheme, a.hostname, ports[0]) == (b.scheme, b.hostname, ports[1])
