"""Reads a log of any size once: repeated lines are folded, and only lines with a telling word are kept.

Two lines that differ in their digits alone are one. What is left is few, whatever the size of the log, so what comes
after may look closely. Time is linear and memory bounded.
"""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from qlora_doctor.logs.trend import LossTrend
from qlora_doctor.logs.words import tokens

CHUNK = 1 << 20
LONGEST = 1 << 16  # a longer line is cut into pieces
KEPT = 6_000  # lines from the start, and as many from the end
SMALL = 2_000  # of a log with fewer lines everything is kept
TAIL = 200
REMEMBERED = 400_000
EXAMINED = 150_000  # so many different lines are looked at closely; after that only alarming ones
COUNTED = 64
SHORT = 24  # bytes a line, on average, of a block that may be chaff

_ANSI = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]{0,500}(?:\x07|\x1b\\)|\x1b[@-_]")
_DIGITS = bytes(48 if 48 <= c <= 57 else c for c in range(256))
_ALARMS = (
    b"Error",
    b"Exception",
    b"Traceback",
    b"atal",
    b"Killed",
    b"Interrupt",
    b"ERROR",
    b"error:",
    b"ailed",
    b"fault",
)
# Numbers that mean something: an exit code of 137 is not one of 139.
_TELLING_NUMBER = (b"xit", b"ignal", b"rrno", b"igsegv")
# What a launcher, a scheduler or a logger writes before the line itself.
_PREFIX = re.compile(
    r"^(?:\[?(?:rank|Rank)[ -]?\d+\]?[:>]?\s*|\[\d+,\d+\]<std(?:err|out)>:|\(\w+ pid=\d+[^)]*\)\s?|\d{1,4}: (?=\S)|[\w.-]+-\d+\s+\| )+"
)

# A shell's last words, right behind a progress bar.
_LAST_WORDS = ("Killed", "Segmentation fault", "Aborted", "Bus error")
_GLUED = re.compile(rf"(\d)({'|'.join(_LAST_WORDS)})")


@dataclass(slots=True)
class Line:
    """One line that may matter. `number` counts from 1; `count` is how often it (but for its digits) occurs."""

    number: int
    text: str
    count: int = 1


@dataclass(slots=True)
class Log:
    """What is left of a log."""

    first: list[Line] = field(default_factory=list)
    latest: deque[Line] = field(default_factory=lambda: deque(maxlen=KEPT))
    alarms: list[Line] = field(default_factory=list)
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))
    words: set[bytes] = field(default_factory=set)
    trends: tuple[str, ...] = ()
    total: int = 0
    size: int = 0

    @property
    def lines(self) -> list[Line]:
        """The lines that are kept, in their order."""
        return [*self.first, *self.latest]

    @property
    def last(self) -> str:
        """The last line with something on it, without a reader's own note such as `(no further output)`."""
        for text in reversed(self.tail):
            if text.strip() and not re.match(r"\s*\([^()]*\)\s*$", text):
                return text
        return ""


def clean(text: str) -> str:
    """A line without the prefix of its rank or job, and without trailing space."""
    prefix = _PREFIX.match(text)
    text = text[prefix.end() :].rstrip() if prefix else text.rstrip()
    return _GLUED.sub(r"\1 \2", text) if any(word in text for word in _LAST_WORDS) else text


