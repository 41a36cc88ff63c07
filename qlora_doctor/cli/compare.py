"""qlora-doctor compare"""

from __future__ import annotations

from collections.abc import Sequence

import click

from qlora_doctor.cli.options import terminal_columns


@click.command("compare")
@click.argument("files", nargs=-1, metavar="FILE FILE...", type=click.Path())
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
def command(files: Sequence[str], style: str) -> int:
    """Show what differs between environments saved with `facts --save`, most suspicious first.

    Works here and fails there; or one node of a cluster that is not like the others. Exit code: 0 no difference,
    1 some, 2 a file cannot be used.
    """
    import json

    from qlora_doctor.compare import compare
    from qlora_doctor.errors import UsageError
    from qlora_doctor.gather.interpreters import saved
    from qlora_doctor.report import compare as report

    if len(files) < 2:
        raise UsageError("compare needs two or more files; write them with `qlora-doctor facts --save FILE`")
    differences = compare([saved(path) for path in files])
    code = int(bool(differences))
    if style == "json":
        click.echo(json.dumps(report.data(files, differences, code), indent=2, sort_keys=True, ensure_ascii=False))
    else:
        click.echo(report.render(files, differences, terminal_columns(200)))
    return code
