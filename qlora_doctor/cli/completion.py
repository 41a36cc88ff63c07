"""qlora-doctor completion"""

from __future__ import annotations

import click

PROGRAMS = ("qlora-doctor", "qlora-core")


@click.command("completion")
@click.argument("shell", required=False, default="", metavar="[bash|zsh|fish]")
def command(shell: str) -> int:
    """Print what makes a shell complete our commands, options, codes and files; your shell where none is named.

    It is for your shell's start-up file, which is not touched. qlora-core is completed too.
    """
    import difflib
    import os

    from click.shell_completion import get_completion_class

    from qlora_doctor.cli import cli
    from qlora_doctor.errors import UsageError

    name = shell or os.path.basename(os.environ.get("SHELL", ""))
    completion = get_completion_class(name)
    if completion is None:
        near = difflib.get_close_matches(name, ("bash", "zsh", "fish"), 1)
        said = f"there is no completion for {name!r}" if name else "your shell is not known ($SHELL is not set)"
        raise UsageError(f"{said}; {f'did you mean {near[0]!r}?' if near else 'name bash, zsh or fish'}")
    for program in PROGRAMS:
        variable = f"_{program.upper().replace('-', '_')}_COMPLETE"
        click.echo(completion(cli, {}, program, variable).source())
    return 0
