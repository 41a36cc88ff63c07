"""A paper as a piece of HTML for a notebook's output: no script, no page, colours that fit a light and a dark front end.

Front ends that strip the style (an untrusted notebook, a code host's preview) still show every word in its order. What
the paper says is hostile and is escaped, as in `html`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape

from qlora_doctor.i18n import said, tr
from qlora_doctor.report.memory import gib
from qlora_doctor.report.paper import Bar, Entry, Paper, Remedy, Section, translated, visible, without_secrets

_WORDS = {"error": "error", "warning": "warning", "info": "note", "ok": "ok"}
_PARTS = ("#0072b2", "#56b4e9", "#009e73", "#b8860b", "#e69f00", "#d55e00", "#cc79a7", "#777777", "#999999")
# Middle tones, so that they are read on white and on black; the text itself has the front end's own colour.
_STYLE = """
.qd{border-left:4px solid #888;padding:2px 0 2px 12px;margin:4px 0;max-width:60em;line-height:1.45}
.qd.error{border-color:#d9534f}.qd.warning{border-color:#d08a00}.qd.info{border-color:#2a8fc0}.qd.ok{border-color:#3c9a50}
.qd p,.qd ul,.qd pre{margin:3px 0}.qd ul{padding-left:1.3em}.qd details{margin:2px 0}.qd summary{cursor:pointer;opacity:.8}
.qd .head{font-size:1.1em;font-weight:600}.qd .about,.qd .where{opacity:.75}
.qd .item{margin:10px 0}.qd .tag{font-weight:600}.qd .tag.error{color:#d9534f}.qd .tag.warning{color:#b87800}
.qd .tag.info{color:#2a8fc0}.qd .tag.ok{color:#3c9a50}
.qd pre{padding:4px 8px;background:rgba(128,128,128,.15);white-space:pre-wrap;overflow-wrap:anywhere}
.qd table{margin:3px 0}.qd td,.qd th{text-align:left;padding:1px 12px 1px 0;vertical-align:top;overflow-wrap:anywhere}
.qd .bar{display:flex;height:20px;background:rgba(128,128,128,.25);position:relative;overflow:hidden}
.qd .limit{position:absolute;top:0;bottom:0;width:2px;background:currentColor}
.qd .dot{display:inline-block;width:.8em;height:.8em;margin-right:.4em}
"""


def fragment(paper: Paper) -> str:
    """The HTML as text."""
    # Notebooks are saved and passed on.
    paper = translated(without_secrets(paper))
    return f'<style>{_STYLE}</style>\n<div class="qd {paper.tone}">\n{chr(10).join(_body(paper))}\n</div>'


def words(text: str) -> str:
    """Words as HTML, kept apart from the direction of what stands around them."""
    return f"<bdi>{escape(visible(text))}</bdi>"


def _body(paper: Paper) -> Iterator[str]:
    yield f'<p class="head">{words(paper.verdict)}</p><p class="about">{words(f"qlora-doctor {paper.command}: {paper.about}")}</p>'
    first = [s for s in paper.sections if not s.folded and s.kind == "text"]
    for section in first:
        yield from _section(section)
    for entry in paper.entries:
        yield from _entry(entry)
    if paper.bar is not None:
        yield from _bar(paper.bar)
    for section in paper.sections:
        if section not in first:
            yield f"<details><summary>{words(section.title)}</summary>{''.join(_content(section))}</details>"
    if paper.unsaid:
        rows = "".join(
            f"<li>{words(code)} {words(outcome)}: {words(reason)}</li>" for code, outcome, reason in paper.unsaid
        )
        yield f"<details><summary>{tr('{count} could not say', count=len(paper.unsaid))}</summary><ul>{rows}</ul></details>"


def _entry(entry: Entry) -> Iterator[str]:
    yield f'<div class="item"><p><span class="tag {entry.severity}">{tr(_WORDS[entry.severity])}</span>'
    yield f"<b>{words(entry.code)}</b> {words(entry.name)}</p>"
    if entry.where:
        yield f'<p class="where">{words(entry.where)}</p>'
    yield f"<p>{words(entry.text)}</p>"
    if entry.remedies:
        yield f"<ul>{''.join(_remedy(r) for r in entry.remedies)}</ul>"
    if entry.evidence:
        rows = "".join(f"<tr><th>{words(k)}</th><td>{words(v)}</td></tr>" for k, v in entry.evidence)
        yield f"<details><summary>{tr('evidence')}</summary><table>{rows}</table></details>"
    yield "</div>"


def _remedy(remedy: Remedy) -> str:
    kind = {"safe": "safe", "unsafe": "unsafe"}.get(remedy.applicability, "by hand")
    title = tr("fix ({way}): {title}", way=tr(kind), title=words(remedy.title))
    # In a notebook %pip installs for the kernel that runs, whatever `python` on PATH is.
    copy = re.sub(r"^python -m pip ", "%pip ", remedy.copy)
    code = _code(copy) if copy else ""
    return f"<li>{title}{code}</li>"


def _code(text: str) -> str:
    return f"<pre><code>{escape(visible(text, newlines=True))}</code></pre>"


def _section(section: Section) -> Iterator[str]:
    yield f"<p><b>{words(section.title)}</b></p>"
    yield from _content(section)


def _content(section: Section) -> Iterator[str]:
    if section.kind == "table":
        yield _table(section.rows)
    elif section.kind == "text" and not section.folded:
        yield f"<ul>{''.join(f'<li>{words(line)}</li>' for line in section.lines)}</ul>"
    else:
        yield _code("\n".join(section.lines))


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    lines = ["<tr>" + "".join(f"<th>{words(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{words(cell)}</td>" for cell in row) + "</tr>" for row in rest]
    return f"<table>{''.join(lines)}</table>"


def _bar(bar: Bar) -> Iterator[str]:
    whole = max(bar.room, bar.high, 1)
    takes = said(f"{gib(bar.expected)} expected, {gib(bar.low)} to {gib(bar.high)}")
    room = said(f"; {bar.card} has {gib(bar.room)}: {bar.verdict}") if bar.room else ""
    yield f'<p><b>{tr("GPU memory")}</b></p><p>{words(f"{bar.title}: {takes}{room}")}</p><div class="bar">'
    for index, (name, size) in enumerate(bar.parts):
        colour, share = _PARTS[index % len(_PARTS)], 100 * size / whole
        yield f'<span title="{escape(visible(name))}: {gib(size)}" style="width:{share:.2f}%;background:{colour}"></span>'
    if bar.room:
        yield f'<span class="limit" style="left:{min(100 * bar.room / whole, 99.5):.2f}%"></span>'
    yield "</div><ul>"
    for index, (name, size) in enumerate(bar.parts):
        colour = _PARTS[index % len(_PARTS)]
        yield f'<li><span class="dot" style="background:{colour}"></span>{words(name)} {gib(size)}</li>'
    yield "</ul>"
