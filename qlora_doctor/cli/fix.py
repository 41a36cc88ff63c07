"""qlora-doctor fix"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from qlora_doctor.cli.options import (
    DRIVER,
    GPU,
    LIVE,
    OUTPUT,
    SSH,
    STYLES,
    format_option,
    question_of,
    question_options,
)
from qlora_doctor.finding import SEVERITIES, Severity

if TYPE_CHECKING:
    from qlora_doctor.examine import Question
    from qlora_doctor.repair.plan import Plan
    from qlora_doctor.report.paper import Paper


@click.command("fix")
@question_options
@SSH
@GPU
@DRIVER
@LIVE
@click.option(
    "--from-log", default="", metavar="LOG", help="Also repair what this log of a failed run says (`-`: stdin)."
)
@click.option("--apply", "really", is_flag=True, help="Carry the plan out; `undo` takes it back.")
@click.option("--unsafe", is_flag=True, help="Also the fixes that may change what you meant.")
@click.option("--yes", is_flag=True, help="Change packages without asking.")
@format_option()
@OUTPUT
@click.option(
    "--fail-on", type=click.Choice(SEVERITIES), default=None, help="Exit 1 from this severity on (default: warning)."
)
def command(
    from_log: str,
    really: bool,
    unsafe: bool,
    yes: bool,
    style: str,
    output: tuple[str, ...],
    fail_on: Severity | None,
    **options: Any,
) -> int:
    """Show how what `check` finds can be repaired, and with --apply repair it.

    Takes what `check` takes. Without --apply nothing is changed; --apply does not go with --facts, --ssh, --gpu and
    --driver, which describe another machine. Exit code: 0 nothing is left, 1 something is left or would be changed, 2 the
    question or the doctor is at fault, or a step failed.
    """
    from qlora_doctor.cli.outputs import outputs_of, show
    from qlora_doctor.repair import session
    from qlora_doctor.report import plan as report
    from qlora_doctor.report import plan_data

    question, config = question_of(**options)
    floor = fail_on or config.fail_on or "warning"
    outputs = outputs_of(output, STYLES, (*question.paths, question.facts_file, from_log))
    if really:
        _refuse_imagined(question)
        session.refuse_elsewhere(question)
    if from_log:
        question = _with_log(question, from_log)
    if question.live:
        click.echo("live: importing and trying the stack, which takes up to two minutes ...", err=True)
    prepared = session.prepare(question, unsafe, compare=not really)
    if not really:
        code = int(not prepared.plan.empty or report.grave(prepared.examination.verdict.findings, floor))
        planned = plan_data.plan_data(prepared, code)

        def paper(wanted: str) -> Paper:
            from qlora_doctor.report.paper_check import of_fix

            return of_fix(prepared, planned, edits=wanted == "sarif")

        show(style, outputs, {"text": lambda: report.render(prepared), "json": lambda: _json(planned)}, paper)
        return code
    if style == "text":
        click.echo(report.render(prepared, dry=False))
    result = session.carry_out(prepared, unsafe, lambda plan: True if yes else _ask(plan))
    remains = session.left_after(result, unsafe)
    code = int(report.grave([left.finding for left in remains], floor))
    done = plan_data.result_data(result, remains, code)

    def paper_after(wanted: str) -> Paper:
        from qlora_doctor.report.paper_check import of_result

        return of_result(result, done)

    said = {"text": lambda: "\n" + report.render_result(result, remains), "json": lambda: _json(done)}
    show(style, outputs, said, paper_after)
    return code


def _json(data: Any) -> str:
    import json

    return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False)


def _with_log(question: Question, path: str) -> Question:
    """The question with a check for each diagnosis of a log; says on stderr what of it needs no repair."""
    from dataclasses import replace

    from qlora_doctor.logs.checks import ask_log

    found = ask_log(question, path)
    for line in found.notes:
        click.echo(line, err=True)
    return replace(question, checks=found.checks)


def _refuse_imagined(question: Question) -> None:
    """Raises UsageError where --apply would change this machine for a GPU or a driver that is not in it."""
    from qlora_doctor.errors import UsageError

    named = [word for word, value in (("--gpu", question.gpu), ("--driver", question.driver)) if value]
    if named:
        raise UsageError(
            f"--apply changes this machine and does not go with {' and '.join(named)}, which ask about another one; leave"
            " --apply out to see the plan for that machine, or run fix on it"
        )


def _ask(plan: Plan) -> bool | None:
    """Whether the packages may be changed; None where nobody can be asked."""
    import sys

    if not sys.stdin.isatty():
        return None
    names = ", ".join(fix.title for fix in plan.pip)
    return click.confirm(f"Change the packages ({names})?", default=False, err=True)
