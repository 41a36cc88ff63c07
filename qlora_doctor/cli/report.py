"""qlora-doctor report"""

from __future__ import annotations

import click

from qlora_doctor.cli.options import FACTS, MODEL, PYTHON


@click.command("report")
@click.option("--log", default="", metavar="LOG", help="The log of the run that failed.")
@click.option("--script", default="", metavar="FILE", help="The script or the settings of that run.")
@MODEL
@PYTHON
@FACTS
@click.option(
    "--output", default="qlora-doctor-report.zip", metavar="DIR|ZIP", help="Where to (qlora-doctor-report.zip)."
)
def command(log: str, script: str, model: str, python: str, facts_file: str, output: str) -> int:
    """Bundle what a bug report needs: facts, findings, the end of the log, the configuration and the fixes tried.

    Tokens, passwords, users, hosts, addresses, UUIDs and serial numbers are taken out. Nothing is sent anywhere. Exit
    code: 0 written, 2 it could not be.
    """
    from qlora_doctor.bundle.contents import contents
    from qlora_doctor.bundle.write import write
    from qlora_doctor.examine import Question

    question = Question(paths=(script,) if script else (), model=model, python=python, facts_file=facts_file)
    found = contents(question, log)
    write(found.files, output)
    for name, text in found.files.items():
        click.echo(f"  {name}: {len(text.encode('utf-8', 'backslashreplace'))} bytes")
    click.echo(f"written to {output}; look through it before you send it to anybody")
    return 0
