"""qlora-doctor facts"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import click

from qlora_doctor.cli.options import LIVE, OFFLINE, PATHS, PYTHON, SSH, tell_live


@click.command("facts")
@PATHS
@PYTHON
@SSH
@LIVE
@OFFLINE
@click.option(
    "--save",
    default="",
    metavar="FILE",
    help="Write them to FILE, for `check --facts FILE` anywhere; {rank} and {host} in it are filled in.",
)
def command(paths: Sequence[str], python: str, ssh: str, live: bool, offline: bool, save: str) -> int:
    """Print everything the doctor knows of this environment, as JSON, with secrets left out.

    PATHS name scripts whose calls and models are looked up as well. Under torchrun, srun or mpirun
    `--save 'DIR/{rank}.json'` leaves one file for each rank, for `qlora-doctor compare DIR/*.json`.
    """
    import json

    from qlora_doctor.collect import PROBED
    from qlora_doctor.errors import UsageError
    from qlora_doctor.examine import Question, gather, read_cases

    save = filled(save, os.environ)
    question = Question(paths=tuple(paths), python=python, offline=offline, ssh=ssh, live=live)
    if live and ssh:
        raise UsageError("--live tries things on this machine; it does not go with --ssh")
    wanted = {*PROBED, "installed", "hub"}
    facts = gather(question, wanted, read_cases(question.paths), tell_live if live else None)
    text = json.dumps(facts.to_wire(), indent=1, sort_keys=True, ensure_ascii=False)
    if not save:
        click.echo(text)
        return 0
    write_whole(save, text + "\n")
    from qlora_doctor.report.shell import command_line

    line = command_line(["qlora-doctor", "check", "--facts", save])
    click.echo(f"saved to {save}; `{line}` judges it on any machine")
    return 0


RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
"""The variables in which torchrun, srun and the kinds of mpirun say which process this is; the first one counts."""


def filled(path: str, environ: Mapping[str, str]) -> str:
    """`path` with {rank} and {host} filled in, and its folder made where a field was filled in.

    Raises:
        UsageError: {rank} is asked for, and no launcher has said it; or the folder cannot be made.
    """
    from qlora_doctor.errors import UsageError

    if "{rank}" not in path and "{host}" not in path:
        return path
    rank = next((environ[name] for name in RANKS if environ.get(name, "").isdigit()), None)
    if rank is None and "{rank}" in path:
        raise UsageError(
            f"--save {path}: no rank is known here; start this under torchrun, srun or mpirun, or leave {{rank}} out"
        )
    import platform

    path = path.replace("{rank}", rank or "").replace("{host}", platform.node().partition(".")[0] or "unnamed")
    folder = os.path.dirname(os.path.abspath(path))
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made: {error.strerror or error}") from None
    return path


def write_whole(path: str, text: str) -> None:
    """Writes a file so that a reader sees the old or the new text, never a part. Raises UsageError."""
    import tempfile

    from qlora_doctor.errors import UsageError

    folder = os.path.dirname(os.path.abspath(path))
    draft = ""
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=folder, delete=False, newline="\n") as file:
            draft = file.name
            file.write(text)
        os.replace(draft, path)
    except OSError as error:
        if draft and os.path.exists(draft):
            os.unlink(draft)
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from None
