"""A memory plan as an SVG picture: one bar of its parts, the card's edge, and a legend."""

from __future__ import annotations

from html import escape

from qlora_doctor.memory.fit import Verdict
from qlora_doctor.memory.formula import Breakdown
from qlora_doctor.report.memory import gib

WIDTH, HEIGHT, LEFT, TOP, BAR = 760, 46, 20, 56, 720
# Told apart also where red and green look alike (Okabe and Ito).
COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#f0e442", "#e69f00", "#d55e00", "#cc79a7", "#999999")


def picture(name: str, b: Breakdown, room: int, card: str, word: Verdict | None) -> str:
    """The SVG as text."""
    parts = [(i.name, i.bytes) for i in sorted(b.items, key=lambda i: -i.bytes)][:7]
    rest = b.allocated - sum(size for _, size in parts)
    parts += [("others", rest)] if rest else []
    parts.append(("driver and allocator", b.overhead[1]))
    scale = BAR / max(room, b.high)
    rows = -(-len(parts) // 2)
    title = f"{name}: {gib(b.expected)} expected, {gib(b.low)} to {gib(b.high)}" + (f"; {word}" if word else "")
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {TOP + HEIGHT + 34 + 22 * rows}" font-family="sans-serif" font-size="14">',
        f"<title>{escape(title)}</title>",
        f'<text x="{LEFT}" y="30" font-size="16">{escape(title)}</text>',
    ]
    x = float(LEFT)
    for index, (part, size) in enumerate(parts):
        colour = COLOURS[index % len(COLOURS)]
        lines.append(
            f'<rect x="{x:.1f}" y="{TOP}" width="{size * scale:.1f}" height="{HEIGHT}" fill="{colour}">'
            f"<title>{escape(part)}: {gib(size)}</title></rect>"
        )
        at, down = LEFT + 370 * (index % 2), TOP + HEIGHT + 40 + 22 * (index // 2)
        lines.append(f'<rect x="{at}" y="{down - 11}" width="12" height="12" fill="{colour}"/>')
        lines.append(f'<text x="{at + 18}" y="{down}">{escape(part)} {gib(size)}</text>')
        x += size * scale
    if room:
        edge = LEFT + room * scale
        lines.append(f'<path d="M{edge:.1f} {TOP - 8}v{HEIGHT + 16}" stroke="#000" stroke-width="2"/>')
        lines.append(f'<text x="{edge:.1f}" y="{TOP - 10}" text-anchor="end">{escape(card)}: {gib(room)}</text>')
    return "\n".join([*lines, "</svg>"])
