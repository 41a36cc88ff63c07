"""qlora-doctor check"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from qlora_doctor.cli.options import (
    DRIVER,
    GPU,
    LIVE,
    OUTPUT,
    SSH,
    STYLES,
    colour,
    format_option,
    question_of,
    question_options,
    tell_live,
    terminal_columns,
)
from qlora_doctor.finding import SEVERITIES, Severity

if TYPE_CHECKING:
    from qlora_doctor.examine import Examination
    from qlora_doctor.report.paper import Curve, Paper

# What a reader wants to see of the environment, whichever checks were selected.
SHOWN = ("interpreter", "packages", "torch", "gpus", "driver", "host")


@click.command("check")
@question_options
@SSH
@GPU
@DRIVER
@LIVE
@click.option(
    "--diff", "base", default="", metavar="BASE", help="Only what is found on lines changed since this commit."
)
@format_option()
@OUTPUT
@click.option("--statistics", is_flag=True, help="Print how often each check found something, not what.")
@click.option("--strict", is_flag=True, help="Exit 2 when a check crashed or could not say.")
@click.option(
    "--fail-on", type=click.Choice(SEVERITIES), default=None, help="Exit 1 from this severity on (default: warning)."
)
@click.option("--verbose", "-v", is_flag=True, help="Also the evidence, every outcome and the facts.")
def command(
    base: str,
    style: str,
    output: Sequence[str],
    statistics: bool,
    strict: bool,
    fail_on: Severity | None,
    verbose: bool,
    **options: Any,
) -> int:
    """Judge this environment, and the scripts, notebooks, settings or folders in PATHS.

    Nothing is downloaded or changed, and without --live nothing is imported. Exit code: 0 nothing found, 1 something
    found, 2 the question or the doctor is at fault.
    """
    from qlora_doctor.examine import examine
    from qlora_doctor.report import exit_code

    question, config = question_of(**options)
    outputs = _outputs(output, (*question.paths, question.facts_file)) if output else ()
    if outputs or style not in ("text", "json"):
        from dataclasses import replace

        question = replace(question, parts=(*question.parts, *SHOWN))
    changed = _changed(base, question.paths) if base else None
    examination = examine(question, tell_live if question.live else None)
    notes: tuple[str, ...] = ()
    if changed is not None:
        examination, notes = _only(examination, changed, base)
    code = exit_code(examination, fail_on or config.fail_on or "warning", strict)

    def plain(paint: bool = False) -> str:
        from qlora_doctor.report import text

        wide = terminal_columns() if paint else None
        shade = text.ansi if paint and colour() else text.plain
        shown = text.render(examination, verbose=verbose, paint=shade, columns=wide, ignored=config.ignore)
        return "\n".join([shown, *notes])

    def data() -> str:
        from qlora_doctor.report import json

        return json.render(examination, code, verbose)

    if outputs:
        from qlora_doctor.cli.outputs import dressed, write

        own = {"text": plain, "json": data}
        write(outputs, lambda one: own[one]() if one in own else dressed(_paper(examination, code, one, notes), one))
    if statistics:
        click.echo(_statistics(examination, code, style))
    elif style == "text":
        click.echo(plain(paint=True), color=colour())
    elif style == "json":
        click.echo(data())
    else:
        from qlora_doctor.cli.outputs import dressed

        click.echo(dressed(_paper(examination, code, style, notes), style).removesuffix("\n"))
    return code


def _outputs(words: Sequence[str], judged: Sequence[str]) -> Any:
    from qlora_doctor.cli.outputs import outputs_of

    return outputs_of(words, STYLES, judged)


def _changed(base: str, paths: Sequence[str]) -> Any:
    from qlora_doctor.errors import UsageError
    from qlora_doctor.examine import home_of
    from qlora_doctor.gather.changed import Changed

    if not paths:
        raise UsageError(f"--diff {base}: name the scripts whose changed lines are meant, or their folder (.)")
    return Changed(base, home_of(paths))


def _only(examination: Examination, changed: Any, base: str) -> tuple[Examination, tuple[str, ...]]:
    """The examination with what stands on changed lines, and a note on what was left out."""
    from dataclasses import replace

    every = examination.verdict.findings
    kept = tuple(f for f in every if changed.touches(f.site))
    left = len(every) - len(kept)
    notes = (f"left out by --diff {base}: {left} of {len(every)} findings, which no changed line has",) if left else ()
    return replace(examination, verdict=replace(examination.verdict, findings=kept)), notes


def _paper(examination: Examination, code: int, style: str, notes: Sequence[str]) -> Paper:
    from qlora_doctor.report.paper_check import of_check

    curves = _curves(examination) if style in ("html", "markdown") else ()
    return of_check(examination, code, edits=style == "sarif", curves=curves, notes=notes)


def _curves(examination: Examination) -> tuple[Curve, ...]:
    """The losses of the runs that were named, or that the scripts write to."""
    import os

    from qlora_doctor.gather.losses import losses_in
    from qlora_doctor.report.paper import Curve

    folders = [path for path in examination.question.paths if os.path.isdir(path)]
    for case in examination.cases:
        for train in case.requests.trains:
            folder = train.settings.seen("output_dir") if train.settings is not None else None
            folders += [folder] if isinstance(folder, str) and folder else []
    found = [losses for folder in dict.fromkeys(folders) if (losses := losses_in(folder)) is not None]
    return tuple(Curve(one.path, one.train, one.held_out) for one in found[:4])


def _statistics(examination: Examination, code: int, style: str) -> str:
    from qlora_doctor.errors import UsageError
    from qlora_doctor.report import statistics

    findings = examination.verdict.findings
    if style == "text":
        return statistics.render(findings)
    if style != "json":
        raise UsageError(f"--statistics goes with --format text and json, not {style}")
    import json

    return json.dumps(statistics.data(findings, code), indent=2, sort_keys=True)
