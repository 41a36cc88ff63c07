"""An exception of a cell, explained. What is not known stays without a word."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from qlora_doctor.api import Shown
from qlora_doctor.errors import QloraDoctorError
from qlora_doctor.gather.loaded import Stale, restart_note, stale_packages

if TYPE_CHECKING:
    from qlora_doctor.logs.diagnose import Diagnosis, Report
    from qlora_doctor.report.paper import Paper

PARTS = ("interpreter", "packages", "torch", "bitsandbytes", "gpus", "driver")


@dataclass(frozen=True, slots=True, repr=False)
class Explanation(Shown):
    """The diagnosis of an exception. `stale` are packages that its traceback runs through, replaced on disk since."""

    report: Report | None
    stale: tuple[Stale, ...] = ()

    def __str__(self) -> str:
        from qlora_doctor.report.columns import wrap
        from qlora_doctor.report.text import sanitized

        lines = []
        if self.stale:
            lines += wrap(f"qlora-doctor: {restart_note(self.stale)}", 100)
        for diagnosis in self.report.diagnoses if self.report else ():
            lines += [line for text in _said(diagnosis) for line in _indented(text)]
        return sanitized("\n".join(lines))

    def _paper(self) -> Paper:
        from dataclasses import replace

        from qlora_doctor.report.paper import Paper, Section
        from qlora_doctor.report.paper_log import of_log

        notes = (Section("First", (restart_note(self.stale),)),) if self.stale else ()
        if self.report is None:
            return Paper("diagnose", "this exception", "restart the kernel", "error", 1, sections=notes)
        paper = of_log(self.report, "-", 1)
        # The lines of a traceback that nobody wrote to a file have no numbers.
        entries = tuple(replace(e, where="") for e in paper.entries)
        return replace(paper, about="this exception", entries=entries, sections=(*notes, *paper.sections))


def _said(diagnosis: Diagnosis) -> list[str]:
    best = diagnosis.best
    word = "" if best.confidence == "sure" else f"{best.confidence}: "
    lines = [f"qlora-doctor: {word}{best.cause.says} [{best.cause.id}]"]
    lines += [f"  because: {'; '.join(best.why)}"] if best.why else []
    lines.append(f"  fix: {best.cause.fix}")
    for other in diagnosis.candidates[1:3]:
        lines += [f"  or: {other.cause.says} [{other.cause.id}]", f"    fix: {other.cause.fix}"]
    return lines


def _indented(text: str) -> list[str]:
    from qlora_doctor.report.columns import wrap

    lead = " " * (len(text) - len(text.lstrip()))
    return [lead + line for line in wrap(text.strip(), 100 - len(lead))]


def explain(error: Exception) -> Explanation | None:
    """What is known of an exception; None where nothing is, or where it says itself what is wrong."""
    if isinstance(error, QloraDoctorError) or _has_note(error):
        return None
    stale = _stale_in(error)
    report = _report(error)
    return Explanation(report, stale) if report is not None or stale else None


def _has_note(error: BaseException) -> bool:
    """Whether `explain_errors` has told it already."""
    from qlora_doctor.logs.explaining import MARK

    return any(str(note).startswith(MARK) for note in getattr(error, "__notes__", ()))


def _report(error: Exception) -> Report | None:
    from qlora_doctor.gather.interpreters import here
    from qlora_doctor.logs.diagnose import diagnose

    text = "".join(traceback.format_exception(error))
    try:
        # Facts are read only for what is known at all: a slip of the pen must not wait for nvidia-smi.
        if not diagnose(text).diagnoses:
            return None
        report = diagnose(text, here(PARTS))
    except QloraDoctorError:
        # Our own trouble must not take the place of theirs.
        return None
    return report if report.diagnoses else None


def _stale_in(error: BaseException) -> tuple[Stale, ...]:
    """The stale packages in which a frame of the exception, or of one that led to it, runs."""
    files = set(_files(error))
    return tuple(s for s in stale_packages() if any(f.startswith(s.folder) for f in files)) if files else ()


def _files(error: BaseException) -> list[str]:
    import os

    seen, found = set[int](), []
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        frame: TracebackType | None = current.__traceback__
        while frame is not None:
            found.append(os.path.realpath(frame.tb_frame.f_code.co_filename))
            frame = frame.tb_next
        current = current.__cause__ or current.__context__
    return found
