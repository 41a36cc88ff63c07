"""qlora-doctor fix"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from qlora_doctor.cli.options import question_of, question_options
from qlora_doctor.finding import SEVERITIES, Severity

if TYPE_CHECKING:
    from qlora_doctor.repair.plan import Plan


@click.command("fix")
@question_options
@click.option("--apply", "really", is_flag=True, help="Carry the plan out; `undo` takes it back.")
@click.option("--unsafe", is_flag=True, help="Also the fixes that may change what you meant.")
@click.option("--yes", is_flag=True, help="Change packages without asking.")
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", help="How to print the plan.")
@click.option(
    "--fail-on", type=click.Choice(SEVERITIES), default=None, help="Exit 1 from this severity on (default: warning)."
)
def command(
    really: bool, unsafe: bool, yes: bool, style: Literal["text", "json"], fail_on: Severity | None, **options: Any
) -> int:
    """Show how what `check` finds can be repaired, and with --apply repair it.

    Takes what `check` takes. Without --apply nothing is changed. Exit code: 0 nothing is left, 1 something is left or
    would be changed, 2 the question or the doctor is at fault, or a step failed.
    """
    import json

    from qlora_doctor.repair import session
    from qlora_doctor.report import plan as report
    from qlora_doctor.report import plan_data

    question, config = question_of(**options)
    floor = fail_on or config.fail_on or "warning"
    if really:
        session.refuse_elsewhere(question)
    prepared = session.prepare(question, unsafe, compare=not really)
    if not really:
        code = int(not prepared.plan.empty or report.grave(prepared.examination.verdict.findings, floor))
        if style == "json":
            click.echo(json.dumps(plan_data.plan_data(prepared, code), indent=2, sort_keys=True, ensure_ascii=False))
        else:
            click.echo(report.render(prepared))
        return code
    if style == "text":
        click.echo(report.render(prepared, dry=False))
    result = session.carry_out(prepared, unsafe, lambda plan: True if yes else _ask(plan))
    remains = session.left_after(result, unsafe)
    code = int(report.grave([left.finding for left in remains], floor))
    if style == "json":
        click.echo(
            json.dumps(plan_data.result_data(result, remains, code), indent=2, sort_keys=True, ensure_ascii=False)
        )
    else:
        click.echo("\n" + report.render_result(result, remains))
    return code


def _ask(plan: Plan) -> bool | None:
    """Whether the packages may be changed; None where nobody can be asked."""
    import sys

    if not sys.stdin.isatty():
        return None
    names = ", ".join(fix.title for fix in plan.pip)
    return click.confirm(f"Change the packages ({names})?", default=False, err=True)
