"""GPUs by name, for a machine that is not here: `RTX 4060`, `a100-80gb`, `8gb`."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from qlora_doctor.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Words that tell one product line from another; a name with one of them is not meant by a word without it.
_VARIANTS = ("laptop", "max-q", "mobile", "oem", "sff", "d", "v2", "a", "super", "ti", "nvl", "pcie", "server", "s")


# What a desktop and a browser hold on the card that draws them.
DESKTOP = int(0.3 * 2**30)
_OTHERS = re.compile(r"\b(amd|radeon|instinct|mi\d{2,3}\w*|rx ?\d{4}|intel|arc|gaudi\w*|apple|m[1-9])\b")


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU. `memory` in bytes, as the driver reports it within a percent; `bandwidth` in GB/s and `tflops` (dense 16-bit) where known.

    `note` says what was taken where the name left a choice. `taken` are bytes that something else holds: DESKTOP on a
    GeForce card, which usually draws the desktop too, and on a card of which only the size is known.
    """

    name: str
    memory: int
    capability: str = ""
    bandwidth: float | None = None
    tflops: float | None = None
    released: int = 0
    source: str = ""
    verified: bool = False
    note: str = ""
    usual: bool = True
    taken: int = 0

    @property
    def room(self) -> int:
        """The bytes that a run can have: the memory without what is taken."""
        return max(0, self.memory - self.taken)

    @property
    def bfloat16(self) -> bool:
        """Whether it has bfloat16 units: capability 8.0 and newer; True where the capability is not known."""
        return not self.capability or int(self.capability.partition(".")[0]) >= 8


@cache
def cards() -> tuple[Card, ...]:
    """Every card of cards.toml, one for each memory size that was sold."""
    found = []
    for row in tomllib.loads((Path(__file__).parent / "cards.toml").read_text(encoding="utf-8"))["card"]:
        sizes, speeds = row["memory_gib"], row.get("bandwidth", [])
        for index, size in enumerate(sizes):
            speed = speeds[index] if len(speeds) == len(sizes) else min(speeds, default=None)
            name = row["name"] if len(sizes) == 1 else f"{row['name']} {size:g} GB"
            found.append(
                Card(
                    name,
                    int(size * 2**30),
                    row["capability"],
                    speed,
                    row.get("tflops"),
                    row.get("released", 0),
                    row["source"],
                    row["verified"],
                    usual=size == row.get("usual_gib", size),
                    taken=DESKTOP if "GeForce" in row["name"] else 0,
                )
            )
    return tuple(found)


def find_card(word: str) -> Card:
    """The card that a word names: its name or a part of it (`rtx 4060`, `a100-80gb`), or a size (`8gb`).

    Raises:
        UsageError: no card, or no size, is meant by the word.
    """
    size = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:gb|gib|g)\s*", word.lower())
    if size:
        gib = float(size.group(1))
        if not 1 <= gib <= 2048:
            raise UsageError(f"--gpu {word}: expected 1 GB to 2048 GB")
        note = "no particular card; 0.3 GiB are counted for a desktop (--used 0 for none)"
        return Card(f"a card with {gib:g} GB", int(gib * 2**30), note=note, taken=DESKTOP)
    wanted = _words(word)
    if not wanted:
        raise UsageError("--gpu is empty; name a card (RTX 4060), a size (8gb), or all")
    matches = [c for c in cards() if wanted <= _words(c.name)]
    if not matches:
        if _OTHERS.search(word.lower()):
            raise UsageError(
                f"--gpu {word}: only NVIDIA's cards are known by name here; for another maker's give its size (24gb)"
            )
        import difflib

        names = {c.name.lower().removeprefix("nvidia ").removeprefix("geforce "): c.name for c in cards()}
        near = [names[n] for n in difflib.get_close_matches(word.lower(), list(names), 3, 0.5)]
        raise UsageError(
            f"--gpu {word}: no such card is known here" + (f"; near it are {', '.join(near)}" if near else "")
        )
    # Of several, the plainest name; of one name's sizes, the usual one where the table says which, else the smallest.
    matches.sort(
        key=lambda c: (len((_words(c.name) - wanted) & set(_VARIANTS)), len(_words(c.name)), not c.usual, c.memory)
    )
    first = matches[0]
    same = sorted({m.memory for m in matches if _plain(m.name) == _plain(first.name)})
    if len(same) > 1:
        others = ", ".join(f"{m / 2**30:g} GB" for m in same if m != first.memory)
        note = f"also sold with {others}"
        return replace(first, note=note)
    return first


def local_card() -> Card | None:
    """The first NVIDIA GPU of this machine with what is free on it, or None where there is none."""
    from qlora_doctor.facts import Unknown
    from qlora_doctor.gather.interpreters import here

    gpus = here(["gpus"]).state("gpus")
    for gpu in () if isinstance(gpus, Unknown) else gpus:
        if gpu.memory_total:
            free = gpu.memory_total if gpu.memory_free is None else gpu.memory_free
            held = gpu.memory_total - free
            note = f"in this machine, {held / 2**30:.1f} GiB of it taken"
            return Card(gpu.name, gpu.memory_total, gpu.capability or "", note=note, taken=held)
    return None


def _plain(name: str) -> str:
    return re.sub(r"[ -]?\d+ ?GB", "", name)


def _words(text: str) -> frozenset[str]:
    low = re.sub(r"(\d+)\s*gi?b\b", r"\1gb", text.lower().replace("max-q", "maxq"))
    low = re.sub(r"([a-z])-(?=\d)|(?<=\d)-([a-z])|-", lambda m: (m.group(1) or "") + " " + (m.group(2) or ""), low)
    low = re.sub(r"\b(rtx|gtx)(\d)", r"\1 \2", low)
    low = re.sub(r"\b(\d{4})(ti|super)\b", r"\1 \2", low)
    return frozenset(w for w in re.findall(r"[a-z0-9.]+", low) if w not in ("nvidia", "geforce", "tesla", "gpu"))
