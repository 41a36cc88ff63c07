"""The command line. Each command is a module with a `command`; a new one is one row in COMMANDS."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from qlora_doctor import __version__
from qlora_doctor.errors import QloraDoctorError

COMMANDS = {
    "check": "qlora_doctor.cli.check",
    "compare": "qlora_doctor.cli.compare",
    "diagnose": "qlora_doctor.cli.diagnose",
    "explain": "qlora_doctor.cli.explain",
    "facts": "qlora_doctor.cli.facts",
    "fix": "qlora_doctor.cli.fix",
    "list": "qlora_doctor.cli.list",
    "plan": "qlora_doctor.cli.plan",
    "run": "qlora_doctor.cli.run",
    "undo": "qlora_doctor.cli.undo",
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(_no_such_command(args[0]), ctx)
        return super().resolve_command(ctx, args)


def _no_such_command(word: str) -> str:
    import difflib
    import os

    near = difflib.get_close_matches(word, COMMANDS, 1)
    if near:
        return f"no such command {word!r}; did you mean {near[0]!r}?"
    if os.path.exists(word):
        return f"no such command {word!r}; to check that path: qlora-doctor check {word}"
    return f"no such command {word!r}; the commands are {', '.join(sorted(COMMANDS))}"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qlora-doctor")
def cli() -> None:
    """Checks a 4-bit fine-tuning run before it starts, and says what is wrong and why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0, 1, 2, or 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        # A file name that is not UTF-8, or a terminal that is not, must not end the report.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(arguments, prog_name="qlora-doctor", standalone_mode=False)
    except QloraDoctorError as error:
        click.echo(f"error: {error}", err=True)
        return 2
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO):
            return _our_failure()
        click.echo(f"error: the output could not be written: {error.strerror}", err=True)
        return 2
    except Exception:  # noqa: BLE001 - exit code 1 means "found something"; our own failure must not look like it
        return _our_failure()
    return code if isinstance(code, int) else 0


def _our_failure() -> int:
    import traceback

    traceback.print_exc()
    click.echo(f"error: qlora-doctor {__version__} failed; the lines above are for its bug report", err=True)
    return 2
