"""A setup in words."""

from __future__ import annotations

import textwrap

from qlora_doctor.i18n import finding_text, said
from qlora_doctor.install.choose import Choice, size_of
from qlora_doctor.install.commands import pip_command, uv_command
from qlora_doctor.repair.environment import quote_sh
from qlora_doctor.repair.pip import without_secrets
from qlora_doctor.repair.sizes import shown
from qlora_doctor.report.columns import table
from qlora_doctor.setup.make import MARKER, Made
from qlora_doctor.setup.prepare import Prepared


def render(prepared: Prepared) -> str:
    """What would be installed and why, how large it is, and whether the index agreed."""
    choice = prepared.choice
    lines = [f"the newest set for {choice.machine.text}:", ""]
    rows = table([[p.name, p.version] for p in choice.pins])
    width = max(map(len, rows))
    for row, pin in zip(rows, choice.pins, strict=True):
        first, *more = textwrap.wrap(pin.why, 70)
        lines += [f"  {row:<{width}}  {first}", *(" " * (width + 4) + line for line in more)]
    lines += ["", *(f"note: {note}" for note in (*choice.notes, *prepared.proof.notes))]
    for finding in prepared.judged:
        lines.append(f"{finding.severity}: {finding.code} {finding_text(finding)}")
    lines.append(_proof(prepared))
    lines.append(f"to download: {download(prepared)}")
    lines += [f"{what} is taken from {where}" for what, where in sorted(prepared.sources.said.items())]
    lines += ["", "by hand, in an environment of your own:"]
    for name, command in (
        ("uv", uv_command(choice, "", prepared.sources)),
        ("pip", pip_command(choice, "python", prepared.sources, placeholder=not prepared.proof.done)),
    ):
        lines.append(f"  {name}: {without_secrets(' '.join(quote_sh(word) for word in command))}")
    return "\n".join(map(said, lines))


def _proof(prepared: Prepared) -> str:
    if prepared.proof.done:
        return f"proved: a dry run of {prepared.proof.tool} gives exactly this set"
    return f"not proved: {prepared.proof.failure}"


def download(prepared: Prepared) -> str:
    """The download in words: exact where each server said its size, else rough and marked as such."""
    sizes = prepared.proof.sizes
    known = [s for s in sizes.values() if s is not None]
    if sizes and len(known) == len(sizes):
        return shown(sum(known))
    if known and "torch" in sizes and sizes["torch"] is not None:
        return f"{shown(sum(known))} and {len(sizes) - len(known)} small ones of unknown size"
    return f"about {shown(estimate(prepared.choice))} (by the table of this doctor, not asked of the index)"


def estimate(choice: Choice) -> int:
    """The rough download of a set, by the table."""
    found = [p.size or 0 for p in choice.pins]
    return sum(found) + (size_of("others") or 0)


def render_made(made: Made) -> str:
    """What was made, and whether it is proved."""
    lines = [f"{made.folder}: {len(made.versions)} packages, torch {made.versions.get('torch', '')}"]
    lines.append(f"held by {made.constraints}")
    if made.left is None:
        lines.append(
            f"not tried (--no-live); prove it with: qlora-doctor check --live --python {quote_sh(made.python)}"
        )
    elif made.left:
        lines.append(f"NOT finished ({MARKER} says so): the live proof found")
        lines += [f"  {f.severity} {f.code} {finding_text(f)}" for f in made.left]
    else:
        lines.append("proved: everything was imported, and 4-bit arithmetic, a LoRA step and the optimizer were tried")
        lines.append(f"use it: {quote_sh(made.python)} train.py")
    return "\n".join(map(said, lines))
