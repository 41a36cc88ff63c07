"""`--output`: reports written to files beside what stdout shows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from qlora_doctor.errors import UsageError

if TYPE_CHECKING:
    from qlora_doctor.report.paper import Paper

# What can be made of a paper; text and JSON have makers of their own.
PAPERS = ("sarif", "github", "markdown", "html")

SUFFIXES = {
    ".txt": "text",
    ".json": "json",
    ".sarif": "sarif",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".csv": "csv",
    ".svg": "svg",
}


@dataclass(frozen=True, slots=True)
class Output:
    """One file to write, and how."""

    style: str
    path: str


def outputs_of(words: Sequence[str], styles: Sequence[str], judged: Sequence[str] = ()) -> tuple[Output, ...]:
    """What `--output` asks for, told before anything else is done. `judged` are files that must not be written over.

    Raises:
        UsageError: no known format, no such folder, one file twice, or a file that is being judged.
    """
    found = [_output(word, styles) for word in words]
    read = {os.path.realpath(path) for path in judged if path and path != "-"}
    seen: set[str] = set()
    for one in found:
        real = os.path.realpath(one.path)
        if real in read:
            raise UsageError(f"--output {one.path}: this file is what is judged; write the report to another one")
        if real in seen:
            raise UsageError(f"--output {one.path}: the file is named twice")
        seen.add(real)
    return tuple(found)


def _output(word: str, styles: Sequence[str]) -> Output:
    head, colon, rest = word.partition(":")
    style, path = (head, rest) if colon and head in styles else ("", word)
    lower = path.lower()
    if not style:
        style = "sarif" if lower.endswith(".sarif.json") else SUFFIXES.get(os.path.splitext(lower)[1], "")
    if style not in styles or not path:
        raise UsageError(
            f"--output {word}: its ending names no format of this command; write FORMAT:FILE, with one of {', '.join(styles)}"
        )
    if path == "-":
        raise UsageError(f"--output {word}: for the terminal use --format {style}")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise UsageError(f"--output {word}: there is no folder {folder}")
    if os.path.isdir(path):
        raise UsageError(f"--output {word}: that is a folder; name a file in it")
    return Output(style, path)


def show(
    style: str, outputs: Sequence[Output], makers: Mapping[str, Callable[[], str]], paper: Callable[[str], Paper]
) -> None:
    """Writes the files, then prints `style`. `makers` make text by style; the others are made of `paper(style)`.

    Raises:
        UsageError: a file cannot be written, or this answer cannot be shown in that style.
    """

    def dress(wanted: str) -> str:
        if wanted in makers:
            return makers[wanted]()
        if wanted not in PAPERS:
            raise UsageError(f"this answer cannot be shown as {wanted}; take one of {', '.join([*makers, *PAPERS])}")
        return dressed(paper(wanted), wanted)

    write(outputs, dress)
    click.echo(dress(style).removesuffix("\n"))


def dressed(paper: Paper, style: str) -> str:
    """A paper in one of PAPERS. Each module is imported only when it is asked for."""
    if style == "html":
        from qlora_doctor.report import html

        return html.render(paper)
    if style == "markdown":
        from qlora_doctor.report import markdown

        return markdown.render(paper)
    if style == "sarif":
        from qlora_doctor.report import sarif

        return sarif.render(paper, os.getcwd())
    from qlora_doctor.report import github

    return github.render(paper, os.getcwd())


def write(outputs: Sequence[Output], dress: Callable[[str], str]) -> None:
    """Writes each report whole or not at all; a file that is there is replaced. Raises UsageError."""
    for one in outputs:
        text = dress(one.style)
        data = (text if text.endswith("\n") else text + "\n").encode("utf-8", "replace")
        try:
            _write(one.path, data)
        except OSError as error:
            raise UsageError(f"--output {one.path}: cannot be written: {error.strerror or error}") from None


def _write(path: str, data: bytes) -> None:
    import tempfile

    real = os.path.realpath(path)
    if os.path.exists(real) and not os.path.isfile(real):
        # A pipe or a device cannot be replaced.
        with open(real, "wb") as file:
            file.write(data)
        return
    mode = os.stat(real).st_mode & 0o777 if os.path.exists(real) else 0o666 & ~_umask()
    handle, name = tempfile.mkstemp(dir=os.path.dirname(real), prefix=f".{os.path.basename(real)[:40]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, mode)
        os.replace(name, real)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
