"""What a load did: every change, every default, the proof and the time."""

from __future__ import annotations

import html
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from qlora_core.verify import Verification


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that was done other than asked, or chosen where nothing was asked.

    `code` is a check's code (`QD101`) or the name of one of the loader's own steps (`pad-token`); either can be
    switched off with `fixes={code: False}`.
    """

    code: str
    argument: str
    before: str
    after: str
    why: str

    def __str__(self) -> str:
        return f"{self.code}: {self.argument} {self.before} -> {self.after} ({self.why})"


@dataclass(slots=True)
class LoadReport:
    """The account of one load. `seconds` is the time of each phase; `to_dict` gives JSON data."""

    model: str
    family: str = ""
    bits: int = 4
    dtype: str = ""
    device: str = ""
    changes: list[Change] = field(default_factory=list)
    defaults: list[Change] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    verification: Verification | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of the block to `seconds[name]`."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

    def __str__(self) -> str:
        lines = [f"{self.model}: {self.family or 'unknown family'}, {self.bits}-bit, {self.dtype} on {self.device}"]
        lines += [f"  changed  {change}" for change in self.changes]
        lines += [f"  chosen   {c.argument}: {c.after} ({c.why})" for c in self.defaults]
        lines += [f"  warning  {text}" for text in self.warnings]
        if self.verification is not None:
            lines += [f"  verified {line}" for line in self.verification.lines()]
        times = ", ".join(f"{name} {value:.2f}" for name, value in self.seconds.items())
        return "\n".join([*lines, f"  seconds  {times}"])

    def to_dict(self) -> dict[str, Any]:
        """JSON data of the whole report."""
        rows = {
            name: [{f: getattr(c, f) for f in Change.__dataclass_fields__} for c in getattr(self, name)]
            for name in ("changes", "defaults")
        }
        return {
            "model": self.model,
            "family": self.family,
            "bits": self.bits,
            "dtype": self.dtype,
            "device": self.device,
            **rows,
            "warnings": list(self.warnings),
            "verification": None if self.verification is None else self.verification.to_dict(),
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
        }

    def _repr_html_(self) -> str:
        """The report in a notebook."""
        cells = "".join(
            f"<tr><td>{kind}</td>" + "".join(f"<td>{html.escape(v)}</td>" for v in row) + "</tr>"
            for kind, rows in (("changed", self.changes), ("chosen", self.defaults))
            for row in ((c.code, c.argument, c.before, c.after, c.why) for c in rows)
        )
        head = "".join(f"<th>{name}</th>" for name in ("", "code", "argument", "before", "after", "why"))
        notes = [*(f"warning: {w}" for w in self.warnings), *(self.verification.lines() if self.verification else ())]
        body = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
        title = html.escape(f"{self.model}: {self.family}, {self.bits}-bit, {self.dtype} on {self.device}")
        return f"<p><b>{title}</b></p><table><tr>{head}</tr>{cells}</table><ul>{body}</ul>"
