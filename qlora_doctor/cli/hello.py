"""What `qlora-doctor` alone says: what it is, what lies in this folder, and the next command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qlora_doctor import __version__
from qlora_doctor.gather.surroundings import Kind, Thing, look
from qlora_doctor.i18n import said
from qlora_doctor.report.shell import command_line

TITLES: dict[Kind, str] = {
    "script": "a training script",
    "notebook": "a notebook",
    "settings": "settings of a run",
    "data": "data",
    "adapter": "an adapter",
    "checkpoint": "a checkpoint",
    "model": "a model",
    "log": "a log",
}
"""In the order in which they are listed."""
ABOUT = (
    "checks a 4-bit fine-tuning run before it starts (environment, model, arguments, data, GPU), says what is wrong and "
    "why, and repairs it. Nothing is changed unless you say so."
)
MORE = (
    ("Every command:", "qlora-doctor --help"),
    ("Its examples:", "qlora-doctor COMMAND --help"),
    ("In a notebook:", "%load_ext qlora_doctor"),
)
SHOWN = 3
WIDTH = 100


def screen(folder: str, columns: int | None = None) -> str:
    """The first screen, for a folder. `columns` cuts the lines; None does not."""
    from qlora_doctor.i18n import tr
    from qlora_doctor.report.columns import cut, table, wrap
    from qlora_doctor.report.text import sanitized

    things = look(folder)
    about = f"qlora-doctor {__version__}: {tr(ABOUT)}"
    lines = [*wrap(about, min(columns or WIDTH, WIDTH)), ""]
    rows = [["  " + thing.path, title] for thing, title in _listed(things)]
    lines += [tr("In this folder:"), *table(rows), ""] if rows else []
    commands = [["  " + command_line(words), tr(why)] for words, why in _next(things)]
    lines += [tr("Next:"), *table(commands), ""]
    lines += table([[tr(title), line] for title, line in MORE])
    return sanitized("\n".join(cut(said(line), columns) for line in lines))


def _listed(things: Sequence[Thing]) -> Iterator[tuple[Thing, str]]:
    from qlora_doctor.i18n import tr

    for kind, title in TITLES.items():
        found = [t for t in things if t.kind == kind]
        for index, thing in enumerate(found[:SHOWN]):
            more = len(found) - SHOWN if index == SHOWN - 1 else 0
            said = tr(title)
            yield thing, tr("{what} (and {count} more)", what=said, count=more) if more > 0 else said


def _next(things: Sequence[Thing]) -> list[tuple[list[str], str]]:
    """The commands that suit what is there, the first the likeliest: a log that is newer than its script comes first."""
    newest: dict[Kind, Thing] = {}
    for thing in things:
        newest.setdefault(thing.kind, thing)
    run = next((newest[k] for k in ("script", "notebook", "settings") if k in newest), None)
    log = newest.get("log")
    offers: list[tuple[list[str], str]] = []
    if run is not None:
        offers.append((["qlora-doctor", "check", run.path], "what is wrong, before it starts"))
        offers.append((["qlora-doctor", "fix", run.path], "how to repair it; changes nothing without --apply"))
    if log is not None:
        offer = (["qlora-doctor", "diagnose", log.path], "why a run failed")
        offers.insert(0 if run is None or log.changed > run.changed else len(offers), offer)
    if "data" in newest:
        offers.append((["qlora-doctor", "check", newest["data"].path], "whether the rows can be trained on"))
    for kind in ("adapter", "checkpoint"):
        if kind in newest:
            offers.append((["qlora-doctor", "check", newest[kind].path], "what it needs"))
    if "model" in newest:
        offers.append((["qlora-doctor", "check", "--model", newest["model"].path], "whether it loads in 4 bit"))
    if run is None and "model" not in newest:
        offers.append((["qlora-doctor", "check"], "whether this environment can train at all"))
        offers.append((["qlora-doctor", "plan", "--gpu", "8gb"], "which models a card of 8 GB can train"))
    if not things:
        offers.append((["qlora-doctor", "setup", "my-env"], "a new environment that fits this machine"))
    return offers[:6]
