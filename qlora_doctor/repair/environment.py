"""EnvVar fixes as files that the user sources. Start-up files of a shell are never touched."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from qlora_doctor.fix import EnvVar
from qlora_doctor.repair import files
from qlora_doctor.repair.folders import OWN
from qlora_doctor.repair.plan import FileChange

_LINE = re.compile(r"^(?:export ([A-Za-z_]\w*)=(.*)|unset ([A-Za-z_]\w*))$")


def changes(project: str, fixes: Sequence[EnvVar]) -> list[FileChange]:
    """The three files with the variables that are set there already and those of `fixes`."""
    if not fixes:
        return []
    folder = os.path.join(project, OWN)
    old = files.read(os.path.join(folder, "env.sh"))
    variables = {**read_sh((old or b"").decode("utf-8", "replace")), **{f.name: f.value for f in fixes}}
    texts = {"env.sh": sh(variables), "env.ps1": ps1(variables), "env.fish": fish(variables)}
    found = []
    for name, text in texts.items():
        path = os.path.join(folder, name)
        before = files.read(path)
        if before != text.encode():
            found.append(FileChange(path, before, text.encode()))
    return found


def source_lines(project: str) -> list[tuple[str, str]]:
    """The line that takes the file in, for each shell."""
    folder = os.path.join(project, OWN)
    return [
        ("bash, zsh", f"source {quote_sh(os.path.join(folder, 'env.sh'))}"),
        ("PowerShell", f". {quote_ps1(os.path.join(folder, 'env.ps1'))}"),
        ("fish", f"source {quote_fish(os.path.join(folder, 'env.fish'))}"),
    ]


HEAD = "# Written by qlora-doctor fix; take it back with qlora-doctor undo. Source it before the run."


def sh(variables: Mapping[str, str | None]) -> str:
    """The variables for bash and zsh."""
    lines = [f"unset {n}" if v is None else f"export {n}={quote_sh(v)}" for n, v in sorted(variables.items())]
    return "\n".join([HEAD, *lines, ""])


def ps1(variables: Mapping[str, str | None]) -> str:
    """The variables for PowerShell."""
    lines = [
        f"Remove-Item Env:{n} -ErrorAction SilentlyContinue" if v is None else f"$env:{n} = {quote_ps1(v)}"
        for n, v in sorted(variables.items())
    ]
    return "\n".join([HEAD, *lines, ""])


def fish(variables: Mapping[str, str | None]) -> str:
    """The variables for fish."""
    lines = [f"set -e {n}" if v is None else f"set -gx {n} {quote_fish(v)}" for n, v in sorted(variables.items())]
    return "\n".join([HEAD, *lines, ""])


def read_sh(text: str) -> dict[str, str | None]:
    """The variables of a file that `sh` wrote."""
    import shlex

    found: dict[str, str | None] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match and match[3]:
            found[match[3]] = None
        elif match:
            found[match[1]] = "".join(shlex.split(match[2]))
    return found


def quote_sh(word: str) -> str:
    """A word for bash and zsh."""
    import shlex

    return shlex.quote(word)


def quote_ps1(word: str) -> str:
    """A word for PowerShell."""
    return "'" + word.replace("'", "''") + "'"


def quote_fish(word: str) -> str:
    """A word for fish."""
    return "'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'"


def quote_cmd(word: str) -> str:
    """A word for cmd.exe; in double quotes `<`, `>`, `|` and `&` are plain characters."""
    return word if re.fullmatch(r"[\w.:\\/=+-]+", word) else '"' + word.replace('"', '""').replace("%", "%%") + '"'
