"""What rows show without a model: duplicates, leaks, damaged text, thoughts, images that are not there. Becomes `DataFacts`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from qlora_doctor.facts import DataFacts, RowFault
from qlora_doctor.gather.data.reading import read_files
from qlora_doctor.gather.data.rows import Image, Row, Rows

KEPT = 20  # of each kind so many faults are kept; the counts are of all
# Rows with one of these are not among the rows that are trained on.
FATAL = frozenset(
    ("unreadable", "malformed", "not text", "preference", "no answer", "placeholders", "image outside", "image address")
)  # fmt: skip
_THOUGHT = "<think>"
# The replacement character, GBK read as UTF-8 and back, and UTF-8 read as Latin-1.
_DAMAGED = re.compile("\ufffd|锟斤拷|烫烫烫|â€[™œ\u009d“”]|Ã[©¨¤¶¼±]|ï»¿")
_HEADS = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"RIFF")


def survey(rows: Rows, eval_rows: Rows | None = None, *, look_at_images: bool = True) -> DataFacts:
    """The facts of data as it was read. `look_at_images`: open each image file for its first bytes."""
    faults = [*rows.faults, *_repeated(rows), *_texts(rows)]
    if eval_rows is not None:
        faults += leaks(rows, eval_rows)
    if look_at_images:
        faults += images_on_disk(rows)
    bad = {(f.file, f.row) for f in rows.faults if f.kind in FATAL and f.row}
    return facts_of(
        faults,
        DataFacts(
            files=rows.files,
            format=rows.format,
            rows=len(rows) + len(bad),
            images=sum(len(row.images) for row in rows),
            eval_rows=len(eval_rows) if eval_rows is not None else 0,
            encodings=rows.encodings,
            notes=rows.notes,
        ),
    )


def facts_of(faults: Iterable[RowFault], facts: DataFacts) -> DataFacts:
    """The facts with these faults counted and the first of each kind kept, after those that it has."""
    from dataclasses import replace

    counts = dict(facts.counts)
    kept = list(facts.faults)
    held: dict[str, int] = {}
    seen: set[tuple[str, str, int]] = set()
    for fault in faults:
        key = (fault.kind, fault.file, fault.row)
        if key in seen:
            continue
        seen.add(key)
        counts[fault.kind] = counts.get(fault.kind, 0) + 1
        held[fault.kind] = held.get(fault.kind, 0) + 1
        if held[fault.kind] <= KEPT:
            kept.append(fault)
    return replace(facts, counts=counts, faults=tuple(kept))


def _key(row: Row, *, question: bool = False) -> int:
    """A number that two rows share when they say the same; of the question alone, all but the last answer."""
    messages = row.messages[:-1] if question else row.messages
    return hash(tuple((m.role, m.parts) if not m.images else (m.role, *map(_part, m.parts)) for m in messages))


def _part(part: str | Image) -> object:
    if isinstance(part, str):
        return part
    source = part.source
    return source if isinstance(source, (str, bytes)) else repr(getattr(source, "key", None) or id(source))


def _repeated(rows: Rows) -> list[RowFault]:
    """Rows that were there before, and questions that were answered otherwise before."""
    first: dict[int, Row] = {}
    asked: dict[int, Row] = {}
    faults = []
    for row in rows:
        key = _key(row)
        before = first.setdefault(key, row)
        if before is not row:
            faults.append(RowFault("duplicate", row.file, row.number, "", f"the same as {before.where}"))
            continue
        if len(row.messages) < 2:
            continue
        other = asked.setdefault(_key(row, question=True), row)
        if other is not row:
            detail = f"the question of {other.where} with another answer"
            faults.append(RowFault("contradiction", row.file, row.number, "", detail))
    return faults


def _texts(rows: Rows) -> list[RowFault]:
    faults = []
    for row in rows:
        for number, message in enumerate(row.messages, 1):
            text = message.text
            if not text.isascii() and _DAMAGED.search(text):
                detail = "it holds characters that a wrong encoding leaves behind"
                faults.append(RowFault("damaged text", row.file, row.number, f"turn {number}", detail))
                break
        if any(_THOUGHT in m.text for m in row.messages if m.role == "assistant"):
            faults.append(RowFault("thinking", row.file, row.number, "", "its answer holds <think>"))
    return faults


def leaks(rows: Rows, eval_rows: Rows) -> list[RowFault]:
    """Rows of the evaluation that are trained on too: word for word, or but for case, spaces and punctuation."""
    wanted = {_key(row): row for row in eval_rows}
    near = {_plain(row): row for row in eval_rows}
    faults = []
    for row in rows:
        other = wanted.get(_key(row))
        if other is not None:
            faults.append(RowFault("leak", row.file, row.number, "", f"the same as {other.where} of the evaluation"))
            continue
        other = near.get(_plain(row))
        if other is not None:
            detail = f"but for case and punctuation the same as {other.where} of the evaluation"
            faults.append(RowFault("near leak", row.file, row.number, "", detail))
    return faults


def _plain(row: Row) -> int:
    said = []
    for message in row.messages:
        text = unicodedata.normalize("NFKC", message.text).casefold()
        said.append((message.role, re.sub(r"[\W_]+", "", text), *(_part(image) for image in message.images)))
    return hash(tuple(said))


def images_on_disk(rows: Sequence[Row]) -> list[RowFault]:
    """Image files that are not there, or whose first bytes are of no image. Each file is looked at once."""
    seen: dict[str, tuple[str, str]] = {}
    faults = []
    for row in rows:
        for image in row.images:
            if not isinstance(image.source, str):
                continue
            if image.source not in seen:
                seen[image.source] = _look(image.source)
            kind, detail = seen[image.source]
            if kind:
                faults.append(RowFault(kind, row.file, row.number, "", f"{image.source}: {detail}"))
    return faults


def _look(path: str) -> tuple[str, str]:
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except (FileNotFoundError, NotADirectoryError):
        return "image missing", "there is no such file"
    except IsADirectoryError:
        return "image missing", "it is a folder"
    except (OSError, ValueError) as error:
        return "image missing", f"it cannot be opened ({getattr(error, 'strerror', None) or error})"
    if not head:
        return "image broken", "it is empty"
    if head.startswith(b"version https://git-lfs"):
        return "image broken", "it is a Git LFS pointer; run `git lfs pull`"
    if head.lstrip()[:9].lower() in (b"<!doctype", b"<html><he") or head.lstrip().lower().startswith(b"<html"):
        return "image broken", "it is a web page"
    if head.startswith(_HEADS) or b"ftyp" in head[:16] or not _is_text(head):
        return "", ""
    return "image broken", "it is a text file"


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in (9, 10, 13) for byte in head) and b"\x00" not in head


def read_survey(paths: Sequence[str]) -> DataFacts:
    """The facts of data files, without a model. Raises UsageError for a path that is not there."""
    return survey(read_files(paths))
