"""One request through huggingface_hub's session, which is of requests or of httpx, by its version."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from qlora_doctor import __version__
from qlora_doctor.download.problem import NotDownloaded, Trouble
from qlora_doctor.gather.hub import DEFAULT_ENDPOINT, TRUE, classify, host_of

CHUNK = 2**16


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whose body has not been read yet. `url` is where it came from after all redirects."""

    status: int
    headers: Mapping[str, str]
    url: str
    chunks: Iterator[bytes]

    @property
    def host(self) -> str:
        return host_of(self.url)


def headers_for(endpoint: str, token: Any, first: bool) -> dict[str, str]:
    """The headers of a request to `endpoint`.

    A token that the user keeps on this machine belongs to the Hub itself and goes nowhere else. One that was given for
    this download goes to the first address alone.
    """
    client = hub()
    chosen = token if isinstance(token, str) and first else ""
    if not chosen and endpoint == DEFAULT_ENDPOINT and token is not False:
        implicit = os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() not in TRUE
        chosen = (client.get_token() or "") if implicit or token is True else ""
    # Not `build_hf_headers`: since 2.x it asks the Hub for a list of its own first.
    made = {"user-agent": f"qlora-doctor/{__version__}; hf_hub/{client.__version__}", "accept-encoding": "identity"}
    return {**made, "authorization": f"Bearer {chosen}"} if chosen else made


def hub() -> Any:
    """huggingface_hub itself. Raises NotDownloaded where it cannot be imported."""
    try:
        import huggingface_hub
    except Exception as error:  # a broken install may raise anything; the user is told
        raise NotDownloaded(
            f"huggingface_hub cannot be imported ({type(error).__name__}: {error}); pip install -U huggingface_hub",
            "no client",
        ) from error
    return huggingface_hub


@contextmanager
def opened(url: str, headers: Mapping[str, str], timeout: float) -> Iterator[Answer]:
    """A GET whose body is still to be read. Redirects are followed; a token stays with the host it was meant for.

    Raises:
        Trouble: no answer, or the body broke off while it was read.
    """
    session = hub().get_session()
    new = hasattr(session, "stream") and not hasattr(session, "adapters")
    options: dict[str, Any] = {"headers": dict(headers), "timeout": timeout}
    last = url
    try:
        if new:
            request: Any = session.stream("GET", url, follow_redirects=True, **options)
        else:
            request = session.get(url, stream=True, allow_redirects=True, **options)
        with request as answer:
            last = str(answer.url)
            chunks = answer.iter_bytes() if new else _raw_chunks(answer)
            yield Answer(answer.status_code, {k.lower(): v for k, v in answer.headers.items()}, last, chunks)
    except Trouble:
        raise
    except Exception as error:
        if isinstance(error, ImportError):  # a SOCKS proxy, and no support for one
            raise Trouble("proxy", str(error)) from error
        if not _of_the_network(error):
            raise
        asked = getattr(error, "request", None)
        place = str(getattr(asked, "url", "") or last)
        cause, detail = classify(error)
        if re.search(r"complete message body|IncompleteRead", detail):
            cause, detail = "truncated", "the connection was closed before the end"
        raise Trouble(cause, detail, host=host_of(place) or urlsplit(url).netloc) from error


def _raw_chunks(answer: Any) -> Iterator[bytes]:
    """The body of a requests answer as it comes: iter_content would wait until a piece is full."""
    read = getattr(answer.raw, "read1", None)
    if read is None:
        yield from answer.iter_content(CHUNK)
        return
    while piece := read(CHUNK, decode_content=True):
        yield piece


def _of_the_network(error: BaseException) -> bool:
    """Whether an error is the client's or the socket's; a full disk, say, is not."""
    module = type(error).__module__.partition(".")[0]
    network = ("requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2", "h11", "http", "ssl", "socket")
    return module in network or isinstance(error, (ConnectionError, TimeoutError))
