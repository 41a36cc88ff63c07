"""What the doctor is doing just now, for whoever shows it to a person who waits.

    with stage("asking the Hub"):
        ...

Nothing is shown unless somebody listens (the command line on a terminal). A stage must not print or ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_listener: Callable[[str], None] | None = None
_now = ""


def listen(listener: Callable[[str], None] | None) -> None:
    """Tells `listener` each stage as it begins, and "" when the last has ended. One listener; None for none."""
    global _listener, _now
    _listener, _now = listener, ""


@contextmanager
def stage(title: str) -> Iterator[None]:
    """Says that what follows is done just now. Stages may lie within each other; the inner one is told."""
    outer = _now
    _tell(title)
    try:
        yield
    finally:
        _tell(outer)


def _tell(title: str) -> None:
    global _now
    _now = title
    if _listener is not None:
        _listener(title)
