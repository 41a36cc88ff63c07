"""Files and folders of data as rows, all that is wrong named by file and row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from qlora_doctor.errors import UsageError
from qlora_doctor.facts import RowFault
from qlora_doctor.gather.data.convert import QUIET, convert
from qlora_doctor.gather.data.encodings import BadFile, read_text
from qlora_doctor.gather.data.formats import FORMATS, USED, majority, unknown
from qlora_doctor.gather.data.markdown import is_questions_and_answers
from qlora_doctor.gather.data.pictures import BadRow, Folder
from qlora_doctor.gather.data.records import TEXT_SUFFIXES, Records, read_records
from qlora_doctor.gather.data.rows import Row, Rows

Reader = Callable[[str, str], Records]
SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "heldout"),
}
# Files that lie beside data and are none.
_BESIDE = frozenset(
    (
        "dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "config.json", "package.json",
        "tsconfig.json", "run.json", "deepspeed.json", "ds_config.json", "readme.md", "license.md", "changelog.md",
    )
)  # fmt: skip
_SAMPLE = 100


def read_files(
    paths: Sequence[str],
    *,
    format: str | None = None,
    images: str | None = None,
    split: str = "train",
    limit: int | None = None,
    readers: Mapping[str, Reader] | None = None,
) -> Rows:
    """The rows of data files, or of the files of this split in a folder. Bad rows are in `faults`, not among the rows.

    `format` is a key of FORMATS for all the files; left out, each file's own is recognised. `images` is the folder that
    image paths start from; left out, that of each file. `readers` read more kinds of files, by their suffix.

    Raises:
        UsageError: a path that is not there, a folder without data, a format that does not exist.
    """
    refuse_format(format)
    notes: list[str] = []
    files = [name for path in paths for name in _files(path, split, notes, readers or {})]
    files = list(dict.fromkeys(files))
    names = _names(files)
    rows: list[Row] = []
    faults: list[RowFault] = []
    formats: list[str] = []
    encodings: dict[str, str] = {}
    for file in files:
        left = None if limit is None else limit - len(rows)
        if left is not None and left <= 0:
            break
        suffix = os.path.splitext(file)[1].lower()
        try:
            records = (readers or {}).get(suffix, read_records)(file, names[file])
        except BadFile as error:
            faults.append(RowFault("unreadable", names[file], detail=error.reason))
            continue
        folder = Folder(images or os.path.dirname(file) or ".")
        form = rows_of(records, format, folder, left, rows, faults, notes)
        if form and form not in formats:
            formats.append(form)
        if records.encoding:
            encodings[names[file]] = records.encoding
    if len(formats) > 1:
        notes.append(f"the files are of {len(formats)} formats: {', '.join(formats)}; each was read as its own")
    return Rows(tuple(rows), " + ".join(formats), tuple(files), tuple(dict.fromkeys(notes)), tuple(faults), encodings)


def refuse_format(format: str | None) -> None:
    """Raises UsageError for a format that does not exist."""
    if format is None or format in FORMATS:
        return
    import difflib

    near = difflib.get_close_matches(format, FORMATS, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"format={format!r} does not exist; {hint}Known are {', '.join(FORMATS)}")


def rows_of(
    records: Records,
    format: str | None,
    folder: Folder,
    limit: int | None,
    rows: list[Row],
    faults: list[RowFault],
    notes: list[str],
) -> str:
    """Puts the rows of one file into `rows` and its faults into `faults`; gives the format back, "" where there is none."""
    notes += records.notes
    first = len(faults)
    faults += records.faults
    form = format or records.format or majority(record for _, record in records.items[:_SAMPLE])
    if not records.items:
        if not records.faults:
            faults.append(RowFault("unreadable", records.file, detail="it holds no row"))
        return form
    if not form:
        number, record = records.items[0]
        faults.append(RowFault("unreadable", records.file, detail=f"row {number}: {unknown(record)}"))
        return ""
    preferences = form == "preference"
    if preferences:  # each row says so itself, before any converter sees it
        form = "alpaca"
    ignored: dict[str, None] = {}
    used = USED[form]
    for number, record in records.items if limit is None else records.items[:limit]:
        try:
            row, doubts = convert(record, form, folder)
        except BadRow as bad:
            faults.append(RowFault(bad.kind, records.file, number, bad.field, bad.detail))
            continue
        rows.append(Row(row.messages, records.file, number))
        for kind, field, detail in doubts:
            faults.append(RowFault(kind, records.file, number, field, detail))
        for key in record:
            if key not in used and key not in QUIET:
                ignored[str(key)[:40]] = None
    faults[first:] = sorted(faults[first:], key=lambda fault: fault.row)
    if ignored:
        notes.append(f"these fields of {records.file} are not used: {', '.join(list(ignored)[:8])}")
    return "" if preferences else form


def _files(path: str, split: str, notes: list[str], readers: Mapping[str, Reader]) -> Iterator[str]:
    known = (*TEXT_SUFFIXES, *readers)
    if os.path.isfile(path):
        yield path
        return
    if not os.path.isdir(path):
        raise UsageError(f"{path}: there is no such file or folder")
    found = [name for name in _walk(path) if name.lower().endswith(known) and _is_data(name)]
    chosen = [name for name in found if _split_of(name) in (split, "")]
    if any(_split_of(name) == split for name in found):
        chosen = [name for name in chosen if _split_of(name) == split]
    left = [os.path.relpath(name, path) for name in found if name not in chosen]
    if left:
        notes.append(f"of {path} only the files of the split {split!r} were read; left out: {', '.join(left[:6])}")
    if not chosen:
        what = f"no file of the split {split!r}" if found else f"no data ({', '.join(known)})"
        raise UsageError(f"{path}: it holds {what}; name the files themselves")
    yield from chosen


def _walk(path: str) -> Iterator[str]:
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__")))
        yield from (os.path.join(folder, name) for name in sorted(names) if not name.startswith("."))


def _is_data(name: str) -> bool:
    base = os.path.basename(name).lower()
    if base in _BESIDE:
        return False
    if not base.endswith((".md", ".markdown")):
        return True
    try:
        return is_questions_and_answers(read_text(name).text)
    except BadFile:
        return False


def _split_of(name: str) -> str:
    """The split that a file's name says, as `train-00000-of-00001.parquet` or `val.jsonl` do; "" for none."""
    stem = os.path.basename(name).lower()
    words = stem.replace("-", " ").replace("_", " ").replace(".", " ").split()
    return next((split for split, names in SPLITS.items() if any(word in names for word in words)), "")


def _names(files: Sequence[str]) -> dict[str, str]:
    """What each file is called in messages: its own name, or its whole path where two have one name."""
    bases = [os.path.basename(file) for file in files]
    return {file: base if bases.count(base) == 1 else file for file, base in zip(files, bases, strict=True)}
