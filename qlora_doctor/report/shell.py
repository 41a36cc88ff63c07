"""Words as this machine's shell takes them, for the commands that are printed to be copied."""

from __future__ import annotations

import os
from collections.abc import Sequence


def command_line(words: Sequence[str], windows: bool = os.name == "nt") -> str:
    r"""The words as one line: `qlora-doctor check 'my run.py'`; on Windows `qlora-doctor check "C:\my run.py"`."""
    if windows:
        from subprocess import list2cmdline

        return list2cmdline(words)
    from shlex import join

    return join(words)
