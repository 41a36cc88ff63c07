"""What the Hub's address is, whether it answers, and which models lie in the cache already.

One small request within a deadline for everything: resolving the name, connecting, reading. No token is ever sent.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from qlora_doctor.facts import Hub

DEFAULT_ENDPOINT = Hub().endpoint
_TRUE = ("1", "ON", "YES", "TRUE")


def reach(
    environ: Mapping[str, str], *, offline: bool = False, models: Sequence[str] = (), timeout: float = 3.0
) -> Hub:
    """The endpoint that `environ` means, and what one request to it gave within `timeout` seconds.

    Offline (`offline`, or HF_HUB_OFFLINE in `environ`) nothing is asked, and `reachable` is None; so it is where the
    address cannot be asked by us (not http, a SOCKS proxy). Proxies come from this process's environment, as urllib
    reads them. Never raises.
    """
    value = environ.get("HF_ENDPOINT", "")
    hub = Hub(
        endpoint=redact(value.rstrip("/")) or DEFAULT_ENDPOINT,
        source="HF_ENDPOINT" if value else "default",
        cached=cached_models(environ),
        asked=tuple(models),
    )
    if offline or any(environ.get(n, "").upper() in _TRUE for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        return replace(hub, offline=True)
    endpoint = value.rstrip("/") or DEFAULT_ENDPOINT
    if not re.match(r"https?://[^\s/]", endpoint):
        return replace(hub, detail="not asked: it is no http address")
    return _ask(hub, endpoint, models, timeout)


def _ask(hub: Hub, endpoint: str, models: Sequence[str], timeout: float) -> Hub:
    """Asks in a thread of its own: a name that does not resolve, or an answer that drips, knows no time-out."""
    from threading import Thread

    answers: list[tuple[bool | None, str, str]] = []
    started = time.monotonic()
    path = f"/api/models/{models[0]}" if models else "/api/models?limit=1"
    thread = Thread(target=lambda: answers.append(_request(endpoint + path, timeout)), name="hub request", daemon=True)
    thread.start()
    thread.join(timeout)
    reachable, failure, detail = answers[0] if answers else (False, "timeout", f"no answer within {timeout:g} s")
    seconds = round(time.monotonic() - started, 3)
    return replace(hub, reachable=reachable, failure=failure, detail=redact(detail), seconds=seconds)


def _request(url: str, timeout: float) -> tuple[bool | None, str, str]:
    """`reachable`, `failure` and `detail` of one GET. The body is read no further than what shows that it is JSON."""
    import http.client
    import urllib.error
    import urllib.request

    proxy = _proxy_for(url)
    if proxy.startswith("socks"):
        return None, "", "not asked: a SOCKS proxy is set"
    request = urllib.request.Request(url, headers={"User-Agent": "qlora-doctor", "Accept": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return _judge(answer.status, answer.read(512))
    except urllib.error.HTTPError as error:
        with error:
            return _judge(error.code, error.read(512))
    except (OSError, http.client.HTTPException, ValueError) as error:
        failure, detail = classify(error)
        return False, "proxy" if proxy and failure in ("dns", "refused", "reset", "timeout") else failure, detail


def _judge(status: int, body: bytes) -> tuple[bool, str, str]:
    """A Hub answers in JSON, also where it says no (401, 404): then it is there. Everything else is something else."""
    if status == 407:
        return False, "proxy", "the proxy asks for a password (http 407)"
    if status >= 500 or status == 429:
        return False, f"http {status}", f"it answered with http {status}"
    if 300 <= status < 400:  # what is followed never ends here
        return False, f"http {status}", "it redirects in a circle"
    if body.lstrip()[:1] in (b"{", b"["):
        return True, "", f"http {status}"
    if status >= 400:
        return False, f"http {status}", f"it answered with http {status}, and not as a Hub does"
    return False, "not json", "the answer is not JSON: " + " ".join(body[:60].decode("utf-8", "replace").split())


def classify(error: BaseException) -> tuple[str, str]:
    """The word for what went wrong with a connection, and the system's own words for it."""
    import socket
    import ssl

    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        return classify(reason)
    text = str(reason or error) or type(error).__name__
    if isinstance(error, ssl.SSLError):
        return "tls", text
    if isinstance(error, socket.gaierror):
        return "dns", text
    if isinstance(error, ConnectionRefusedError):
        return "refused", text
    if isinstance(error, TimeoutError):
        return "timeout", text
    if "Tunnel connection failed" in text:
        return "proxy", text
    return "reset", f"{type(error).__name__}: {text}"


def _proxy_for(url: str) -> str:
    """The proxy that urllib would take for `url`, or "". A SOCKS proxy for everything is one that it would overlook."""
    import urllib.request
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    return proxies.get(parts.scheme) or proxies.get("all") or ""


def cache_folder(environ: Mapping[str, str]) -> str:
    """The folder where huggingface_hub keeps models, by the variables it reads itself."""
    home = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    folder = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return os.path.expanduser(os.path.expandvars(folder))


def cached_models(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The models of which the cache holds a snapshot with a configuration, by id and sorted."""
    root = cache_folder(environ)
    try:
        names = sorted(n for n in os.listdir(root) if n.startswith("models--"))
    except OSError:
        return ()
    return tuple(n.removeprefix("models--").replace("--", "/") for n in names if _complete(os.path.join(root, n)))


def _complete(folder: str) -> bool:
    snapshots = os.path.join(folder, "snapshots")
    try:
        return any(os.path.exists(os.path.join(snapshots, s, "config.json")) for s in os.listdir(snapshots))
    except OSError:
        return False


def redact(text: str) -> str:
    """`text` without the user name and password of an address."""
    return re.sub(r"(//)[^/@\s]*@", r"\1***@", text)
