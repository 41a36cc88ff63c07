"""Every misbehaviour of a Hub, in each place where it can happen, with what `check` must make of it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.hub_server import HubServer, dead_address


@dataclass(frozen=True)
class Row:
    """`where`: `everywhere`, `files` (the API answers), `storage` (only large files, on another host). `words` stand in
    the finding `code`; where `code` is "" nothing is found, because the check gets past it."""

    wrong: str
    where: str
    code: str
    words: str = ""

    def arrange(self, hub: HubServer, storage: HubServer) -> None:
        """Makes the servers misbehave so."""
        hub.storage = storage.address
        storage.misbehave = "html" if self.wrong == "portal" else ""
        if self.where == "storage" and self.wrong == "dead redirect":
            hub.storage = dead_address()
        elif self.where == "storage":
            storage.misbehave = self.wrong
        else:
            hub.misbehave, hub.only = self.wrong, "/resolve/" if self.where == "files" else ""


MATRIX = (
    Row("refuse", "everywhere", "QD202", "the connection was cut"),
    Row("reset", "everywhere", "QD202", "the connection was cut"),
    Row("reset midway", "everywhere", "QD202", "the connection was cut"),
    Row("hang", "everywhere", "QD202", "no answer in time"),
    Row("drip", "everywhere", "QD202", "no answer in time"),
    Row("truncate", "everywhere", "QD202", "broke off in the middle"),
    Row("wrong length", "everywhere", "QD202", "broke off in the middle"),
    Row("html", "everywhere", "QD202", "a login page"),
    Row("portal", "everywhere", "QD202", "where it redirects to) (not json)"),
    Row("missing", "everywhere", "QD202", "not as a Hub does (http 404)"),
    Row("dead redirect", "everywhere", "QD202", "where it redirects to) (refused)"),
    Row("redirect loop", "everywhere", "QD202", "in a circle"),
    Row("429", "everywhere", "QD202", "Wait 60 seconds"),
    Row("500", "everywhere", "QD202", "trouble of its own (http 500)"),
    Row("503", "everywhere", "QD202", "trouble of its own (http 503)"),
    Row("flapping", "everywhere", "QD202", "the connection was cut"),
    Row("refuse", "files", "QD215", "(reset)"),
    Row("reset", "files", "QD215", "(reset)"),
    Row("reset midway", "storage", "QD207", "(reset)"),
    Row("hang", "files", "QD215", "(timeout)"),
    Row("drip", "files", "QD215", "(timeout)"),
    Row("truncate", "files", "QD215", "(cut short)"),
    Row("wrong length", "files", "QD215", "(cut short)"),
    Row("html", "files", "QD215", "(web page)"),
    Row("missing", "files", "QD215", "(http 404)"),
    Row("redirect loop", "files", "QD215", "(redirect loop)"),
    Row("429", "files", "QD215", "(http 429)"),
    Row("503", "files", "QD215", "(http 503)"),
    Row("refuse", "storage", "QD207", "(reset)"),
    Row("reset", "storage", "QD207", "(reset)"),
    Row("hang", "storage", "QD207", "(timeout)"),
    Row("drip", "storage", "QD207", "(timeout)"),
    Row("truncate", "storage", "QD207", "(cut short)"),
    Row("wrong length", "storage", "QD207", "(cut short)"),
    Row("html", "storage", "QD207", "(web page)"),
    Row("dead redirect", "storage", "QD207", "(refused)"),
    Row("redirect loop", "storage", "QD207", "(redirect loop)"),
    Row("429", "storage", "QD207", "(http 429)"),
    Row("503", "storage", "QD207", "(http 503)"),
)
