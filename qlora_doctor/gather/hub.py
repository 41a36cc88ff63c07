"""What the Hub's address is, and whether it answers.

One small request within a deadline for everything: resolving the name, connecting, reading. No token is ever sent.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qlora_doctor.facts import Hub
from qlora_doctor.gather.hub_cache import cached_models

if TYPE_CHECKING:
    import ssl

DEFAULT_ENDPOINT = Hub().endpoint
TRUE = ("1", "ON", "YES", "TRUE")


def reach(
    environ: Mapping[str, str], *, offline: bool = False, models: Sequence[str] = (), timeout: float = 3.0
) -> Hub:
    """The endpoint that `environ` means, and what one request to it gave within `timeout` seconds.

    Offline (`offline`, or HF_HUB_OFFLINE in `environ`) nothing is asked, and `reachable` is None; so it is where the
    address cannot be asked by us (not http, a SOCKS proxy). Proxies come from this process's environment, as urllib
    reads them. Never raises.
    """
    hub = described(environ, models)
    if offline or told_offline(environ):
        return replace(hub, offline=True)
    endpoint = environ.get("HF_ENDPOINT", "").rstrip("/") or DEFAULT_ENDPOINT
    if not re.match(r"https?://[^\s/]", endpoint):
        return replace(hub, detail="not asked: it is no http address")
    return _ask(hub, endpoint, models, timeout)


def described(environ: Mapping[str, str], models: Sequence[str]) -> Hub:
    """The endpoint by its variables, and what the cache holds; nothing is asked."""
    value = environ.get("HF_ENDPOINT", "")
    return Hub(
        endpoint=redact(value.rstrip("/")) or DEFAULT_ENDPOINT,
        source="HF_ENDPOINT" if value else "default",
        cached=cached_models(environ),
        asked=tuple(models),
    )


def told_offline(environ: Mapping[str, str]) -> bool:
    """Whether a variable forbids huggingface_hub to open a connection."""
    return any(environ.get(n, "").upper() in TRUE for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def _ask(hub: Hub, endpoint: str, models: Sequence[str], timeout: float) -> Hub:
    """Asks in a thread of its own: a name that does not resolve, or an answer that drips, knows no time-out."""
    from threading import Thread

    answers: list[Hub] = []
    started = time.monotonic()
    path = f"/api/models/{models[0]}" if models else "/api/models?limit=1"
    work = Thread(
        target=lambda: answers.append(_request(hub, endpoint + path, timeout)), name="hub request", daemon=True
    )
    work.start()
    work.join(timeout)
    late = replace(hub, reachable=False, failure="timeout", detail=f"no answer within {timeout:g} s")
    return replace(answers[0] if answers else late, seconds=round(time.monotonic() - started, 3))


def _request(hub: Hub, url: str, timeout: float) -> Hub:
    """The hub after one GET. The body is read no further than what shows that it is JSON."""
    import http.client
    import urllib.error
    import urllib.request

    proxy = proxy_for(url)
    if proxy.startswith("socks"):
        return replace(hub, detail="not asked: a SOCKS proxy is set")
    asked = [url]

    class Redirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *given: Any) -> urllib.request.Request | None:
            asked.append(str(given[-1]))
            return super().redirect_request(*given)

    handlers: list[Any] = [Redirects]
    if "https:" in url:
        handlers.append(urllib.request.HTTPSHandler(context=_context()))
    request = urllib.request.Request(url, headers={"User-Agent": "qlora-doctor", "Accept": "application/json"})
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=timeout) as answer:
            return judged(hub, answer.status, answer.read(512), dict(answer.headers.items()), asked[-1])
    except urllib.error.HTTPError as error:
        with error:
            return judged(hub, error.code, error.read(512), dict(error.headers.items()), asked[-1])
    except (OSError, http.client.HTTPException, ValueError) as error:
        return failed(hub, *classify(error), url=asked[-1])


def _context() -> ssl.SSLContext:
    """What OpenSSL trusts by default, and the bundles that a user names for requests. No secret is sent over it."""
    import ssl

    context = ssl.create_default_context()
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if os.path.isfile(os.environ.get(name, "")):
            try:
                context.load_verify_locations(os.environ[name])
            except (OSError, ssl.SSLError):
                continue
    return context


def failed(hub: Hub, failure: str, detail: str, url: str) -> Hub:
    """The hub where a connection to `url` failed: behind a proxy the proxy is the nearer cause."""
    if proxy_for(url) and failure in ("dns", "refused", "reset", "timeout"):
        failure = "proxy refused" if failure in ("dns", "refused") else "proxy"
    return replace(hub, reachable=False, failure=failure, detail=redact(detail)[:300], redirected=_elsewhere(hub, url))


def _elsewhere(hub: Hub, url: str) -> str:
    """The host of `url` where it is another than the endpoint's: a redirect led there."""
    host = host_of(url)
    return "" if host == host_of(hub.endpoint) else host