def decode(raw: bytes) -> str:
    """A line as text: UTF-8, else GB18030 (Chinese logs), else with marks for what cannot be read."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        pass
    try:
        return raw.decode("gb18030")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace")


def read(stream: BinaryIO, wanted: frozenset[bytes], context: frozenset[bytes] = frozenset()) -> Log:
    """Reads `stream` to its end and keeps the lines that hold one of the `wanted` words, or look alarming.

    Of the words in `context` it only notes that they occur.
    """
    log = Log()
    folder = _Folder(log, wanted, context)
    carry = b""
    for data in _utf8(stream, log):
        if b"\r" in data:
            data = data.replace(b"\r", b"\n")
        data = carry + data
        end = data.rfind(b"\n")
        if end < 0:
            if len(data) <= LONGEST:
                carry = data
                continue
            end = len(data)
        carry = data[end + 1 :]
        folder.add(data[:end])
    if carry:
        folder.add(carry)
    folder.finish()
    log.trends = folder.loss.words()
    return log


def _utf8(stream: BinaryIO, log: Log) -> Iterator[bytes]:
    """The bytes of a stream in pieces; UTF-16 (which PowerShell writes) becomes UTF-8."""
    decoder = None
    first = True
    while piece := stream.read(CHUNK):
        log.size += len(piece)
        if first:
            first = False
            if piece[:2] in (b"\xff\xfe", b"\xfe\xff"):
                decoder = codecs.getincrementaldecoder("utf-16")("replace")
            elif piece[1:400:2].count(0) > len(piece[:400]) // 3:
                decoder = codecs.getincrementaldecoder("utf-16-le")("replace")
            elif piece.startswith(b"\xef\xbb\xbf"):
                piece = piece[3:]
        if decoder is not None:
            piece = decoder.decode(piece).encode("utf-8", "replace")
        yield piece


class _Folder:
    """The state of one reading."""

    def __init__(self, log: Log, wanted: frozenset[bytes], context: frozenset[bytes]) -> None:
        self.log = log
        self.wanted = wanted
        self.context = context
        self.examined = 0
        self.last: deque[bytes] = deque(maxlen=TAIL)
        self.seen: set[int] = set()
        self.watched: dict[int, Line] = {}
        self.loss = LossTrend()
        # Text is made of the lines that are left in the end, not of all that were kept for a while.
        self.first: list[tuple[Line, bytes]] = []
        self.latest: deque[tuple[Line, bytes]] = deque(maxlen=KEPT)
        self.alarms: list[tuple[Line, bytes]] = []

    def add(self, block: bytes) -> None:
        """Takes whole lines."""
        if b"\x1b" in block:
            block = _ANSI.sub(b"", block)
        if b"\0" in block:
            block = block.replace(b"\0", b"")
        if b"loss" in block:
            self.loss.add(block)
        raw = block.split(b"\n")
        if self._is_chaff(block, len(raw)):
            self._pass(raw)
            return
        if max(map(len, raw)) > LONGEST:
            raw = [line[i : i + LONGEST] for line in raw for i in range(0, max(len(line), 1), LONGEST)]
            block = b"\n".join(raw)
        keys = list(map(hash, block.translate(_DIGITS).split(b"\n")))
        self._exact(block, raw, keys)
        distinct = set(keys)
        self._count(distinct, keys)
        new = distinct - self.seen
        if len(self.seen) > REMEMBERED:
            self.seen.clear()
        self.seen |= new
        if new:
            self._keep(raw, keys, new)
        self._pass(raw)

    def _is_chaff(self, block: bytes, lines: int) -> bool:
        """Whether a block of very many short lines holds no word that matters, so that no line need be looked at."""
        return (
            lines * SHORT > len(block)
            and self.log.total >= SMALL
            and not any(mark in block for mark in _ALARMS)
            and tokens(block).isdisjoint(self.wanted | self.context)
        )

    def _pass(self, raw: list[bytes]) -> None:
        self.log.total += len(raw)
        self.last.extend(raw[-TAIL:])
        self.log.tail.extend(decode(line) for line in raw[-TAIL:] if line.strip())

    def _exact(self, block: bytes, raw: list[bytes], keys: list[int]) -> None:
        there = [mark for mark in _TELLING_NUMBER if mark in block]
        if sum(map(block.count, there)) < 50:
            for mark in there:
                at = block.find(mark)
                while at >= 0:
                    i = block.count(b"\n", 0, at)
                    keys[i] = hash(raw[i])
                    at = block.find(mark, at + 1)
            return
        for mark in there:
            for i, line in enumerate(raw):
                if mark in line:
                    keys[i] = hash(line)

    def _count(self, distinct: set[int], keys: list[int]) -> None:
        again = self.watched.keys() & distinct
        if len(again) < COUNTED:
            for key in again:
                self.watched[key].count += keys.count(key)

    def _keep(self, raw: list[bytes], keys: list[int], new: set[int]) -> None:
        fresh = []
        for i, key in enumerate(keys):
            if key in new:
                new.discard(key)
                fresh.append(i)
        small = self.log.total < SMALL
        tired = self.examined > EXAMINED
        text = b"\n".join([raw[i] for i in fresh])
        marks = [mark for mark in _ALARMS if mark in text]
        found = set() if tired else tokens(text) & (self.wanted | self.context)
        self.log.words |= found
        found &= self.wanted
        if not (found or small or marks):
            return
        self.examined += len(fresh) if found else 0
        for i in fresh:
            line = raw[i]
            alarm = False
            for mark in marks:
                if mark in line:
                    alarm = True
                    break
            if (alarm or small or (found and not tokens(line).isdisjoint(found))) and line.strip():
                self._hold(i, line, raw, keys, alarm, len(fresh))

    def _hold(self, i: int, line: bytes, raw: list[bytes], keys: list[int], alarm: bool, fresh: int) -> None:
        held = Line(self.log.total + i + 1, ""), line[:4000]
        (self.first if len(self.first) < KEPT else self.latest).append(held)
        if len(self.watched) < COUNTED * 50:
            self.watched[keys[i]] = held[0]
            held[0].count = keys.count(keys[i]) if fresh < 1000 else 1
        if alarm:
            self.alarms.append(held)
            if len(self.alarms) > KEPT:
                del self.alarms[KEPT // 2 : -KEPT // 4]

    def finish(self) -> None:
        """The last lines are looked at whatever stands in them: there a dying program says why."""
        known = {line.number for line, _ in [*self.latest, *self.first[-TAIL:]]}
        start = self.log.total - len(self.last) + 1
        for number, raw in enumerate(self.last, start):
            if number not in known and raw.strip() and (self.examined > EXAMINED):
                (self.first if len(self.first) < KEPT else self.latest).append((Line(number, ""), raw[:4000]))
        for line, raw in (*self.first, *self.latest, *self.alarms):
            if not line.text:
                line.text = clean(decode(raw))
        self.log.first = [line for line, _ in self.first]
        self.log.latest.extend(line for line, _ in self.latest)
        self.log.alarms = [line for line, _ in self.alarms]
