"""`%qlora_check`: the words of `qlora-doctor check` in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from qlora_doctor.api import CheckReport, check
from qlora_doctor.cli.options import DRIVER, GPU, LIVE, question_options
from qlora_doctor.finding import SEVERITIES
from qlora_doctor.notebook.cells import Cells


@click.command("%qlora_check", context_settings={"help_option_names": ["-h", "--help"]})
@question_options
@GPU
@DRIVER
@LIVE
@click.option("--no-cells", is_flag=True, help="Not the cells of this notebook: the environment and PATHS alone.")
@click.option("--strict", is_flag=True, help="Not ok when a check crashed or could not say.")
@click.option("--fail-on", type=click.Choice(SEVERITIES), default=None, help="Not ok from this severity on.")
def _command(**options: Any) -> dict[str, Any]:
    """Judge this kernel's environment, the cells that ran in this notebook (each in its last version), and PATHS.

    `%%qlora_check` at the head of a cell judges that cell after the others, and does not run it. The value is the report:
    `report = %qlora_check`, then report.findings.
    """
    return options


def run(words: Sequence[str], cells: Cells, cell: str | None, number: int) -> CheckReport | None:
    """The report that these words ask for; None where they ask for help.

    Raises:
        UsageError: the words name what is not there.
    """
    from qlora_doctor.errors import UsageError

    try:
        options = _command.main(list(words), prog_name="%qlora_check", standalone_mode=False)
    except click.ClickException as error:
        raise UsageError(f"{error.format_message()} (%qlora_check --help shows the options)") from None
    if not isinstance(options, dict):
        return None
    paths, facts = options.pop("paths"), options.pop("facts_file")
    case = None if options.pop("no_cells") else cells.case(cell, number)
    known = {k: v for k, v in options.items() if v not in ("", (), None, False)}
    return check(*paths, facts=facts, cases=() if case is None else (case,), **known)