def judged(hub: Hub, status: int, body: bytes, headers: Mapping[str, str], url: str) -> Hub:
    """The hub after an answer from `url`. A Hub answers in JSON, also where it says no (401, 404): then it is there."""
    reachable, failure, detail = _judge(status, body)
    wait = headers.get("Retry-After") or headers.get("retry-after") or ""
    seconds = int(wait) if status in (429, 503) and wait.isdigit() and len(wait) < 8 else None
    elsewhere = "" if reachable else _elsewhere(hub, url)
    return replace(
        hub, reachable=reachable, failure=failure, detail=redact(detail), retry_after=seconds, redirected=elsewhere
    )


def _judge(status: int, body: bytes) -> tuple[bool, str, str]:
    if status == 407:
        return False, "proxy password", "the proxy asks for a password (http 407)"
    if status >= 500 or status == 429:
        return False, f"http {status}", f"it answered with http {status}"
    if 300 <= status < 400 and status != 304:  # what is followed never ends here
        return False, "redirect loop", "it redirects in a circle"
    if status == 304 or body.lstrip()[:1] in (b"{", b"["):
        return True, "", f"http {status}"
    if status >= 400:
        return False, f"http {status}", f"it answered with http {status}, and not as a Hub does"
    return False, "not json", "the answer is not JSON: " + " ".join(body[:60].decode("utf-8", "replace").split())


# X509_V_ERR_* of OpenSSL, as Python gives them in `verify_code`.
_CERTIFICATE = {9: "not yet valid", 10: "expired", 18: "unknown authority", 19: "unknown authority",
                20: "unknown authority", 21: "unknown authority", 62: "wrong host", 64: "wrong host"}  # fmt: skip


def classify(error: BaseException) -> tuple[str, str]:
    """The word for what went wrong with a connection, and the system's own words for it.

    Takes the errors of urllib, requests and httpx: whichever wraps it, the socket's own error is in the chain.
    """
    import socket
    import ssl

    chain = list(_chain(error))
    text = str(getattr(error, "reason", None) or error) or type(error).__name__
    names = " ".join(type(e).__name__ for e in chain)
    if "TooManyRedirects" in names:
        return "redirect loop", text
    if "407" in text and ("Proxy" in names or "Tunnel" in text):
        return "proxy password", text
    if "ProxyError" in names or "Tunnel connection failed" in text:
        refused = any(isinstance(e, (ConnectionRefusedError, socket.gaierror)) for e in chain)
        return "proxy refused" if refused else "proxy", text
    for one in chain:
        if isinstance(one, ssl.SSLCertVerificationError):
            return f"tls {_CERTIFICATE.get(getattr(one, 'verify_code', 0), '')}".strip(), str(one)
    if any(isinstance(e, ssl.SSLError) for e in chain):
        return "tls", text
    if any(isinstance(e, socket.gaierror) for e in chain):
        return "dns", text
    if any(isinstance(e, ConnectionRefusedError) for e in chain):
        return "refused", text
    if any(isinstance(e, TimeoutError) for e in chain) or "Timeout" in names:
        return "timeout", text
    if "complete message body" in text or "IncompleteRead" in f"{names} {text}":
        return "cut short", text
    return "reset", f"{type(error).__name__}: {text}"


def _chain(error: BaseException | None) -> Sequence[BaseException]:
    """An error and what caused it, down to the socket; each once."""
    found: list[BaseException] = []
    while error is not None and error not in found and len(found) < 12:
        found.append(error)
        reason = getattr(error, "reason", None)
        error = reason if isinstance(reason, BaseException) else error.__cause__ or error.__context__
    return found


def proxy_for(url: str) -> str:
    """The proxy that urllib would take for `url`, or "". A SOCKS proxy for everything is one that it would overlook."""
    import urllib.request
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    return proxies.get(parts.scheme) or proxies.get("all") or ""


def host_of(url: str) -> str:
    """The host and port of an address, without a user name and password."""
    from urllib.parse import urlsplit

    return urlsplit(url).netloc.rpartition("@")[2].lower()


def redact(text: str) -> str:
    """`text` without the user name and password of an address, and without tokens."""
    return re.sub(r"\bhf_[A-Za-z0-9]{8,}", "hf_***", re.sub(r"(//)[^/@\s]*@", r"\1***@", text))
