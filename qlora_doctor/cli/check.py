"""qlora-doctor check"""

from __future__ import annotations

from typing import Any, Literal

import click

from qlora_doctor.cli.options import (
    DRIVER,
    GPU,
    LIVE,
    SSH,
    colour,
    question_of,
    question_options,
    tell_live,
    terminal_columns,
)
from qlora_doctor.finding import SEVERITIES, Severity


@click.command("check")
@question_options
@SSH
@GPU
@DRIVER
@LIVE
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", help="How to print the report.")
@click.option("--strict", is_flag=True, help="Exit 2 when a check crashed or could not say.")
@click.option(
    "--fail-on", type=click.Choice(SEVERITIES), default=None, help="Exit 1 from this severity on (default: warning)."
)
@click.option("--verbose", "-v", is_flag=True, help="Also the evidence, every outcome and the facts.")
def command(
    style: Literal["text", "json"], strict: bool, fail_on: Severity | None, verbose: bool, **options: Any
) -> int:
    """Judge this environment, and the scripts, notebooks, settings or folders in PATHS.

    Nothing is downloaded or changed, and without --live nothing is imported. Exit code: 0 nothing found, 1 something
    found, 2 the question or the doctor is at fault.
    """
    from qlora_doctor.examine import examine
    from qlora_doctor.report import exit_code

    question, config = question_of(**options)
    examination = examine(question, tell_live if question.live else None)
    code = exit_code(examination, fail_on or config.fail_on or "warning", strict)
    if style == "json":
        from qlora_doctor.report import json

        click.echo(json.render(examination, code, verbose))
        return code
    from qlora_doctor.report import text

    paint = text.ansi if colour() else text.plain
    report = text.render(examination, verbose=verbose, paint=paint, columns=terminal_columns(), ignored=config.ignore)
    click.echo(report, color=paint is text.ansi)
    return code
