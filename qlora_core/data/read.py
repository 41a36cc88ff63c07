"""Any data as rows: files, folders, Parquet, a dataset of the Hub, a `datasets.Dataset`, a list of dictionaries."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_core.data.rows import Rows
from qlora_doctor.errors import UsageError
from qlora_doctor.facts import RowFault
from qlora_doctor.gather.data.encodings import BadFile
from qlora_doctor.gather.data.pictures import Folder
from qlora_doctor.gather.data.reading import read_files, refuse_format, rows_of
from qlora_doctor.gather.data.records import Records
from qlora_doctor.gather.data.rows import Row
from qlora_doctor.gather.data.survey import FATAL

SHOWN = 10


class BadData(UsageError):
    """Data with rows that cannot be used. `rows` holds what was read, `rows.faults` what is wrong, each with its row."""

    def __init__(self, message: str, rows: Rows) -> None:
        super().__init__(message)
        self.rows = rows


def read(
    data: Any,
    *,
    format: str | None = None,
    images: str | os.PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
) -> Rows:
    """The rows of `data`: a path, several, a folder, a name on the Hub, a `datasets.Dataset`, or a list of dictionaries.

    `format` is one of `qlora_doctor.gather.data.formats.FORMATS`; left out, it is recognised. `images` is the folder that
    image paths start from; left out, the folder of each file. `split` chooses in a Hub dataset, and in a folder with files
    such as `train.jsonl` and `val.jsonl`. `limit` reads so many rows and no more. Nothing of ours ever takes the place of
    the data that is named.

    Raises:
        BadData: rows that cannot be used, or none at all; names the first with file, row and field.
        UsageError: no such file, dataset, split or format.
    """
    return refuse_bad(look(data, format=format, images=images, split=split, limit=limit))


def look(
    data: Any,
    *,
    format: str | None = None,
    images: str | os.PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
) -> Rows:
    """As `read`, but bad rows are left out and told in `faults`; for the audit."""
    refuse_format(format)
    if limit is not None and limit < 1:
        raise UsageError(f"limit={limit} reads no row; give 1 or more, or leave it out")
    root = os.path.expanduser(os.fspath(images)) if images is not None else None
    if root is not None and not os.path.isdir(root):
        raise UsageError(f"images={root!r}: there is no such folder")
    if isinstance(data, Rows):
        return data
    if isinstance(data, (str, os.PathLike)):
        data = [data]
    if isinstance(data, Sequence) and data and all(isinstance(d, (str, os.PathLike)) for d in data):
        return _named([os.path.expanduser(os.fspath(d)) for d in data], format, root, split, limit)
    if type(data).__module__.partition(".")[0] == "datasets":
        return _dataset(data, format, root, split, limit, "the dataset", absolute=True)
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, Mapping)):
        records = Records("the list", list(enumerate(data, 1)))
        return _rows(records, format, Folder(root or os.curdir), limit)
    raise UsageError(
        f"data is {type(data).__name__}; give a path, a folder, a name on the Hub, a datasets.Dataset or a list of dictionaries"
    )


def refuse_bad(rows: Rows) -> Rows:
    """The rows, where every row of the data could be used. Raises BadData with the first that could not."""
    bad = [fault for fault in rows.faults if fault.kind in FATAL]
    if not bad and len(rows):
        return rows
    if not bad:
        raise BadData("the data holds no row; nothing can be learned from it", rows)
    lines = [f"  {fault.where}: {fault.detail}" for fault in bad[:SHOWN]]
    more = [f"  and {len(bad) - SHOWN} more; `qlora-core data` lists them by kind"] if len(bad) > SHOWN else []
    total = len(rows) + len({(f.file, f.row) for f in bad})
    head = f"{len(bad)} of {total} rows cannot be used; mend them or take them out:"
    if all(not fault.row for fault in bad):
        head = "the data cannot be read:"
    raise BadData("\n".join([head, *lines, *more]), rows)


def _named(paths: Sequence[str], format: str | None, images: str | None, split: str, limit: int | None) -> Rows:
    if len(paths) == 1 and os.path.isdir(paths[0]) and _saved_by_datasets(paths[0]):
        import datasets

        return _dataset(datasets.load_from_disk(paths[0]), format, images, split, limit, paths[0], absolute=True)
    missing = [path for path in paths if not os.path.exists(path)]
    if not missing:
        readers = {".parquet": _parquet, ".arrow": _parquet}
        return read_files(paths, format=format, images=images, split=split, limit=limit, readers=readers)
    if len(paths) > 1 or not _may_be_on_the_hub(paths[0]):
        raise UsageError(f"{missing[0]}: there is no such file or folder{_near(missing[0])}")
    return _from_hub(paths[0], format, images, split, limit)


def _may_be_on_the_hub(name: str) -> bool:
    from qlora_doctor.gather.data.records import TEXT_SUFFIXES

    if name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1:
        return False
    return not name.lower().endswith((*TEXT_SUFFIXES, ".parquet", ".arrow", ".txt"))


def _near(path: str) -> str:
    import difflib

    folder, base = os.path.split(path)
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return ""
    near = difflib.get_close_matches(base, names, 1)
    return f"; did you mean {os.path.join(folder, near[0])}?" if near else ""


def _saved_by_datasets(folder: str) -> bool:
    return any((Path(folder) / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _from_hub(name: str, format: str | None, images: str | None, split: str, limit: int | None) -> Rows:
    try:
        import datasets
    except ModuleNotFoundError:
        raise UsageError(
            f"{name}: there is no such file, and reading it from the Hub needs `pip install datasets`"
        ) from None
    try:
        found = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{name}: there is no such file here, and the Hub gives no dataset of this name and split {split!r}: {first}"
        ) from error
    return _dataset(found, format, images, split, limit, name, absolute=False)


def _dataset(
    data: Any, format: str | None, images: str | None, split: str, limit: int | None, name: str, *, absolute: bool
) -> Rows:
    """The rows of a `datasets.Dataset`. Images stay where they are until they are wanted."""
    if hasattr(data, "keys") and not hasattr(data, "features"):
        if split not in data:
            raise UsageError(f"{name} has no split {split!r}; it has {', '.join(map(str, data))}")
        data = data[split]
    if not hasattr(data, "__len__"):
        raise UsageError(f"{name} is a streamed dataset; load it whole, or save it as Parquet and name the file")
    from qlora_core.data.images import picture_columns, stored

    columns = picture_columns(data)
    if limit is not None and limit < len(data):
        data = data.select(range(limit))
    text = data.remove_columns(list(columns)) if columns else data
    records = Records(name if name == "the dataset" else f"{name} [{split}]")
    for index, record in enumerate(text):
        for column in columns:
            record[column] = stored(columns[column], index)
        records.items.append((index + 1, {k: v for k, v in record.items() if v is not None}))
    return _rows(records, format, Folder(images or os.curdir, absolute), limit)


def _rows(records: Records, format: str | None, folder: Folder, limit: int | None) -> Rows:
    rows: list[Row] = []
    faults: list[RowFault] = []
    notes: list[str] = []
    form = rows_of(records, format, folder, limit, rows, faults, notes)
    return Rows(tuple(rows), form, (records.file,), tuple(dict.fromkeys(notes)), tuple(faults))


def _parquet(path: str, name: str) -> Records:
    """The records of a Parquet or Arrow file."""
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ModuleNotFoundError:
        raise BadFile(name, "reading it needs `pip install pyarrow`") from None
    try:
        if path.lower().endswith(".parquet"):
            table = parquet.read_table(path)
        else:
            with pyarrow.memory_map(path) as source:
                table = _arrow(ipc, source)
    except (OSError, pyarrow.ArrowException) as error:
        raise BadFile(name, f"it cannot be read: {str(error).splitlines()[0]}") from None
    items = [(n, {k: v for k, v in r.items() if v is not None}) for n, r in enumerate(table.to_pylist(), 1)]
    return Records(name, items)


def _arrow(ipc: Any, source: Any) -> Any:
    import pyarrow

    try:
        return ipc.open_stream(source).read_all()
    except pyarrow.ArrowInvalid:
        source.seek(0)
        return ipc.open_file(source).read_all()
