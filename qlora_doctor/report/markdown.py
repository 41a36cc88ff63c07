"""A paper as Markdown for a public issue: redacted, and never longer than an issue may be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from qlora_doctor import __version__
from qlora_doctor.i18n import said, tr
from qlora_doctor.report.memory import gib
from qlora_doctor.report.paper import Bar, Curve, Entry, Paper, Section, for_strangers, translated, visible

# GitHub refuses a body of more than 65,536 characters; counted in bytes here, which is never fewer.
MOST = 65_000
_ICONS = {"error": "❌", "warning": "⚠️", "info": "ℹ️", "ok": "✅"}
_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~@$!]|^>)")
_LINK = re.compile(r"(?i)\b(https?|ftp)(://)")


def render(paper: Paper) -> str:
    """The Markdown, without what tells whose machine it is. What does not fit is left out and counted."""
    parts = list(_parts(translated(for_strangers(paper))))
    notice = tr("secrets, user names, hosts and addresses are left out")
    foot = f"\n<sub>qlora-doctor {__version__}, `{paper.command}`; {notice}</sub>\n"
    kept, size, left = [], len(foot.encode()) + 200, 0
    for part in parts:
        size += len(part.encode("utf-8", "replace")) + 1
        if size > MOST:
            left += 1
            size -= len(part.encode("utf-8", "replace")) + 1
        else:
            kept.append(part)
    if left:
        kept.append("\n*" + tr("{left} more parts did not fit here.", left=left) + "*\n")
    return "\n".join([*kept, foot])


def _parts(paper: Paper) -> Iterator[str]:
    yield f"## {_ICONS[paper.tone]} qlora-doctor {paper.command}: {_text(paper.about)}\n\n**{_text(paper.verdict)}**\n"
    for entry in paper.entries:
        yield _entry(entry)
    if paper.unsaid:
        lines = [f"- {code} {tr(word)}: {_text(said(reason))}" for code, word, reason in paper.unsaid]
        yield _folded(tr("Checks that could not say"), "\n".join(lines))
    if paper.bar is not None:
        yield _bar(paper.bar)
    for curve in paper.curves:
        yield _curve(curve)
    for section in paper.sections:
        yield _section(section)


def _entry(entry: Entry) -> str:
    where = f" at {code(entry.where)}" if entry.where and entry.where != "environment" else ""
    lines = [f"### {_ICONS[entry.severity]} {_text(entry.code)} {_text(entry.name)}{where}\n", _text(entry.text), ""]
    for remedy in entry.remedies:
        way = _text(tr(remedy.applicability))
        lines.append("- " + tr("Fix ({way}): {title}", way=way, title=_text(remedy.title)))
        if remedy.copy:
            lines += ["", _fence(remedy.copy, "sh", "  "), ""]
    if entry.evidence:
        rows = [tuple(tr("evidence | value").split(" | ")), *entry.evidence]
        lines += ["", _folded(tr("Evidence"), _table(rows))]
    return "\n".join(lines)


def _section(section: Section) -> str:
    if section.kind == "table":
        body = _table(section.rows)
    elif section.kind == "diff":
        body = _fence("\n".join(section.lines), "diff")
    elif section.kind == "commands" or section.folded:
        body = _fence("\n".join(section.lines), "sh" if section.kind == "commands" else "")
    else:
        body = "\n".join(f"- {_text(line)}" for line in section.lines)
    if section.folded:
        return _folded(section.title, body)
    return f"### {_text(section.title)}\n\n{body}\n"


def _bar(bar: Bar) -> str:
    rows = [tuple(tr("part | takes").split(" | ")), *((name, gib(size)) for name, size in bar.parts)]
    takes = tr("{expected} ({low} to {high})", expected=gib(bar.expected), low=gib(bar.low), high=gib(bar.high))
    rows.append((tr("expected"), takes))
    if bar.room:
        rows.append((bar.card, f"{gib(bar.room)}: {bar.verdict}"))
    title = "### " + tr("Memory of {model}", model=_text(bar.title)) + "\n"
    return f"{title}\n{_text(bar.settings)}\n\n{_table(rows)}\n"


def _curve(curve: Curve) -> str:
    steps = curve.train or curve.held_out
    first, last, low = steps[0], steps[-1], min(steps, key=lambda p: p[1])
    words = said(
        f"{len(steps)} points: {first[1]:.4g} at step {first[0]:g}, lowest {low[1]:.4g} at step {low[0]:g}, "
        f"{last[1]:.4g} at step {last[0]:g}"
    )
    return f"### {tr('Training loss')} ({code(curve.title)})\n\n{words}\n"


def _table(rows: Iterable[Sequence[str]]) -> str:
    head, *rest = [[_text(cell) or " " for cell in row] for row in rows]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rest)])


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{_text(title)}</summary>\n\n{body}\n\n</details>\n"


def _text(text: str) -> str:
    """Plain words: nothing in them is markup, a mention, a reference to an issue, or a link."""
    words = visible(text).replace("&", "&amp;").replace("<", "&lt;")
    words = _SPECIAL.sub(r"\\\1", words)
    return _LINK.sub("\\1\u200b\\2", words).replace("\\@", "@\u200b").replace("\\#", "#\u200b")


def code(text: str) -> str:
    """Words in a code span; its fence is longer than any run of backticks in them."""
    words = visible(text)
    ticks = "`" * (max((len(run) for run in re.findall("`+", words)), default=0) + 1)
    space = " " if words.startswith("`") or words.endswith("`") else ""
    return f"{ticks}{space}{words}{space}{ticks}"


def _fence(text: str, language: str = "", lead: str = "") -> str:
    words = visible(text, newlines=True)
    ticks = "`" * max(3, max((len(run) for run in re.findall("`+", words)), default=0) + 1)
    return "\n".join(lead + line for line in [f"{ticks}{language}", *words.split("\n"), ticks])
