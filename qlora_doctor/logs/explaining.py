"""`explain_errors`: an exception of the libraries arrives with its cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

MARK = "qlora-doctor:"


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
        # A load inside a training is explained once.
        told = any(str(note).startswith(MARK) for note in getattr(error, "__notes__", ()))
        note = "" if told else _note(error)
        if note and hasattr(error, "add_note"):
            error.add_note(note)
        raise


def _note(error: BaseException) -> str:
    import traceback

    from qlora_doctor.errors import QloraDoctorError
    from qlora_doctor.gather.interpreters import here
    from qlora_doctor.logs.diagnose import diagnose

    if isinstance(error, QloraDoctorError):
        return ""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        # Facts are read only for what is known at all: an unknown error must not wait for nvidia-smi.
        if not diagnose(text).diagnoses:
            return ""
        report = diagnose(text, here(("interpreter", "packages", "torch", "bitsandbytes", "gpus", "driver")))
    except QloraDoctorError:
        # Our own trouble must not take the place of theirs.
        return ""
    lines = []
    for found in report.diagnoses:
        word = "" if found.best.confidence == "sure" else f"{found.best.confidence}: "
        lines.append(f"{MARK} {word}{found.best.cause.says}. Fix: {found.best.cause.fix}")
    return "\n".join(lines)
