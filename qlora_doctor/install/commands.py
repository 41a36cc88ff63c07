"""A set as one command of pip or uv, and as a constraints file."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_doctor.install.choose import Choice, Pin
from qlora_doctor.install.sources import Sources
from qlora_doctor.tables import load

UNKNOWN_INDEX = "<PyTorch's wheel index>"
"""Stands in a command for the index of torch builds where none is configured; its Get Started page names it."""


def requirements(choice: Choice, uv: bool = False) -> list[str]:
    """The requirement of each package, torch first; uv is told of the build by an option of its own."""
    lines = [p.requirement for p in choice.pins]
    return [lines[0].partition("+")[0], *lines[1:]] if uv and lines else lines


def index_options(choice: Choice, sources: Sources, uv: bool = False) -> list[str]:
    """The options that lead pip or uv to the torch build, and to a mirror that only the other tool is told of."""
    build = choice.build
    needed = build is not None and not build.plain and bool(build.label)
    label = build.label if build is not None else ""
    options: list[str] = []
    if uv:
        if sources.pip_index and not sources.uv_index:
            options += ["--default-index", sources.pip_index]
        # What pip is told of beside its index, uv does not read.
        for url in sources.pip_extra if not sources.uv_extra else ():
            options += ["--index", url]
        for path in sources.pip_links:
            options += ["--find-links", path]
        if needed and sources.torch_root:
            options += ["--index", f"{sources.torch_root}/{label}", "--index-strategy", "unsafe-best-match"]
        elif needed:
            options += [f"--torch-backend={label}"]
        return options
    if sources.uv_index and not sources.pip_index:
        options += ["--index-url", sources.uv_index]
    if needed and sources.torch_root:
        options += ["--extra-index-url", f"{sources.torch_root}/{label}"]
    return options


def pip_command(
    choice: Choice, python: str, sources: Sources, constraints: str = "", placeholder: bool = True
) -> list[str]:
    """The one pip command of a set. `placeholder`: say where an index has to be filled in that nothing configures."""
    options = index_options(choice, sources)
    build = choice.build
    if placeholder and build is not None and not build.plain and build.label and not sources.torch_root:
        options += ["--extra-index-url", f"{UNKNOWN_INDEX}/{build.label}"]
    held = ["-c", constraints] if constraints else []
    return [python, "-m", "pip", "install", *held, *options, *requirements(choice)]


def uv_command(choice: Choice, python: str, sources: Sources, constraints: str = "") -> list[str]:
    """The one uv command of a set."""
    held = ["-c", constraints] if constraints else []
    local = bool(sources.torch_root)
    where = ["--python", python] if python else []
    options = index_options(choice, sources, uv=True)
    return ["uv", "pip", "install", *where, *held, *options, *requirements(choice, uv=not local)]


def constraints_text(pins: Sequence[Pin], why: str) -> str:
    """A constraints file: each package to the version, with the reason behind it."""
    head = [
        f"# Written by qlora-doctor (tables of {load('install.toml')['as_of']}): {why}",
        "# Keep to it when you install more: python -m pip install -c <this file> ...",
    ]
    width = max((len(p.requirement) for p in pins), default=0)
    lines = [f"{p.requirement:<{width}}  # {one_line(p.why)}".rstrip(" #") for p in pins]
    return "\n".join([*head, *lines, ""])


def one_line(text: str) -> str:
    return " ".join(text.split())
