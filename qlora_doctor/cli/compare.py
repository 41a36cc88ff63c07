"""qlora-doctor compare"""

from __future__ import annotations

from collections.abc import Sequence

import click

from qlora_doctor.cli.options import OUTPUT, format_option, terminal_columns

STYLES = ("text", "json", "csv")


@click.command("compare")
@click.argument("files", nargs=-1, metavar="FILE FILE...", type=click.Path())
@format_option(STYLES)
@OUTPUT
def command(files: Sequence[str], style: str, output: Sequence[str]) -> int:
    """Show what differs between environments saved with `facts --save`, most suspicious first.

    Works here and fails there; or one node of a cluster that is not like the others. Exit code: 0 no difference,
    1 some, 2 a file cannot be used.
    """
    import json

    from qlora_doctor.cli.outputs import outputs_of, write
    from qlora_doctor.compare import compare
    from qlora_doctor.errors import UsageError
    from qlora_doctor.gather.interpreters import saved
    from qlora_doctor.report import compare as report

    if len(files) < 2:
        raise UsageError("compare needs two or more files; write them with `qlora-doctor facts --save FILE`")
    outputs = outputs_of(output, STYLES, files)
    differences = compare([saved(path) for path in files])
    code = int(bool(differences))

    def dress(wanted: str, columns: int | None = None) -> str:
        if wanted == "json":
            data = report.data(files, differences, code)
            return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False)
        if wanted == "csv":
            from qlora_doctor.report import csv

            return csv.render(files, differences)
        return report.render(files, differences, columns)

    write(outputs, dress)
    click.echo(dress(style, terminal_columns(200)), nl=style != "csv")
    return code
