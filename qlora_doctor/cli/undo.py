"""qlora-doctor undo"""

from __future__ import annotations

from typing import Literal

import click


@click.command("undo")
@click.argument("id", required=False, default="")
@click.option("--list", "listed", is_flag=True, help="Show the changes that can be taken back.")
@click.option("--project", default="", metavar="DIR", help="The project whose changes are meant (default: this one).")
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
def command(id: str, listed: bool, project: str, style: Literal["text", "json"]) -> int:
    """Take back what `fix --apply` changed: the last change, or the one with ID.

    Files get their old bytes, packages their old versions. A file that was edited since stays as it is. Exit code:
    0 done or nothing to do, 1 a file was edited since and stays, 2 it could not be done.
    """
    import json
    import os

    from qlora_doctor.repair import undo
    from qlora_doctor.repair.folders import OWN, project_of
    from qlora_doctor.report import plan as report
    from qlora_doctor.report import plan_data

    folder = project if project and os.path.isdir(os.path.join(project, OWN)) else project_of(project or os.getcwd())
    if listed:
        entries = undo.changes_of(folder)
        if style == "json":
            click.echo(json.dumps(entries, indent=2, sort_keys=True, ensure_ascii=False))
        else:
            click.echo(report.render_list(entries))
        return 0
    taken = undo.take_back(folder, id)
    if style == "json":
        click.echo(json.dumps(plan_data.undo_data(taken), indent=2, sort_keys=True, ensure_ascii=False))
    else:
        click.echo(report.render_undo(taken))
    return int(taken.files is not None and bool(taken.files.kept))
