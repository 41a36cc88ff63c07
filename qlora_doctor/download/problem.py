"""What goes wrong with a download, in words."""

from __future__ import annotations

from qlora_doctor.errors import UsageError
from qlora_doctor.gather.hub import redact

# By the first word of the cause; the words are those of `facts.Hub.failure`, and some of our own.
_SAID = {
    "dns": "its name cannot be resolved",
    "refused": "nothing listens there",
    "reset": "the connection was cut",
    "timeout": "it gave no answer in time",
    "stalled": "the transfer stalled",
    "tls": "its certificate or TLS setup was not accepted",
    "proxy": "the proxy did not let the request through",
    "redirect": "it redirects in a circle",
    "http": "it answered with an error",
    "not": "it answered with something else than the Hub's data (a login page or a wrong address)",
    "truncated": "the file ended too early",
    "too": "the file is longer than the Hub says",
    "hash": "the file is not the one whose hash the Hub gives",
}
# What may be gone in a moment; the rest is an answer.
TRANSIENT = ("dns", "refused", "reset", "timeout", "stalled", "truncated", "http 408", "http 429", "http 5")
ANSWERS = ("not found", "no revision", "gated", "not granted", "bad token", "no weights", "no file")


class Trouble(Exception):
    """One failed request. `cause` is a word of `facts.Hub.failure`, of `ANSWERS`, or of the table above."""

    def __init__(self, cause: str, detail: str = "", *, host: str = "", retry_after: float | None = None) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = redact(" ".join(detail.split()))[:300]
        self.host = host
        self.retry_after = retry_after

    @property
    def transient(self) -> bool:
        """Whether the same request may work in a moment."""
        return self.cause.startswith(TRANSIENT)

    def said(self, endpoint: str) -> str:
        """One line for the user: `http://mirror: nothing listens there (refused: ...)`."""
        where = redact(endpoint)
        if self.cause in ANSWERS:
            return f"{where}: {self.detail}"
        if self.host and self.host not in endpoint:
            where = f"{where} (which redirects to {self.host})"
        reason = _SAID.get(self.cause.partition(" ")[0], "it failed")
        wait = f", and asks to wait {self.retry_after:g} s" if self.retry_after else ""
        return f"{where}: {reason}{wait} ({self.cause}{': ' + self.detail if self.detail else ''})"


class NotDownloaded(UsageError):
    """A model that could not be had. `cause` is that of the first address that was asked, `causes` those of all."""

    def __init__(self, text: str, cause: str, causes: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.cause = cause
        self.causes = causes or (cause,)
