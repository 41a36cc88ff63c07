"""qlora-doctor diagnose"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

import click

from qlora_doctor.cli.options import FACTS, MODEL, PYTHON, terminal_columns
from qlora_doctor.errors import UsageError

if TYPE_CHECKING:
    from qlora_doctor.facts import Facts
    from qlora_doctor.source import Script

PARTS = ("interpreter", "packages", "torch", "bitsandbytes", "gpus", "driver", "host", "environ")


@click.command("diagnose")
@click.argument("log", default="-", metavar="[LOG|-]")
@FACTS
@PYTHON
@MODEL
@click.option("--script", default="", metavar="FILE", help="The script that wrote the log.")
@click.option("--exit-code", type=int, default=None, metavar="N", help="How the run ended (139, -9, ...).")
@click.option("--elsewhere", is_flag=True, help="The log is of another machine: use no facts of this one.")
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
def command(
    log: str,
    facts_file: str,
    python: str,
    model: str,
    script: str,
    exit_code: int | None,
    elsewhere: bool,
    style: Literal["text", "json"],
) -> int:
    """Say from LOG (a log, a traceback, a pasted fragment) what went wrong, why, and how to repair it.

    The facts of the environment decide between the causes that one message can have: those in --facts, of --python, or
    of this interpreter where the stack is installed in it. Exit code: 0 no failure found, 1 a failure, explained or
    not, 2 the question or the doctor is at fault.
    """
    from qlora_doctor.logs.diagnose import diagnose
    from qlora_doctor.report import diagnosis as report

    if log == "-" and sys.stdin.isatty():
        raise UsageError("no log: give a file, or pipe one in (python train.py 2>&1 | qlora-doctor diagnose)")
    facts, codes = (None, None) if elsewhere else _facts(facts_file, python, model, script)
    read = _script(script)
    try:
        if log == "-":
            found = diagnose(sys.stdin.buffer, facts, script=read, codes=codes, exit_code=exit_code)
        else:
            with open(log, "rb") as stream:
                found = diagnose(stream, facts, script=read, codes=codes, exit_code=exit_code)
    except OSError as error:
        raise UsageError(f"{log}: {error.strerror or error}") from None
    if style == "json":
        import json

        click.echo(json.dumps(report.data(found), indent=2, ensure_ascii=False))
    else:
        click.echo(report.render(found, terminal_columns()))
    return int(bool(found.diagnoses or found.unknown))


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
