"""One download, from the name to the folder."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any

from qlora_doctor.download.client import headers_for
from qlora_doctor.download.listing import Listing, RemoteFile, read_listing
from qlora_doctor.download.patience import Patience
from qlora_doctor.download.problem import ANSWERS, NotDownloaded, Trouble
from qlora_doctor.download.store import Cache, Folder, Store
from qlora_doctor.download.transfer import Transfer
from qlora_doctor.download.wanted import wanted
from qlora_doctor.gather.hub import DEFAULT_ENDPOINT, redact

Progress = Callable[[int, int], None]
POLL = 0.1


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A model that lies in `folder` now. `fetched` are the files that came over the network, `bytes` their sizes.

    `endpoint` is the address that gave it, "" where nothing was asked; `troubles` what went wrong with others before.
    `unverified` are fetched files for which the Hub gave no hash (their sizes were checked).
    """

    name: str
    folder: str
    revision: str = ""
    endpoint: str = ""
    fetched: tuple[str, ...] = ()
    bytes: int = 0
    seconds: float = 0.0
    unverified: tuple[str, ...] = ()
    troubles: tuple[str, ...] = ()


def download(
    name: str,
    endpoints: Sequence[str],
    *,
    revision: str | None = None,
    token: Any = None,
    cache: str = "",
    to: str = "",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    code: bool = False,
    offline: bool = False,
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> Downloaded:
    """What is missing of a repository, from the first of `endpoints` that gives it; returns where it lies.

    `cache` is the Hub's cache folder, `to` a folder of the user's instead. `progress` is told the bytes that are there
    and those that are needed. A token that is kept on this machine is sent to the Hub's own address alone; a `token`
    that is given, to the first endpoint alone.

    Raises:
        NotDownloaded: with the cause for each address, and what to do; a model that lies whole in the cache is taken
            instead where no address gives an answer.
    """
    store: Store = Folder(os.path.abspath(to)) if to else Cache(cache, name, revision or "main")
    patience = patience or Patience()
    started = time.monotonic()
    troubles: list[tuple[str, Trouble]] = []
    for number, endpoint in enumerate(() if offline else endpoints):
        headers = headers_for(endpoint, token, number == 0)
        try:
            listing = _listing(endpoint, name, revision, headers, patience)
            names = wanted(list(listing.files), include, exclude, code=code)
            files = [listing.files[n] for n in names]
            missing = [f for f in files if not store.has(listing.commit, f)]
            if missing:
                with _alone(store):
                    missing = [f for f in missing if not store.has(listing.commit, f)]
                    _room(name, store, missing)
                    _transfer(endpoint, listing, missing, store, headers, patience, progress)
            store.finish(listing)
        except Trouble as trouble:
            troubles.append((endpoint, trouble))
            continue
        except OSError as error:
            raise NotDownloaded(
                f"{name} cannot be written to {store.place('')}: {error.strerror or error}. Free some room there, or "
                "name a folder on another disk",
                "disk",
            ) from error
        return Downloaded(
            name=name,
            folder=store.place(listing.commit),
            revision=listing.commit,
            endpoint=endpoint,
            fetched=tuple(f.name for f in missing),
            bytes=sum(max(f.size, 0) for f in missing),
            seconds=round(time.monotonic() - started, 2),
            unverified=tuple(f.name for f in missing if not f.sha256 and not f.blob),
            troubles=tuple(t.said(e) for e, t in troubles),
        )
    found = store.found() if not to else ""
    if found and (offline or not any(t.cause in ("no weights", "no file") for _, t in troubles)):
        return Downloaded(name, found, os.path.basename(found), troubles=tuple(t.said(e) for e, t in troubles))
    raise _failed(name, troubles, offline, token)


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Waits until no other process downloads the same model: the ranks of a distributed run all begin at once."""
    try:
        from filelock import FileLock
    except ImportError:  # it comes with huggingface_hub
        yield
        return
    os.makedirs(os.path.dirname(store.lock), exist_ok=True)
    with FileLock(store.lock):
        yield


def _listing(endpoint: str, name: str, revision: str | None, headers: Mapping[str, str], patience: Patience) -> Listing:
    failures = 0
    while True:
        try:
            return read_listing(endpoint, name, revision, headers, patience.connect)
        except Trouble as trouble:
            failures += 1
            pause = max(trouble.retry_after or 0.0, patience.pause(failures))
            # A name that does not resolve, or a dead address, rarely comes back within a minute: two attempts.
            most = patience.attempts if trouble.cause.startswith(("http", "truncated", "reset")) else 2
            if not trouble.transient or failures >= min(most, patience.attempts) or pause > patience.longest:
                raise
            time.sleep(pause)


def _transfer(
    endpoint: str,
    listing: Listing,
    missing: Sequence[RemoteFile],
    store: Store,
    headers: Mapping[str, str],
    patience: Patience,
    progress: Progress | None,
) -> None:
    """Fetches the files, some at a time. The first failure ends the others, which keep what they have."""
    if not missing:
        return
    stop = Event()
    base = f"{endpoint}/{listing.name}/resolve/{listing.commit}/"
    transfers = [
        Transfer(f, base + _quoted(f.name), store.part(f), listing.name, headers, patience, stop) for f in missing
    ]
    there = sum(_size(t.part) for t in transfers)
    total = sum(max(f.size, 0) for f in missing)

    def one(transfer: Transfer) -> None:
        if not stop.is_set():
            transfer.run()
            store.keep(listing.commit, transfer.file)

    pool = ThreadPoolExecutor(patience.at_once, "download")
    try:
        # The small files first: they say early whether the address serves files at all.
        pending: set[Future[None]] = {pool.submit(one, t) for t in sorted(transfers, key=lambda t: t.file.size)}
        while pending:
            done, pending = wait(pending, timeout=POLL, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            if progress is not None:
                progress(min(total, there + sum(t.received for t in transfers)), total)
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name)


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else 0


def _room(name: str, store: Store, missing: Sequence[RemoteFile]) -> None:
    place = os.path.abspath(store.place(""))
    folder = place
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    need = sum(max(f.size, 0) - _size(store.part(f)) for f in missing)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise NotDownloaded(
            f"{name}: {show_size(need)} are still to be downloaded and {folder} has {show_size(free)} free. Free some "
            "room there (`qlora-doctor clean` lists what can go), or take a folder on a larger disk",
            "no room",
        )


def show_size(count: int) -> str:
    """Bytes as a person reads them: `3.76 GiB`, `412 MiB`, `0.4 MiB`."""
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    return f"{count / 2**20:.0f} MiB" if count >= 10 * 2**20 else f"{count / 2**20:.1f} MiB"


def _failed(name: str, troubles: Sequence[tuple[str, Trouble]], offline: bool, token: Any) -> NotDownloaded:
    if offline or not troubles:
        return NotDownloaded(
            f"{name} is not in the cache, or not whole, and the Hub is not asked (offline): download it where there is "
            "a network (`qlora-doctor download`), or unset HF_HUB_OFFLINE",
            "offline",
        )
    lines = [t.said(e) for e, t in troubles]
    first = troubles[0][1]
    where = " ".join(lines) if len(lines) == 1 else "\n" + "\n".join(f"  {line}" for line in lines) + "\n "
    if first.cause in ANSWERS:
        way = _WAYS.get(first.cause, "")
        if first.cause in ("gated", "not found") and troubles[0][0] != DEFAULT_ENDPOINT and not token:
            way = f"{way} A token that is kept here was not sent, because {redact(troubles[0][0])} is not the Hub's own address."
        return NotDownloaded(
            f"{name} cannot be downloaded: {where} {way}".rstrip(), first.cause, tuple(t.cause for _, t in troubles)
        )
    return NotDownloaded(
        f"{name} is not in the cache, and cannot be downloaded: {where}. Give a folder, or another address: endpoint= or "
        "--endpoint, or mirrors in your settings (`qlora-doctor check --model` says more). What has arrived is kept, and "
        "the next attempt goes on there",
        first.cause,
        tuple(t.cause for _, t in troubles),
    )


_WAYS = {
    "not found": "Check the name.",
    "no revision": "Check the revision.",
    "gated": "With a token that was given the right, the download goes on.",
    "bad token": "",
}
