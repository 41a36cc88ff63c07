"""The command line. Each command is a module with a `command`; a new one is one row in COMMANDS."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from qlora_doctor import __version__, i18n
from qlora_doctor.errors import QloraDoctorError

COMMANDS = {
    "check": "qlora_doctor.cli.check",
    "clean": "qlora_doctor.cli.clean",
    "compare": "qlora_doctor.cli.compare",
    "completion": "qlora_doctor.cli.completion",
    "diagnose": "qlora_doctor.cli.diagnose",
    "download": "qlora_doctor.cli.download",
    "explain": "qlora_doctor.cli.explain",
    "facts": "qlora_doctor.cli.facts",
    "fix": "qlora_doctor.cli.fix",
    "list": "qlora_doctor.cli.list",
    "plan": "qlora_doctor.cli.plan",
    "report": "qlora_doctor.cli.report",
    "repro": "qlora_doctor.cli.repro",
    "run": "qlora_doctor.cli.run",
    "setup": "qlora_doctor.cli.setup",
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
        i18n.translate_command(command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from qlora_doctor.cli.suggest import for_option

            raise for_option(error, self, ctx) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from qlora_doctor.cli.suggest import for_word

            raise click.UsageError(for_word(args[0], COMMANDS), ctx)
        name, command, rest = super().resolve_command(ctx, args)
        if name and command is not None and not {"-h", "--help"}.isdisjoint(rest):
            from qlora_doctor.cli.examples import epilog

            command.epilog = epilog(name)
        return name, command, rest


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qlora-doctor")
@click.option(
    "--lang", metavar="LANG", expose_value=False, help="The language: en or zh (default: that of the locale)."
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Checks a 4-bit fine-tuning run before it starts, and says what is wrong and why.

    Without a command it looks at this folder and says what to do next.
    """
    if ctx.invoked_subcommand is None:
        from qlora_doctor.cli.hello import screen
        from qlora_doctor.cli.options import terminal_columns

        click.echo(screen(".", terminal_columns(160)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0, 1, 2, or 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        # A file name that is not UTF-8, or a terminal that is not, must not end the report.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    word, rest = i18n.asked_for(sys.argv[1:] if arguments is None else arguments)
    i18n.use(i18n.chosen(word, can_show=i18n.can_show))
    i18n.translate_command(cli)
    if sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from qlora_doctor.cli.waiting import Waiting
        from qlora_doctor.stage import listen

        listen(Waiting())
    try:
        code = cli.main(rest, prog_name="qlora-doctor", standalone_mode=False)
    except QloraDoctorError as error:
        click.echo(i18n.tr("error: {error}", error=i18n.said(str(error))), err=True)
        return 2
    except click.exceptions.Abort:
        click.echo(i18n.tr("stopped"), err=True)
        return 130
    except click.ClickException as error:
        vars(error)["message"] = i18n.said(error.message)
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
