"""qlora-doctor clean"""

from __future__ import annotations

import click


@click.command("clean")
@click.option("--delete", "names", multiple=True, metavar="NAME", help="Delete this, by its name in the list.")
@click.option("--dry-run", is_flag=True, help="Show what --delete would do, and do nothing.")
@click.option("--project", default=".", metavar="DIR", help="Where checkpoints are looked for (default: here).")
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
def command(names: tuple[str, ...], dry_run: bool, project: str, style: str) -> int:
    """List what could be deleted to make room, the largest first; delete what --delete names.

    Models in the Hub's cache by revision, downloads that were broken off, models that the doctor converted, and the
    checkpoints of a project. The last checkpoint that a run can go on from is never deleted. A deleted model is downloaded
    again when it is needed; a deleted checkpoint is gone. Exit code: 0, or 2 where a name is wrong or cannot be deleted.
    """
    import json
    import os
    from dataclasses import asdict

    from qlora_doctor.download.clean import deletable, delete
    from qlora_doctor.download.fetch import show_size
    from qlora_doctor.gather.cache import folder
    from qlora_doctor.gather.hub_cache import cache_folder

    if not os.path.isdir(project):
        raise click.UsageError(f"--project {project}: there is no such folder")
    found = deletable(cache_folder(os.environ), folder(), os.path.abspath(project))
    chosen = [d for d in found if d.name in names] if dry_run else list(delete(found, names)) if names else []
    if style == "json":
        data = {"found": [asdict(d) for d in found], "deleted": [] if dry_run else [d.name for d in chosen]}
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
        return 0
    if not names:
        for one in found:
            click.echo(f"{show_size(one.size):>10}  {one.name}  {one.what}{f' - kept: {one.kept}' if one.kept else ''}")
        free = sum(d.size for d in found if not d.kept)
        click.echo(f"{show_size(free)} could go: qlora-doctor clean --delete NAME" if found else "nothing to delete")
        return 0
    word = "would be deleted" if dry_run else "deleted"
    for one in chosen:
        click.echo(
            f"{show_size(one.size):>10}  {one.name}  {word}{f' - no: {one.kept}' if dry_run and one.kept else ''}"
        )
    return 0
