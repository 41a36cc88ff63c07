"""qlora-doctor setup"""

from __future__ import annotations

from collections.abc import Sequence

import click

from qlora_doctor.cli.options import tell_live, words_of


@click.command("setup")
@click.argument("folder", metavar="DIR", type=click.Path())
@click.option(
    "--gpu",
    default="",
    metavar="NAME",
    help="The card that it is for, where it is not in this machine (RTX 4060); none: the CPU.",
)
@click.option("--driver", default="", metavar="VERSION", help="The NVIDIA driver that it is for (550.120).")
@click.option("--python", default="", metavar="EXE", help="The interpreter to make it from; our own where not given.")
@click.option("--with", "extras", multiple=True, metavar="PACKAGES", help="Also trl or datasets, separated by commas.")
@click.option("--torch", default="", metavar="MINOR", help="This torch (2.13) in the place of the newest that fits.")
@click.option("--dry-run", is_flag=True, help="Show the set, the proof and the commands; make nothing.")
@click.option("--offline", is_flag=True, help="With --dry-run: do not ask the package index.")
@click.option("--live/--no-live", default=True, help="Prove it with `check --live` at the end (the default).")
@click.option("--yes", is_flag=True, help="Install without asking.")
def command(
    folder: str,
    gpu: str,
    driver: str,
    python: str,
    extras: Sequence[str],
    torch: str,
    dry_run: bool,
    offline: bool,
    live: bool,
    yes: bool,
) -> int:
    """Make a new environment in DIR with the newest set of packages that this machine can run, and prove it.

    torch is chosen for the driver, the GPU, the system and Python; transformers, peft, accelerate and bitsandbytes go
    with it. torch is installed first, and a constraints file in DIR holds every version. Exit code: 0 made and proved
    (or shown), 1 made and the proof found something, 2 it could not be made.
    """
    from qlora_doctor.errors import UsageError
    from qlora_doctor.report import setup as report
    from qlora_doctor.setup import make, prepare

    if offline and not dry_run:
        raise UsageError(
            "--offline goes with --dry-run only: an environment cannot be filled without the package index"
        )
    if not dry_run:
        prepare.refuse_taken(folder, make.MARKER)
    order = prepare.Order(folder, gpu, driver, python, words_of(extras), torch, offline)
    prepared = prepare.prepare(order)
    click.echo(report.render(prepared))
    if dry_run:
        return 0
    if not prepared.proof.done:
        raise UsageError(f"nothing was made: {prepared.proof.failure}")
    if not yes and not _agreed(report.download(prepared)):
        click.echo("nothing was made, as you said")
        return 1
    made = make.make(prepared, live, lambda text: click.echo(f"setup: {text}", err=True), tell_live)
    click.echo("\n" + report.render_made(made))
    return 0 if made.finished else 1


def _agreed(size: str) -> bool:
    """Whether a person says yes. Raises UsageError where nobody can be asked."""
    import sys

    from qlora_doctor.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError("nothing was made: there is nobody to ask; add --yes to allow the download")
    return click.confirm(f"Make it ({size} to download)?", default=True, err=True)
