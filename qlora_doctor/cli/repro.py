"""qlora-doctor repro"""

from __future__ import annotations

import click

from qlora_doctor.cli.options import FACTS, MODEL, PYTHON
from qlora_doctor.errors import UsageError


@click.command("repro")
@click.option("--script", default="", metavar="FILE", help="The script, notebook or settings of the run that failed.")
@MODEL
@PYTHON
@FACTS
@click.option("--output", default="repro.py", metavar="FILE", help="Where to (repro.py); `-` prints it.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def command(script: str, model: str, python: str, facts_file: str, output: str, force: bool) -> int:
    """Write the smallest script that asks for the same: the load calls and the trainer, with their resolved arguments.

    It is judged again, and what only the original has is said. Nothing is run. Exit code: 0 it has what the original
    has, 1 something of it is only in the original, 2 it could not be written.
    """
    import os

    from qlora_doctor.bundle.repro import make_repro
    from qlora_doctor.examine import Question, examine

    if bool(script) == bool(model):
        raise UsageError("say what failed: --script FILE or --model ID_OR_DIR, one of them")
    paths = (script,) if script else ()
    made = make_repro(examine(Question(paths=paths, model=model, python=python, facts_file=facts_file, offline=True)))
    if output == "-":
        click.echo(made.text, nl=False)
    else:
        if os.path.exists(output) and not force:
            raise UsageError(f"--output {output} is there already; name another file, or add --force")
        try:
            with open(output, "w", encoding="utf-8", newline="\n") as file:
                file.write(made.text)
        except OSError as error:
            raise UsageError(f"--output {output}: {error.strerror or error}") from None
        click.echo(f"written to {output}", err=True)
    if made.codes:
        click.echo(f"judged as the original: {', '.join(made.codes)}", err=True)
    if made.lost:
        click.echo(f"only in the original: {', '.join(made.lost)} (they need more than the calls)", err=True)
    return int(bool(made.lost))
