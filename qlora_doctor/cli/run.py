"""qlora-doctor run"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from qlora_doctor.logs.run import Run

FILE = "qlora-doctor-run.json"
RANKED = "qlora-doctor-run.{rank}.json"


@click.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--check", "first", is_flag=True, help="Judge the script first, and do not start it with an error.")
@click.option(
    "--report",
    default="",
    metavar="FILE",
    help=f"Where to write what happened (default: {FILE}, or {RANKED} of a rank).",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
def command(first: bool, report: str, command: tuple[str, ...]) -> int:
    """Run COMMAND unchanged, and where it fails say why and how to repair it.

    Its output, signals and terminal are passed through, and its exit code is ours (128 + the signal where one killed
    it). PYTHONFAULTHANDLER is set, so that a crash in native code shows its stack.
    """
    from qlora_doctor.logs.run import run

    if first:
        code = _check(command)
        if code:
            return code
    done = run(command)
    _show(done)
    _write(done, report or _default())
    return done.code


def _default() -> str:
    """The file of this process: under a launcher each rank has its own."""
    import os

    from qlora_doctor.cli.facts import RANKS

    rank = next((os.environ[name] for name in RANKS if os.environ.get(name, "").isdigit()), "")
    return RANKED.format(rank=rank) if rank else FILE


def _check(command: tuple[str, ...]) -> int:
    """1 where the script of the command has an error that keeps it from working."""
    import os

    from qlora_doctor.examine import Question, examine
    from qlora_doctor.report import exit_code, text

    paths = tuple(word for word in command if word.endswith((".py", ".ipynb")) and os.path.isfile(word))[:1]
    examination = examine(Question(paths=paths, offline=True))
    if examination.verdict.findings:
        click.echo(text.render(examination), err=True)
    return exit_code(examination, "error")


def _show(done: Run) -> None:
    from qlora_doctor.cli.options import terminal_columns
    from qlora_doctor.report.diagnosis import render

    if done.report is not None:
        how = f"killed by {done.signal}" if done.signal else f"exit code {done.code}"
        click.echo(f"\nqlora-doctor: {how} after {done.seconds:.0f} s; most memory {done.peak >> 20} MiB", err=True)
        click.echo(render(done.report, terminal_columns()), err=True)
    for note in done.notes:
        click.echo(f"qlora-doctor: {note}", err=True)


def _write(done: Run, path: str) -> None:
    """Writes the report. A disk that is full must not change how the run ended, so a failure is only said."""
    import json
    import os

    from qlora_doctor import redaction
    from qlora_doctor.report.diagnosis import data

    content = {
        "schema": 1,
        "command": redaction.command(done.command),
        "exit_code": done.code,
        "signal": done.signal,
        "seconds": round(done.seconds, 1),
        "peak_memory": done.peak,
        "oom_killed": done.oom_killed,
        "notes": list(done.notes),
        "samples": list(done.samples),
        "diagnosis": None if done.report is None else data(done.report),
    }
    try:
        temporary = f"{path}.{os.getpid()}"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(redaction.data(content, redaction.secrets), file, indent=1, ensure_ascii=False)
        os.replace(temporary, path)
    except OSError as error:
        click.echo(f"qlora-doctor: {path} was not written: {error.strerror or error}", err=True)
