"""One file, from the first byte to its hash: resumed where it stopped, started again where it stalls."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from threading import Event, Lock, Thread

from qlora_doctor.download.client import Answer, opened
from qlora_doctor.download.listing import RemoteFile, refuse
from qlora_doctor.download.patience import Patience
from qlora_doctor.download.problem import Trouble

TICK = 0.05
BLOCK = 2**22
# The most of a file whose size nobody says: mirrors send small text files so.
NO_SIZE = 2**26


@dataclass(slots=True)
class Transfer:
    """One file on its way. `received` counts the bytes that arrived in this process, for the watch and the progress."""

    file: RemoteFile
    url: str
    part: str
    name: str
    headers: Mapping[str, str]
    patience: Patience
    stop: Event
    received: int = 0
    lock: Lock = field(default_factory=Lock)

    def run(self) -> None:
        """Fills `part` until it is whole and its hash is right.

        Raises:
            Trouble: it cannot be had; what is left of `part` is a sound beginning, or it is gone.
            OSError: it cannot be written.
        """
        os.makedirs(os.path.dirname(self.part), exist_ok=True)
        failures = rotten = 0
        while not self._whole():
            before = self.received
            try:
                self._attempt()
                if self._whole():
                    break
                raise Trouble("truncated", f"{self.file.name} ended after {_size(self.part)} of {self.file.size} bytes")
            except Trouble as trouble:
                brought = self.received - before >= self.patience.floor * self.patience.stall
                failures = 1 if brought else failures + 1
                if trouble.cause.startswith("too"):
                    _remove(self.part)
                wait = trouble.retry_after or 0.0
                last = failures >= self.patience.attempts or wait > self.patience.longest
                if not trouble.transient or last or self.stop.is_set():
                    raise
                self.stop.wait(max(wait, self.patience.pause(failures)))
        while (problem := wrong_hash(self.part, self.file)) is not None:
            _remove(self.part)
            rotten += 1
            if rotten > 1 or self.stop.is_set():
                raise problem
            self._attempt()
            if not self._whole():
                raise Trouble("truncated", f"{self.file.name} ended after {_size(self.part)} of {self.file.size} bytes")

    def _whole(self) -> bool:
        return self.file.size >= 0 and _size(self.part) == self.file.size

    def _attempt(self) -> None:
        """One request, watched: less than the floor for as long as the stall ends it."""
        given_up = Event()
        errors: list[BaseException] = []
        start = _size(self.part)
        if start > self.file.size >= 0:
            _remove(self.part)
            start = 0

        def pump() -> None:
            try:
                self._receive(max(start, 0), given_up)
            except BaseException as error:  # noqa: BLE001 - raised again where the transfer is watched
                errors.append(error)

        thread = Thread(target=pump, name=f"download {self.file.name}", daemon=True)
        thread.start()
        mark, since = self.received, time.monotonic()
        while thread.is_alive():
            thread.join(TICK)
            now = time.monotonic()
            if self.stop.is_set() or now - since >= self.patience.stall:
                came = self.received - mark
                if self.stop.is_set() or came < self.patience.floor * self.patience.stall:
                    with self.lock:
                        given_up.set()
                    if errors:
                        break
                    raise Trouble("stalled", f"{self.file.name}: {came} bytes in {now - since:.0f} s")
                mark, since = self.received, now
        if errors:
            raise errors[0]

    def _receive(self, start: int, given_up: Event) -> None:
        ranged = {"Range": f"bytes={start}-"} if start else {}
        timeout = max(1.0, min(self.patience.stall, 30.0))
        with opened(self.url, {**self.headers, **ranged}, timeout) as answer:
            if answer.status == 416:
                _remove(self.part)
                raise Trouble("truncated", f"{self.file.name}: the part that was here is not of this file")
            if answer.status not in (200, 206):
                _refuse_file(self.file, answer)
                refuse(answer, self.name, None, self.headers)
            _refuse_page(self.file, answer)
            start = start if answer.status == 206 and _begins_at(answer, start) else 0
            limit = self._limit(answer, start)
            with open(self.part, "r+b" if start else "wb") as out:
                out.seek(start)
                out.truncate()
                for chunk in answer.chunks:
                    with self.lock:
                        if given_up.is_set():
                            return
                        out.write(chunk)
                        self.received += len(chunk)
                    if out.tell() > limit:
                        raise Trouble("too long", f"{self.file.name} is longer than {limit} bytes")
                length = out.tell()
        if self.file.size < 0:
            self._take_size(answer, start, length)

    def _limit(self, answer: Answer, start: int) -> int:
        """The most bytes that are taken: a server that sends without end must not fill the disk."""
        said = answer.headers.get("content-length", "")
        return self.file.size if self.file.size >= 0 else start + int(said) if said.isdigit() else NO_SIZE

    def _take_size(self, answer: Answer, start: int, length: int) -> None:
        """The size of a file whose listing names none: what the server announced, else what came."""
        said = answer.headers.get("content-length", "")
        size = start + int(said) if said.isdigit() else length
        self.file = replace(self.file, size=size)


def _begins_at(answer: Answer, start: int) -> bool:
    found = re.match(r"bytes (\d+)-", answer.headers.get("content-range", ""))
    if found is None or int(found[1]) != start:
        raise Trouble("truncated", f"asked for the bytes from {start} on, and got others")
    return True


def _refuse_file(file: RemoteFile, answer: Answer) -> None:
    """Raises Trouble where the repository could be listed, and this file of it is not there."""
    code = answer.headers.get("x-error-code", "")
    if answer.status == 404 or (answer.status == 401 and code != "GatedRepo"):
        raise Trouble("no file", f"it lists {file.name} and does not have it (http {answer.status})", host=answer.host)


def _refuse_page(file: RemoteFile, answer: Answer) -> None:
    kind = answer.headers.get("content-type", "")
    if kind.startswith("text/html") and not file.name.endswith((".html", ".htm")):
        raise Trouble("not json", f"{file.name} came as a web page", host=answer.host)


def wrong_hash(path: str, file: RemoteFile, progress: Callable[[int], None] | None = None) -> Trouble | None:
    """What is wrong with the bytes of `path`, held against what the Hub says of the file; None where nothing is."""
    size = _size(path)
    if file.size >= 0 and size != file.size:
        return Trouble("truncated", f"{file.name} has {size} bytes instead of {file.size}")
    if not file.sha256 and not file.blob:
        return None
    made = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with open(path, "rb") as opened_file:
        while block := opened_file.read(BLOCK):
            made.update(block)
    if made.hexdigest() == (file.sha256 or file.blob):
        return None
    return Trouble("hash", f"{file.name}: {made.hexdigest()[:12]}... instead of {(file.sha256 or file.blob)[:12]}...")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1 if not os.path.lexists(path) else 0


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
