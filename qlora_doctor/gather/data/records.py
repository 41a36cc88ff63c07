"""Text as records: JSONL, JSON, CSV and TSV, each record with its number as the user counts. No record is dropped unsaid."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from qlora_doctor.facts import RowFault
from qlora_doctor.gather.data.encodings import BadFile, Decoded, read_text
from qlora_doctor.gather.data.markdown import questions_and_answers

TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".md", ".markdown")
_LISTS = ("data", "train", "rows", "examples", "instances", "items", "dataset", "conversations")


@dataclass(slots=True)
class Records:
    """The records of one file: `(number, record)`. `format` is set where the kind of file says it (`qa-markdown`)."""

    file: str
    items: list[tuple[int, Any]] = field(default_factory=list)
    faults: list[RowFault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    encoding: str = ""
    format: str = ""

    def fault(self, row: int, detail: str, field: str = "", kind: str = "malformed") -> None:
        self.faults.append(RowFault(kind, self.file, row, field, detail))


def read_records(path: str, name: str = "") -> Records:
    """The records of a text file of data; `name` is how messages call it.

    Raises:
        BadFile: nothing of it can be read.
    """
    name = name or path
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in TEXT_SUFFIXES:
        raise BadFile(
            name, f"a {suffix or 'nameless'} file is no data; {', '.join(TEXT_SUFFIXES)} and .parquet are read"
        )
    try:
        decoded = read_text(path)
    except BadFile as error:
        raise BadFile(name, error.reason) from None
    records = Records(name, encoding=decoded.encoding)
    if suffix in (".md", ".markdown"):
        records.format = "qa-markdown"
        records.items, faults = questions_and_answers(decoded.text)
        for row, detail in faults:
            records.fault(row, detail)
    elif suffix in (".csv", ".tsv"):
        _csv(decoded, records, "\t" if suffix == ".tsv" else "")
    elif _is_list(decoded.text) or (suffix == ".json" and not _is_jsonl(decoded.text)):
        _json(decoded, records, suffix)
    else:
        _jsonl(decoded, records, suffix)
    return records


def _is_list(text: str) -> bool:
    return text.lstrip()[:1] == "["


def _is_jsonl(text: str) -> bool:
    """Whether a .json file holds an object a line: its first line is a whole object, and another follows."""
    first, _, rest = text.lstrip().partition("\n")
    try:
        return isinstance(json.loads(first), dict) and rest.lstrip()[:1] == "{"
    except (ValueError, RecursionError):
        return False


def _jsonl(decoded: Decoded, records: Records, suffix: str) -> None:
    if suffix == ".json":
        records.notes.append(f"{records.file} is named .json and holds an object a line; it was read as JSONL")
    # Not splitlines(): U+2028 and its like are legal inside a JSON string, and no line ends there.
    for number, raw in enumerate(decoded.text.split("\n"), 1):
        line = raw.strip()
        if not line:
            continue
        if number in decoded.damaged:
            records.fault(number, "its bytes are not UTF-8, while other lines are; save the file anew as UTF-8")
            continue
        try:
            records.items.append((number, json.loads(line)))
        except RecursionError:
            records.fault(number, "it is nested too deep")
        except ValueError as error:
            records.fault(number, _why_no_json(line, error))


def _why_no_json(line: str, error: ValueError) -> str:
    column = getattr(error, "colno", 0)
    what = getattr(error, "msg", str(error))
    if line in ("{", "}", "[", "]", "},") or line.startswith('"'):
        return "it is a part of a JSON value; JSONL has one whole object on each line. If the file is one JSON list, name it .json"
    if line.startswith("{'"):
        return "it is a Python dict, not JSON; write it with json.dumps"
    if line.endswith("},"):
        return "it ends in a comma; JSONL has no commas between its lines"
    return f"it is not JSON: {what[:1].lower()}{what[1:]} at column {column}"


def _json(decoded: Decoded, records: Records, suffix: str) -> None:
    if decoded.damaged:
        raise BadFile(
            records.file, f"line {min(decoded.damaged)} is not UTF-8, while others are; save it anew as UTF-8"
        )
    if suffix in (".jsonl", ".ndjson"):
        records.notes.append(f"{records.file} is named {suffix} and holds one JSON list; it was read as JSON")
    try:
        data = json.loads(decoded.text)
    except RecursionError:
        raise BadFile(records.file, "it is nested too deep to be data") from None
    except ValueError as error:
        line, column = getattr(error, "lineno", 0), getattr(error, "colno", 0)
        what = getattr(error, "msg", str(error))
        cut = (
            " The file ends before its list does: it was cut off."
            if not decoded.text.rstrip().endswith(("]", "}"))
            else ""
        )
        raise BadFile(records.file, f"line {line}, column {column}: it is not JSON: {what}.{cut}") from None
    if isinstance(data, dict):
        data = _inside(data, records)
    if not isinstance(data, list):
        raise BadFile(records.file, "it holds a single value; data is a list of objects, or an object a line")
    records.items = list(enumerate(data, 1))


def _inside(data: dict[str, Any], records: Records) -> Any:
    """The list of rows in an object that wraps it; an object of equally long columns becomes its rows."""
    lists = {key: value for key, value in data.items() if isinstance(value, list) and value}
    rows = {key: value for key, value in lists.items() if isinstance(value[0], dict)}
    if "messages" in rows or ("conversations" in rows and "from" in rows["conversations"][0]):
        return [data]
    named = next((key for key in _LISTS if key in rows), "") or (next(iter(rows)) if len(rows) == 1 else "")
    if named:
        records.notes.append(f"the rows of {records.file} are those under {named!r}")
        return data[named]
    if lists and len(lists) == len(data) and len({len(v) for v in lists.values()}) == 1:
        records.notes.append(f"{records.file} holds columns; they were read as rows")
        return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    if rows or any(isinstance(v, dict) for v in data.values()):
        names = ", ".join(list(data)[:6])
        raise BadFile(
            records.file,
            f"it is an object with the keys {names}, and none is known to hold the rows; save the list alone",
        )
    return [data]


def _csv(decoded: Decoded, records: Records, delimiter: str) -> None:
    text = decoded.text
    first = text.split("\n", 1)[0]
    delimiter = delimiter or max(",;\t|", key=first.count)
    if delimiter != "," and not records.file.lower().endswith(".tsv"):
        records.notes.append(f"the columns of {records.file} are separated by {delimiter!r}")
    limit = csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long answer
    try:
        header: list[str] = []
        for number, cells in _csv_lines(text, delimiter, records):
            if not header:
                header = [cell.strip() for cell in cells]
                _refuse_header(header, records.file)
                continue
            if not any(cell.strip() for cell in cells):
                continue
            if decoded.damaged & set(range(number, number + 1)):
                records.fault(number, "its bytes are not UTF-8, while other lines are; save the file anew as UTF-8")
            elif len(cells) != len(header):
                records.fault(
                    number,
                    f"it has {len(cells)} columns and the header has {len(header)}; put text with {delimiter!r} in "
                    'double quotes (" inside is written "")',
                )
            else:
                records.items.append((number, {k: _cell(v) for k, v in zip(header, cells, strict=True) if k}))
    finally:
        csv.field_size_limit(limit)


def _csv_lines(text: str, delimiter: str, records: Records) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line that it begins on. Strict: a quote that is never closed would swallow the rest of the file."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what = "a double quote opens and is never closed, so the rest of the file is one cell"
            records.fault(number, what if "unexpected end" in str(error) else f"it is not CSV: {error}")
            continue
        if cells:
            yield number, cells


def _refuse_header(header: list[str], file: str) -> None:
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise BadFile(file, f"its header names {', '.join(twice)} twice; rename one")
    if len(header) == 1 and len(header[0]) > 60:
        raise BadFile(file, "its first line is no header; the first line of a CSV names the columns")


def _cell(value: str) -> Any:
    """A cell; a list that was written as JSON (messages, images) is read back."""
    if value[:2] in ('["', "[{", "[ ") and value.rstrip().endswith("]"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
