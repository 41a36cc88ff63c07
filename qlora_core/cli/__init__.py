"""`qlora-core`: the commands that need torch. Each is a module with a `command`; a new one is one row in COMMANDS."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from qlora_doctor import __version__, i18n
from qlora_doctor.errors import QloraDoctorError, UsageError

COMMANDS = {
    "chat": "qlora_core.cli.chat",
    "convert": "qlora_core.cli.convert",
    "data": "qlora_core.cli.data",
    "demo": "qlora_core.cli.demo",
    "diagnose": "qlora_core.cli.diagnose",
    "generate": "qlora_core.cli.generate",
    "merge": "qlora_core.cli.merge",
    "train": "qlora_core.cli.train",
    "verify": "qlora_core.cli.verify",
}
STACK = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers", "safetensors", "PIL", "numpy")
EXTRA = 'this command needs the train extra (Python 3.11 or newer): pip install "qlora-doctor[train]"'


class _Group(click.Group):
    """Imports a command when it is wanted; turns our errors into exit codes: 2 a wrong argument, 1 a refusal."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        # `run` is a usual name for --output here, so only `--` ends our options.
        word, words = i18n.asked_for(sys.argv[1:] if args is None else args, until=("--",))
        i18n.use(i18n.chosen(word, can_show=i18n.can_show))
        i18n.translate_command(self)
        return super().main(words, *rest, **options)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name]).command
        i18n.translate_command(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(i18n.said(_no_such_command(args[0])), ctx)
        name, command, rest = super().resolve_command(ctx, args)
        if name and command is not None and "--help" in rest:
            from qlora_core.cli.examples import epilog

            command.epilog = epilog(name)
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            click.echo(_error(str(error)), err=True)
            ctx.exit(2)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in STACK:
                raise
            click.echo(_error(f"{error.name} is not installed; {EXTRA}"), err=True)
            ctx.exit(2)
        except QloraDoctorError as error:
            click.echo(_error(str(error)), err=True)
            ctx.exit(1)


def _error(text: str) -> str:
    return i18n.tr("error: {error}", error=i18n.said_lines(text))


def _no_such_command(word: str) -> str:
    import difflib

    from qlora_doctor.cli import COMMANDS as DOCTOR

    if word in DOCTOR:
        return f"no such command '{word}' here; that is: qlora-doctor {word}"
    near = difflib.get_close_matches(word, COMMANDS, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"the commands are {', '.join(sorted(COMMANDS))}"
    return f"no such command '{word}'; {hint}"


@click.group(cls=_Group)
@click.version_option(__version__, prog_name="qlora-core")
@click.option(
    "--lang", metavar="LANG", expose_value=False, help="The language: en or zh (default: that of the locale)."
)
def main() -> None:
    """Loads, verifies and trains 4-bit models. What needs no torch is `qlora-doctor`."""
