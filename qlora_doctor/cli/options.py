"""The options that commands share, and how their words are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from qlora_doctor.config import Config
    from qlora_doctor.examine import Question

F = TypeVar("F", bound=Callable[..., Any])


def complete_codes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The codes and names that a shell offers for the last word of a comma separated list."""
    from qlora_doctor.registry import installed_checks

    head, comma, last = incomplete.rpartition(",")
    words = [w for c in installed_checks().checks for w in (c.code, c.name)]
    return [head + comma + w for w in words if w.lower().startswith(last.lower())]


PATHS = click.argument("paths", nargs=-1, metavar="[PATHS]...", type=click.Path())
MODEL = click.option("--model", default="", metavar="ID_OR_DIR", help="Judge a 4-bit load of this model.")
PYTHON = click.option(
    "--python", default="", metavar="EXE", help="Judge the environment of this interpreter instead of our own."
)
FACTS = click.option(
    "--facts", "facts_file", default="", metavar="FILE", help="Judge an environment saved with `facts --save`."
)
SELECT = click.option(
    "--select",
    multiple=True,
    metavar="CODES",
    shell_complete=complete_codes,
    help="Only these checks: codes, prefixes (QD1) or names, separated by commas.",
)
IGNORE = click.option(
    "--ignore", multiple=True, metavar="CODES", shell_complete=complete_codes, help="All but these checks."
)
SSH = click.option(
    "--ssh",
    default="",
    metavar="HOST",
    help="Judge another machine; --python names its interpreter. Nothing is installed there.",
)
LIVE = click.option(
    "--live",
    is_flag=True,
    help="Also import the stack and try 4-bit arithmetic for real, each in a process of its own; up to two minutes.",
)
GPU = click.option("--gpu", default="", metavar="NAME", help="Judge the run for this card (RTX 4060, 2x a100-80gb).")
DRIVER = click.option("--driver", default="", metavar="VERSION", help="Judge the run for this NVIDIA driver (550.120).")
STYLES = ("text", "json", "sarif", "github", "markdown", "html")
OUTPUT = click.option(
    "--output",
    multiple=True,
    metavar="FILE",
    help="Also write the report to FILE: .html, .sarif, .md, .json or .txt, or FORMAT:FILE. May be given several times.",
)
OFFLINE = click.option("--offline", is_flag=True, help="Ask nothing of the network.")


def question_options(function: F) -> F:
    """The argument and the options that make a Question."""
    for option in (OFFLINE, IGNORE, SELECT, FACTS, PYTHON, MODEL, PATHS):
        function = option(function)
    return function


def question_of(
    paths: Sequence[str],
    model: str,
    python: str,
    facts_file: str,
    select: Sequence[str],
    ignore: Sequence[str],
    offline: bool,
    ssh: str = "",
    live: bool = False,
    gpu: str = "",
    driver: str = "",
) -> tuple[Question, Config]:
    """The question that the options ask, and the project's settings, which fill in what they leave out.

    Raises:
        UsageError: the settings hold what they cannot.
    """
    from qlora_doctor.config import nearest_config
    from qlora_doctor.examine import Question, home_of

    config = nearest_config(home_of(paths))
    question = Question(
        paths=tuple(paths),
        model=model,
        python=python,
        facts_file=facts_file,
        select=words_of(select) or config.select,
        ignore=words_of(ignore) or tuple(config.ignore),
        severities=config.severity,
        offline=offline,
        settings=config.path if config.select or config.ignore or config.severity else "",
        ssh=ssh,
        live=live,
        gpu=gpu,
        driver=driver,
    )
    return question, config


def format_option(styles: Sequence[str] = STYLES) -> Callable[[F], F]:
    """`--format`, with the styles that a command has."""
    return click.option("--format", "style", type=click.Choice(styles), default="text", help="How to print the report.")


def words_of(values: Sequence[str]) -> tuple[str, ...]:
    """`("QD1,QD203", "QD4")` as `("QD1", "QD203", "QD4")`."""
    return tuple(word.strip() for value in values for word in value.split(",") if word.strip())


def colour() -> bool:
    """Whether stdout is a terminal that wants colour (https://no-color.org)."""
    import os
    import sys

    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or sys.stdout.isatty()


def terminal_columns(most: int = 110) -> int | None:
    """The terminal's width, at most `most` for the reader's sake; None when the output is piped."""
    import shutil
    import sys

    return min(shutil.get_terminal_size().columns, most) if sys.stdout.isatty() else None


def tell_live(name: str, outcome: str) -> None:
    """One line for each live probe, on stderr: what is tried, then how it ended."""
    click.echo(f" {outcome}" if outcome else f"live: {name} ...", nl=bool(outcome), err=True)
