"""qlora-doctor explain"""

from __future__ import annotations

import click

from qlora_doctor.cli.options import complete_codes


@click.command("explain")
@click.argument("what", metavar="CODE_NAME_OR_MESSAGE", shell_complete=complete_codes)
def command(what: str) -> int:
    """Show the page of one check, or what is known of an error message.

    A code or a name shows the check: what it finds, why that matters, when it does not apply, and the fix. Other text
    is looked up in the signatures of known failures.
    """
    from qlora_doctor.docs import facts_line
    from qlora_doctor.errors import UsageError
    from qlora_doctor.registry import installed_checks

    try:
        found = installed_checks().find(what)
    except UsageError:
        text = _symptom(what)
        if not text:
            raise
        click.echo(text)
        return 0
    click.echo(f"{found.code} {found.name}\n{facts_line(found)}\n\n{found.doc}")
    return 0


def _symptom(text: str) -> str:
    """What the signatures say of a message, or of a part of one; "" where none is meant."""
    from qlora_doctor.logs.search import search

    out = []
    for signature in search(text)[:5]:
        out.append(f"{signature.id} ({signature.category}; {signature.source})")
        for cause in signature.causes:
            out += [f"  {cause.says} [{cause.id}]", *([f"    when {cause.when}"] if cause.when else [])]
            out.append(f"    fix: {cause.fix}")
        out.append("")
    return "\n".join(out).rstrip()
