"""`explain_errors`: an exception of the libraries arrives with its cause."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def explain_errors() -> Iterator[None]:
    """Adds the diagnosis to an exception that leaves the block, as a note (Python 3.11; on 3.10 it is left as it is).

        with qlora_doctor.explain_errors():
            model = AutoModelForCausalLM.from_pretrained(...)

    The exception itself is not changed and goes on. Nothing is read before one is raised.
    """
    try:
        yield
    except Exception as error:
        note = _note(error)
        if note and hasattr(error, "add_note"):
            error.add_note(note)
        raise


def _note(error: BaseException) -> str:
    from qlora_doctor.errors import QloraDoctorError
    from qlora_doctor.gather.interpreters import here
    from qlora_doctor.logs.diagnose import diagnose

    if isinstance(error, QloraDoctorError):
        return ""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        report = diagnose(text, here(("interpreter", "packages", "torch", "bitsandbytes", "gpus", "driver")))
    except QloraDoctorError:
        # Our own trouble must not take the place of theirs.
        return ""
    lines = []
    for found in report.diagnoses:
        word = "" if found.best.confidence == "sure" else f"{found.best.confidence}: "
        lines.append(f"qlora-doctor: {word}{found.best.cause.says}. Fix: {found.best.cause.fix}")
    return "\n".join(lines)
