"""How far a download is, in words."""

from __future__ import annotations

import io

from qlora_doctor.download.bar import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_line_that_is_written_anew() -> None:
    out = Terminal()
    bar = Bar("org/model", out)
    bar(0, 2**31)
    bar.written = 0.0
    bar(2**30, 2**31)
    bar.end()
    first, second = out.getvalue().rstrip().split("\r")[1:]
    assert first.startswith("org/model: 0.0 MiB of 2.00 GiB") and second.startswith("org/model: 1.00 GiB of 2.00 GiB")
    assert out.getvalue().endswith("\n") and out.getvalue().count("\n") == 1


def test_a_log_gets_a_line_now_and_then_and_not_one_each_time() -> None:
    out = io.StringIO()
    bar = Bar("org/model", out)
    for done in range(50):
        bar(done, 50)
    bar.end()
    assert len(out.getvalue().splitlines()) == 1
