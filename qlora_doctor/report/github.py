"""A paper as workflow commands of GitHub Actions, which become annotations on the changed lines.

A step shows at most ten of each level; the rest is in the log.
"""

from __future__ import annotations

import os

from qlora_doctor.report.paper import Entry, Paper, visible, without_secrets

_LEVELS = {"error": "error", "warning": "warning", "info": "notice", "ok": "notice"}


def render(paper: Paper, folder: str = "") -> str:
    """One `::error file=...::message` a finding, then the verdict."""
    paper = without_secrets(paper)
    lines = [_annotation(entry, folder) for entry in paper.entries]
    title = _property(f"qlora-doctor {paper.command}")
    level = "notice" if paper.entries else _LEVELS[paper.tone]
    return "\n".join([*lines, f"::{level} title={title}::{_data(f'{paper.about}: {paper.verdict}')}"])


def _annotation(entry: Entry, folder: str) -> str:
    words = [f"title={_property(f'{entry.code} {entry.name}')}"]
    text, site = entry.text, entry.site
    if site is not None:
        path = site.path
        if os.path.isabs(path) and folder and not os.path.relpath(path, folder).startswith(".."):
            path = os.path.relpath(path, folder)
        words.insert(0, f"file={_property(path.replace(os.sep, '/').removeprefix('./'))}")
        if site.cell is not None:
            text = f"cell {site.cell + 1}, line {site.line}: {text}"
        elif site.line:
            words.insert(1, f"line={site.line}")
            words[2:2] = [f"endLine={site.end_line}"] if site.end_line > site.line else []
            # A column goes only with one line; on several GitHub refuses the annotation.
            words[2:2] = [f"col={site.column}"] if site.column and site.end_line <= site.line else []
    fixes = "".join(f"\nFix: {r.title} ({r.applicability})" for r in entry.remedies)
    return f"::{_LEVELS[entry.severity]} {','.join(words)}::{_data(text + fixes)}"


def _data(text: str) -> str:
    """A message, as the runner's own escaping writes it: a line of a log cannot start a command of its own."""
    return visible(text, newlines=True).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
