"""The differences between saved facts as CSV (RFC 4180), one row a difference."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from qlora_doctor.compare import Difference
from qlora_doctor.report.compare import names_of
from qlora_doctor.report.paper import visible

# A spreadsheet takes a cell that begins so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def render(paths: Sequence[str], differences: Sequence[Difference]) -> str:
    """The table as text: what differs, its rank (0 breaks runs first), the odd one out, and a column a file."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    names = names_of(paths)
    writer.writerow(["what", "rank", "odd", *map(cell, names)])
    for one in differences:
        odd = "" if one.odd is None else names[one.odd]
        writer.writerow([cell(one.what), one.rank, cell(odd), *map(cell, one.values)])
    return out.getvalue()


def cell(text: str) -> str:
    """Words in which no spreadsheet finds a formula."""
    words = visible(text)
    return "'" + words if words.startswith(_FORMULA) else words
