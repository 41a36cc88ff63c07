"""The pictures of the documents: what a terminal shows, the memory bar, a loss curve, and a report as one HTML file.

Needs rich (the extra `docs`) and a system with pseudo-terminals. Nothing is typed in: every picture is a command's output,
or a log of a real run that lies beside it.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

COLUMNS = 100
# Rich's own format fetches fonts from another host; a picture must not.
_FRAME = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, monospace; font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
_PLANTED = ("train.py", "--facts", "facts.json")
_TERMINALS = {
    "check": ("check", *_PLANTED, "--select", "QD104,QD121,QD101"),
    "fix": ("fix", *_PLANTED, "--select", "QD101,QD121"),
    "explain": ("explain", "QD104"),
    "diagnose": ("diagnose", "train.log", "--facts", "facts.json"),
}
_PLAN = ("plan", "--model", "llava-hf/llava-1.5-7b-hf", "--gpu", "RTX 3060", "--format", "svg")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 360, 64, 20, 48, 44


def pictures(root: Path) -> Mapping[str, str]:
    """Every picture by its path under docs/. `root` is the folder of the project."""
    planted = root / "examples" / "planted"
    made = {f"pictures/{name}.svg": terminal(name, words, planted) for name, words in _TERMINALS.items()}
    made["pictures/memory.svg"] = output(_PLAN, planted)
    made["pictures/loss.svg"] = curve(root / "docs" / "assets" / "smollm2-train-log.jsonl")
    made["pictures/report.html"] = output(("check", *_PLANTED, "--format", "html"), planted)
    return made


def output(words: Sequence[str], folder: Path) -> str:
    """What the command prints when it is piped."""
    command = [sys.executable, "-m", "qlora_doctor", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", env=_environment(), check=False)
    if done.returncode > 1:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
    return done.stdout


def terminal(name: str, words: Sequence[str], folder: Path) -> str:
    """What a terminal of COLUMNS columns shows of a command, as SVG."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(_shown(words, folder)), highlight=False)
    title = f"qlora-doctor {' '.join(words)}"
    svg = console.export_svg(title=title, code_format=_FRAME, unique_id=f"terminal-{name}")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def _shown(words: Sequence[str], folder: Path) -> str:
    """What the command writes to a terminal, colours included."""
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "qlora_doctor", *words]
    with subprocess.Popen(command, cwd=folder, stdout=theirs, stderr=subprocess.PIPE, env=_environment()) as process:
        os.close(theirs)
        text = b"".join(_read(ours))
        os.close(ours)
        said = b"" if process.stderr is None else process.stderr.read()
    if process.returncode > 1:
        raise RuntimeError(f"{' '.join(words)}: {said.decode()}")
    return text.decode().replace("\r\n", "\n").rstrip("\n")


def _environment() -> dict[str, str]:
    """A terminal in English with colours, whatever this one is."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    return {**kept, "QLORA_DOCTOR_LANG": "en", "COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}


def _read(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            block = os.read(descriptor, 65536)
        except OSError:  # Linux says end of file of a terminal so
            return
        if not block:
            return
        yield block


def curve(log: Path) -> str:
    """The losses of a training log (train_log.jsonl of `qlora-core train`) as SVG."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    lines = {
        "training": ("#0072b2", [(row["step"], row["loss"]) for row in rows if "loss" in row]),
        "held-out rows": ("#d55e00", [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]),
    }
    every = [point for _, points in lines.values() for point in points]
    last, high = max(step for step, _ in every), max(loss for _, loss in every)

    def place(step: float, loss: float) -> str:
        x = LEFT + step / last * (WIDTH - LEFT - RIGHT)
        return f"{x:.1f},{HEIGHT - BOTTOM - loss / high * (HEIGHT - TOP - BOTTOM):.1f}"

    title = f"SmolLM2-135M in NF4 on a CPU: loss {every[0][1]:.2f} at the first step, {lines['training'][1][-1][1]:.2f} at step {last}"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="14">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="24" font-size="16">{escape(title)}</text>',
    ]
    for part in range(5):
        x, y = place(0, high * part / 4).split(",")
        out.append(f'<path d="M{x} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y}" text-anchor="end">{high * part / 4:.2f}</text>')
    for number, (name, (colour, points)) in enumerate(lines.items()):
        drawn = " ".join(place(*point) for point in points)
        out.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out.append(
            f'<text x="{WIDTH - RIGHT}" y="{TOP + 18 + 20 * number}" text-anchor="end" fill="{colour}">{name}</text>'
        )
    out.append(f'<text x="{LEFT}" y="{HEIGHT - 14}">step 0</text>')
    out.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 14}" text-anchor="end">{last}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
