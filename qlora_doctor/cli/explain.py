"""qlora-doctor explain"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qlora_doctor.cli.options import complete_codes
from qlora_doctor.i18n import said, speaking, tr

if TYPE_CHECKING:
    from qlora_doctor.registry import Check


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
    title = "".join(f"{line}\n\n" for line in _titled(found)) if speaking() else ""
    page = _written(found) if speaking() else ""
    click.echo(f"{found.code} {found.name}\n{title}{facts_line(found)}\n\n{page or found.doc}")
    return 0


def _titled(found: Check) -> list[str]:
    """What a check looks for and what it says, in the reader's language."""
    from qlora_doctor.docs.chinese import says

    return [said(found.title), *(f"- {text}" for text in says(found))]


def _written(found: Check) -> str:
    """The explanation of a check in the reader's language; "" where it is there in English alone."""
    from qlora_doctor.docs.chinese import explanation

    return explanation(found)


def _symptom(text: str) -> str:
    """What the signatures say of a message, or of a part of one; "" where none is meant."""
    from qlora_doctor.logs.search import search

    out = []
    for signature in search(text)[:5]:
        out.append(f"{signature.id} ({signature.category}; {signature.source})")
        for cause in signature.causes:
            out += [f"  {said(cause.says)} [{cause.id}]", *([f"    when {cause.when}"] if cause.when else [])]
            out.append("    " + tr("fix: {fix}", fix=said(cause.fix)))
        out.append("")
    return "\n".join(out).rstrip()
