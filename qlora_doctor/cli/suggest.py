"""What was meant by a word that is no command, or by an option that stands before one."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping

import click

from qlora_doctor.report.shell import command_line

CORE = ("chat", "convert", "data", "demo", "generate", "merge", "train", "verify")
"""The commands that only qlora-core has."""


def for_word(word: str, commands: Mapping[str, str]) -> str:
    """The message for a word in the place of a command: the nearest one, or the command that takes such a word."""
    near = difflib.get_close_matches(word, commands, 1)
    if word in CORE:
        return f"no such command '{word}' here; that needs torch, and is: qlora-core {word}"
    # Quoted by hand: repr would double each backslash of a Windows path.
    if near and not os.path.exists(word):
        return f"no such command '{word}'; did you mean '{near[0]}'?"
    meant = _meant(word)
    if meant is not None:
        what, words = meant
        return f"no such command '{word}'; {what}: {command_line(words)}"
    return f"no such command '{word}'; the commands are {', '.join(sorted(commands))}"


def _meant(word: str) -> tuple[str, list[str]] | None:
    if os.path.exists(word):
        from qlora_doctor.gather.surroundings import is_log

        if os.path.isfile(word) and is_log(os.path.basename(word)):
            return "to see what that log says", ["qlora-doctor", "diagnose", word]
        return "to check that path", ["qlora-doctor", "check", word]
    if re.fullmatch(r"QD\d{1,3}", word, re.IGNORECASE) or _is_check(word):
        return "to see that check", ["qlora-doctor", "explain", word]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", word, re.ASCII) and not word.startswith("."):
        return "to check that model", ["qlora-doctor", "check", "--model", word]
    if re.search(r"\.(py|ipynb|ya?ml|json|toml|log)\Z", word):
        return "there is no such file either; name one that is there", ["qlora-doctor", "check", "FILE"]
    return None


def _is_check(word: str) -> bool:
    from qlora_doctor.errors import QloraDoctorError
    from qlora_doctor.registry import installed_checks

    if "-" not in word:
        return False
    try:
        installed_checks().find(word)
    except QloraDoctorError:
        return False
    return True


def for_option(error: click.NoSuchOption, group: click.Group, ctx: click.Context) -> click.UsageError:
    """The message for an option before the command: which commands take it; the error as it is where none does."""
    takers = []
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if command is not None and any(error.option_name in p.opts for p in command.params):
            takers.append(name)
    if not takers:
        return error
    first = "check" if "check" in takers else takers[0]
    others = [t for t in takers if t != first]
    also = f" ({', '.join(others)} take it too)" if others else ""
    return click.UsageError(
        f"{error.option_name} comes after a command: qlora-doctor {first} {error.option_name} ...{also}", ctx
    )
