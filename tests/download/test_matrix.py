"""Every misbehaviour of a Hub, of all answers and of the files alone: the cause is named, nothing hangs, nothing rots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_doctor.download import Downloaded, NotDownloaded
from tests.hub_server import MISBEHAVIOURS, HubServer, hub_server

CUT = "the connection was cut"
SAID = {
    "refuse": ("reset", CUT),
    "reset": ("reset", CUT),
    "hang": ("stalled", "the transfer stalled"),
    "drip": ("stalled", "the transfer stalled"),
    "truncate": ("truncated", "the file ended too early"),
    "html": ("not json", "a login page or a wrong address"),
    "portal": ("not json", r"which redirects to 127.0.0.1:\d+\): .*a login page"),
    "missing": ("http 404", "not as a Hub does"),
    "dead redirect": ("refused", r"which redirects to 127.0.0.1:\d+\): nothing listens there"),
    "redirect loop": ("redirect loop", "redirects in a circle"),
    "429": ("http 429", "asks to wait 60 s"),
    "500": ("http 500", "answered with an error"),
    "503": ("http 503", "answered with an error"),
}
OF_ALL = {**SAID, "hang": ("timeout", "no answer in time"), "drip": ("timeout", "no answer in time"),
          "wrong length": ("truncated", "ended too early"), "reset midway": ("reset", CUT)}  # fmt: skip
OF_FILES = {**SAID, "missing": ("no file", "does not have it")}
# The files are small enough, or the resumption good enough, to get past these.
GOT_PAST = ("wrong length", "reset midway", "flapping")

Fetch = Callable[..., Downloaded]


def test_every_misbehaviour_has_a_row() -> None:
    all_of_them = set(MISBEHAVIOURS)
    assert all_of_them == {*OF_ALL, "flapping"} == {*OF_FILES, *GOT_PAST}


@pytest.mark.parametrize(
    ("only", "wrong", "cause", "said"),
    [("", w, *row) for w, row in OF_ALL.items()] + [("resolve", w, *row) for w, row in OF_FILES.items()],
)
def test_the_cause_is_named_and_nothing_half_written_is_trusted(
    hub: HubServer, fetch: Fetch, tmp_path: Path, only: str, wrong: str, cause: str, said: str
) -> None:
    hub.misbehave, hub.only, hub.after = wrong, only, 100
    with hub_server(tmp_path / "login") as login:
        login.misbehave = "html"
        hub.storage = login.address if wrong == "portal" else ""
        with pytest.raises(NotDownloaded, match=said) as caught:
            fetch()
        hub.storage = ""
    assert caught.value.cause == cause
    assert hub.outlasted == 0, "the client waited until the server was through"
    assert not list((tmp_path / "cache").glob("models--*/refs/*"))
    hub.misbehave = ""
    done = fetch()
    for name in done.fetched:
        assert (Path(done.folder) / name).read_bytes() == (hub.root / "org" / "tiny" / name).read_bytes()
    assert len(list(Path(done.folder).iterdir())) == 4
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


@pytest.mark.parametrize("wrong", GOT_PAST)
def test_what_can_be_got_past_is_got_past(hub: HubServer, fetch: Fetch, wrong: str) -> None:
    hub.misbehave, hub.only, hub.after = wrong, "resolve", 6_000
    done = fetch()
    assert len(done.fetched) == 4
    for name in done.fetched:
        assert (Path(done.folder) / name).read_bytes() == (hub.root / "org" / "tiny" / name).read_bytes()
