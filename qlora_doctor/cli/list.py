"""qlora-doctor list"""

from __future__ import annotations

import click

from qlora_doctor.cli.options import terminal_columns


@click.command("list")
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", help="How to print the list.")
def command(style: str) -> int:
    """List every installed check: its code, name, what it judges, and whether it can propose a fix."""
    from qlora_doctor.docs import can_fix
    from qlora_doctor.registry import installed_checks

    installed = installed_checks()
    if style == "json":
        import json

        rows = [
            {
                "code": c.code,
                "name": c.name,
                "title": c.title,
                "judges": c.judges,
                "needs": list(c.needs),
                "wants": list(c.wants),
                "requires": list(c.requires),
                "can_fix": can_fix(c),
                "since": c.since,
                "distribution": c.distribution,
            }
            for c in installed.checks
        ]
        click.echo(json.dumps(rows, indent=2, sort_keys=True, ensure_ascii=False))
    else:
        from qlora_doctor.report.columns import cut, table

        lines = [[c.code, c.name, c.judges, "fix" if can_fix(c) else "", c.title] for c in installed.checks]
        columns = terminal_columns(200)
        click.echo("\n".join(cut(line, columns) for line in table(lines)))
    for outcome in installed.broken:
        click.echo(f"warning: {outcome.distribution} did not load: {outcome.reason}", err=True)
    return 0
