"""qlora-doctor diagnose"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, BinaryIO, cast

import click

from qlora_doctor.cli.options import FACTS, MODEL, OUTPUT, PYTHON, STYLES, format_option, terminal_columns
from qlora_doctor.errors import UsageError

if TYPE_CHECKING:
    from qlora_doctor.facts import Facts
    from qlora_doctor.report.paper import Curve, Paper
    from qlora_doctor.source import Script

PARTS = ("interpreter", "packages", "torch", "bitsandbytes", "gpus", "driver", "host", "environ")


@click.command("diagnose")
@click.argument("log", default="-", metavar="[LOG|-]")
@FACTS
@PYTHON
@MODEL
@click.option("--script", default="", metavar="FILE", help="The script that wrote the log.")
@click.option("--exit-code", type=int, default=None, metavar="N", help="How the run ended (139, -9, ...).")
@click.option("--adapter", default="", metavar="DIR", help="Look at a saved adapter instead of a log.")
@click.option("--base", default="", metavar="DIR", help="The adapter's base model, where it is not the one it names.")
@click.option("--samples", default="", metavar="FILE", help="Its answers, as `qlora-core diagnose --save` keeps them.")
@click.option("--elsewhere", is_flag=True, help="The log is of another machine: use no facts of this one.")
@format_option()
@OUTPUT
def command(
    log: str,
    facts_file: str,
    python: str,
    model: str,
    script: str,
    exit_code: int | None,
    adapter: str,
    base: str,
    samples: str,
    elsewhere: bool,
    style: str,
    output: tuple[str, ...],
) -> int:
    """Say from LOG (a log, a traceback, a pasted fragment) what went wrong, why, and how to repair it.

    The facts of the environment decide between the causes that one message can have: those in --facts, of --python, or
    of this interpreter where the stack is installed in it. Exit code: 0 no failure found, 1 a failure, explained or
    not, 2 the question or the doctor is at fault.
    """
    from qlora_doctor.cli.outputs import outputs_of, show
    from qlora_doctor.logs.diagnose import diagnose
    from qlora_doctor.report import diagnosis as report

    if adapter:
        return _adapter(adapter, base, samples, style)
    if base or samples:
        raise UsageError("--base and --samples belong to an adapter; name it with --adapter")
    if log == "-" and sys.stdin.isatty():
        raise UsageError("no log: give a file, or pipe one in (python train.py 2>&1 | qlora-doctor diagnose)")
    outputs = outputs_of(output, STYLES, (log, script, facts_file))
    facts, codes = (None, None) if elsewhere else _facts(facts_file, python, model, script)
    read = _script(script)
    losses = _Losses()
    drawn = {"html", "markdown"} & {style, *(one.style for one in outputs)}
    try:
        with open(log, "rb") if log != "-" else nullcontext(sys.stdin.buffer) as stream:
            source = losses.passing(stream) if drawn else stream
            found = diagnose(source, facts, script=read, codes=codes, exit_code=exit_code)
    except OSError as error:
        raise UsageError(f"{log}: {error.strerror or error}") from None
    code = int(bool(found.diagnoses or found.unknown))

    def data() -> str:
        import json

        return json.dumps(report.data(found), indent=2, ensure_ascii=False)

    def paper(wanted: str) -> Paper:
        from qlora_doctor.report.paper_log import of_log

        return of_log(found, log, code, losses.curve(log))

    show(style, outputs, {"text": lambda: report.render(found, terminal_columns()), "json": data}, paper)
    return code


class _Losses:
    """The losses that stand in a log, collected while it is read for its errors."""

    def __init__(self) -> None:
        from qlora_doctor.logs.trend import LossTrend

        self.trend = LossTrend()
        self.end = b""

    def passing(self, stream: BinaryIO) -> BinaryIO:
        """The stream itself, each piece of which is looked at."""
        read = stream.read

        class Passing:
            def read(_, size: int = -1) -> bytes:
                piece = read(size)
                # A loss may lie across two pieces; whole lines are handed on.
                lines, mark, self.end = (self.end + piece).rpartition(b"\n") if piece else (self.end, b"", b"")
                self.trend.add(lines + mark)
                return piece

        return cast(BinaryIO, Passing())

    def curve(self, log: str) -> Curve | None:
        """The losses by their order; None for fewer than two. The log seldom says which step each is of."""
        from qlora_doctor.report.paper import Curve

        values = self.trend.values
        title = f"{'standard input' if log == '-' else log}, in the order printed"
        return Curve(title, tuple((float(n), v) for n, v in enumerate(values, 1))) if len(values) > 1 else None


def _adapter(folder: str, base: str, samples: str, style: str) -> int:
    """1 where something is wrong with a saved adapter. Sampling its answers needs torch: `qlora-core diagnose`."""
    from qlora_doctor.logs.adapter import adapter_findings
    from qlora_doctor.logs.answers import read_samples
    from qlora_doctor.report.diagnosis import finding_lines

    found = adapter_findings(folder, base, read_samples(samples) if samples else ())
    if style == "json":
        import json

        rows = [
            {"name": f.name, "severity": f.severity, "message": f.text, "evidence": dict(f.evidence)} for f in found
        ]
        click.echo(json.dumps({"schema": 1, "findings": rows}, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(finding_lines(found, terminal_columns())))
        if not samples:
            click.echo(
                f"its answers were not looked at: qlora-core diagnose {folder} asks it a few questions", err=True
            )
    return int(bool(found))


def _facts(facts_file: str, python: str, model: str, script: str) -> tuple[Facts | None, frozenset[str] | None]:
    """The facts, and the codes of what the checks find; None for what is not known."""
    from qlora_doctor.examine import Question, examine

    paths = (script,) if script else ()
    if script or model:
        question = Question(paths=paths, model=model, python=python, facts_file=facts_file, offline=True, parts=PARTS)
        examination = examine(question)
        return examination.facts, frozenset(f.code for f in examination.verdict.findings)
    if facts_file:
        from qlora_doctor.gather.interpreters import saved

        return saved(facts_file), None
    from qlora_doctor.gather.interpreters import here, other

    facts = other(python, PARTS) if python else here(PARTS)
    # Our own interpreter, apart from the stack (pipx), says nothing of the run that wrote the log.
    stranger = facts.version("torch") is None and facts.version("transformers") is None
    return (None if stranger and not python else facts), None


def _script(path: str) -> Script | None:
    if not path:
        return None
    from qlora_doctor.gather.targets import read_targets

    return next((script for script, _ in read_targets([path])), None)
