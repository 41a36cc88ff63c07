"""A paper as one HTML file: no network, a policy that lets nothing but its own style and script run, readable on a phone.

Every word of the paper is escaped; nothing of it ever stands in the style, the script, or an address.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from qlora_doctor import __version__
from qlora_doctor.i18n import speaking, tr
from qlora_doctor.report.memory import gib
from qlora_doctor.report.paper import Bar, Curve, Entry, Paper, Remedy, Section, translated, visible, without_secrets

POINTS = 600  # of a curve; more than a screen shows
_WORDS = {"error": "error", "warning": "warning", "info": "note", "ok": "ok"}
_SIGNS = {"error": "✕", "warning": "!", "info": "i", "ok": "✓"}


def render(paper: Paper) -> str:
    """The page as text, in UTF-8, without secrets."""
    paper = translated(without_secrets(paper))
    style, script = _part("page.css"), _part("page.js")
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    return "\n".join([
        "<!doctype html>",
        f'<html lang="{"zh-CN" if speaking() else "en"}">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>qlora-doctor {_(paper.command)}: {_(paper.verdict)}</title>",
        f"<style>{style}</style>",
        "</head>",
        '<body>',
        *_body(paper),
        '<p id="said" role="status" class="away"></p>',
        f"<script>{script}</script>",
        "</body>",
        "</html>",
    ])  # fmt: skip


def _part(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _(text: str) -> str:
    """Words as HTML, between tags and in an attribute."""
    return escape(visible(text))


def _body(paper: Paper) -> Iterator[str]:
    yield f'<header class="{paper.tone}"><div class="wrap">'
    yield f'<p class="tool">qlora-doctor {_(paper.command)}</p>'
    yield f'<h1><span class="sign" aria-hidden="true">{_SIGNS[paper.tone]}</span> <bdi>{_(paper.verdict)}</bdi></h1>'
    yield f'<p class="about"><bdi>{_(paper.about)}</bdi></p></div></header>'
    yield '<main class="wrap">'
    if paper.entries:
        title = tr("What the log says") if paper.command == "diagnose" else tr("Findings")
        yield f'<section aria-labelledby="findings"><h2 id="findings">{_(title)}</h2>'
        yield _tally(paper.entries)
        for number, entry in enumerate(paper.entries):
            yield from _entry(entry, f"f{number}")
        yield "</section>"
    if paper.bar is not None:
        yield from _bar(paper.bar)
    for number, curve in enumerate(paper.curves):
        yield from _curve(curve, f"c{number}")
    for section in paper.sections:
        yield from _section(section)
    if paper.unsaid:
        rows = (("check", "outcome", "why"), *paper.unsaid)
        yield from _section(Section(tr("Checks that could not say"), rows=rows, kind="table", folded=True))
    yield "</main>"
    yield f'<footer class="wrap"><p>{_(tr("Made by qlora-doctor {version}. Nothing in this file is loaded from a network.", version=__version__))}</p></footer>'


def _tally(entries: Sequence[Entry]) -> str:
    parts = []
    for tone in ("error", "warning", "info"):
        number = sum(e.severity == tone for e in entries)
        if number:
            parts.append(f'<li class="badge {tone}">{number} {_WORDS[tone]}{"s" if number > 1 else ""}</li>')
    return f'<ul class="tally">{"".join(parts)}</ul>'


def _entry(entry: Entry, name: str) -> Iterator[str]:
    yield f'<article class="{entry.severity}" aria-labelledby="{name}">'
    yield f'<h3 id="{name}"><span class="badge {entry.severity}">{_(tr(_WORDS[entry.severity]))}</span> <bdi>{_(entry.code)}</bdi> <span class="name"><bdi>{_(entry.name)}</bdi></span></h3>'
    if entry.where:
        yield f'<p class="where"><bdi>{_(entry.where)}</bdi></p>'
    yield f"<p><bdi>{_(entry.text)}</bdi></p>"
    if entry.remedies:
        yield '<ul class="fixes">'
        yield from (_remedy(remedy) for remedy in entry.remedies)
        yield "</ul>"
    if entry.evidence:
        rows = "".join(f"<dt><bdi>{_(k)}</bdi></dt><dd><bdi>{_(v)}</bdi></dd>" for k, v in entry.evidence)
        yield f"<details><summary>{_(tr('Evidence'))}</summary><dl>{rows}</dl></details>"
    if entry.help:
        pages = "".join(f"<p><bdi>{_(page)}</bdi></p>" for page in entry.help.split("\n\n"))
        yield f"<details><summary>{_(tr('About this check'))}</summary>{pages}</details>"
    yield "</article>"


def _remedy(remedy: Remedy) -> str:
    word = remedy.applicability
    shade = next((key for key in ("safe", "unsafe") if word in (key, tr(key))), "other")
    kind = tr("by hand") if word in ("display-only", tr("display-only")) else word
    code = _code(remedy.copy) if remedy.copy else ""
    return f'<li><span class="kind {shade}">{_(kind)}</span> <bdi>{_(remedy.title)}</bdi>{code}</li>'


def _code(text: str) -> str:
    # The button is made by the script, so that without one no dead button stands there.
    words = escape(visible(text, newlines=True))
    return f'<div class="copy"><pre tabindex="0"><code>{words}</code></pre></div>'


def _section(section: Section) -> Iterator[str]:
    opening = f"<section><h2><bdi>{_(section.title)}</bdi></h2>"
    if section.folded:
        opening = f"<details><summary><h2><bdi>{_(section.title)}</bdi></h2></summary>"
    yield opening
    if section.kind == "table":
        yield from _table(section.rows, section.title)
    elif section.kind == "diff":
        yield '<pre class="diff" tabindex="0"><code>'
        yield "\n".join(_diff_line(line) for line in section.lines)
        yield "</code></pre>"
    elif section.kind == "commands":
        yield from map(_code, section.lines)
    elif section.folded:
        yield f'<pre tabindex="0"><code>{escape(visible(chr(10).join(section.lines), newlines=True))}</code></pre>'
    else:
        yield "<ul>" + "".join(f"<li><bdi>{_(line)}</bdi></li>" for line in section.lines) + "</ul>"
    yield "</details>" if section.folded else "</section>"


def _diff_line(line: str) -> str:
    kind = {"+": "ins", "-": "del"}.get(line[:1], "")
    if line.startswith(("+++", "---", "@@")):
        return f'<span class="head">{_(line)}</span>'
    return f"<{kind}>{_(line)}</{kind}>" if kind else f"<span>{_(line)}</span>"


def _table(rows: Sequence[Sequence[str]], title: str) -> Iterator[str]:
    head, *rest = rows
    yield f'<div class="scroll" tabindex="0" role="group" aria-label="{_(title)}"><table><thead><tr>'
    yield "".join(f'<th scope="col"><bdi>{_(cell)}</bdi></th>' for cell in head)
    yield "</tr></thead><tbody>"
    for first, *cells in rest:
        row = "".join(f"<td><bdi>{_(cell)}</bdi></td>" for cell in cells)
        yield f'<tr><th scope="row"><bdi>{_(first)}</bdi></th>{row}</tr>'
    yield "</tbody></table></div>"


def _bar(bar: Bar) -> Iterator[str]:
    whole = max(bar.room, bar.high, 1)
    said = f"{bar.title}: {gib(bar.expected)} expected, {gib(bar.low)} to {gib(bar.high)}"
    limit = f"; {bar.card} has {gib(bar.room)}: {bar.verdict}" if bar.room else ""
    yield f'<section aria-labelledby="memory"><h2 id="memory">{_(tr("GPU memory"))}</h2>'
    yield f'<p><bdi>{_(said + limit)}</bdi></p><p class="where"><bdi>{_(bar.settings)}</bdi></p>'
    yield f'<div class="scale" role="img" aria-label="{_(said + limit)}">'
    # Without a style attribute, which the policy forbids, an SVG's own numbers carry the widths.
    yield '<svg viewBox="0 0 1000 100" preserveAspectRatio="none" focusable="false">'
    yield f'<rect class="empty" x="0" y="20" width="{1000 * bar.room / whole:.2f}" height="60"/>'
    x = 0.0
    for index, (name, size) in enumerate(bar.parts):
        width = 1000 * size / whole
        yield f'<rect class="c{index % 9}" x="{x:.2f}" y="20" width="{width:.2f}" height="60"><title>{_(name)}: {gib(size)}</title></rect>'
        x += width
    least, most = 1000 * bar.low / whole, 1000 * bar.high / whole
    yield f'<path class="range" d="M{least:.2f} 88V98M{least:.2f} 93H{most:.2f}M{most:.2f} 88V98" vector-effect="non-scaling-stroke"/>'
    if bar.room:
        edge = min(1000 * bar.room / whole, 998)
        yield f'<path class="limit" d="M{edge:.2f} 0V86" vector-effect="non-scaling-stroke"/>'
    yield "</svg></div>"
    words = f'<span class="swatch line"></span> {_(tr("the limit of the card"))}' if bar.room else ""
    yield f'<p class="legend-note"><span class="swatch range"></span> {_(tr("low to high"))} {words}</p><ul class="legend">'
    for index, (name, size) in enumerate(bar.parts):
        yield f'<li><span class="swatch c{index % 9}"></span> <bdi>{_(name)}</bdi> <b>{gib(size)}</b></li>'
    if bar.room > bar.expected:
        yield f'<li><span class="swatch empty"></span> {_(tr("free"))} <b>{gib(bar.room - bar.expected)}</b></li>'
    yield "</ul></section>"


def _curve(curve: Curve, mark: str) -> Iterator[str]:
    lines = [("train", _finite(curve.train)), ("held", _finite(curve.held_out))]
    points = [point for _name, line in lines for point in line]
    lost = len(curve.train) + len(curve.held_out) - len(points)
    if not points:
        return
    left, right = min(x for x, _y in points), max(x for x, _y in points)
    low, high = min(y for _x, y in points), max(y for _x, y in points)
    wide, tall = (right - left) or 1.0, (high - low) or 1.0
    last = (lines[0][1] or lines[1][1])[-1]
    said = f"loss {last[1]:.4g} at step {last[0]:g}; lowest {low:.4g}, highest {high:.4g}"
    said += f"; {lost} values were not finite" if lost else ""
    yield f'<section aria-labelledby="{mark}"><h2 id="{mark}">{_(tr("Training loss"))}</h2>'
    yield f'<p class="where"><bdi>{_(curve.title)}</bdi></p><p>{_(said)}</p>'
    yield f'<div class="plot" role="img" aria-label="{_(said)}"><span class="y top">{high:.4g}</span><span class="y low">{low:.4g}</span>'
    yield '<svg viewBox="0 0 1000 300" preserveAspectRatio="none" focusable="false">'
    yield '<path class="grid" d="M0 0H1000M0 75H1000M0 150H1000M0 225H1000M0 300H1000" vector-effect="non-scaling-stroke"/>'
    for name, line in lines:
        if line:
            drawn = " ".join(
                f"{1000 * (x - left) / wide:.1f},{300 - 300 * (y - low) / tall:.1f}" for x, y in _thin(line)
            )
            # One point alone has no line; a short stroke shows it.
            drawn += " 1000,150" if len(line) == 1 else ""
            yield f'<polyline class="{name}" points="{drawn}" vector-effect="non-scaling-stroke"/>'
    yield f'</svg><span class="x">step {left:g}</span><span class="x end">{right:g}</span></div>'
    names = [("train", tr("training")), ("held", tr("held-out rows"))]
    shown = [
        f'<li><span class="swatch {n}"></span> {word}</li>'
        for (n, word), (_n, line) in zip(names, lines, strict=True)
        if line
    ]
    yield f'<ul class="legend">{"".join(shown)}</ul></section>'


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS of them; of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= POINTS:
        return list(points)
    size = math.ceil(2 * len(points) / POINTS)
    kept = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept
