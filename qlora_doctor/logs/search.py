"""Finds the signatures that a few words mean: a message, a part of one, an id, or words of an explanation."""

from __future__ import annotations

import re

from qlora_doctor.logs.signatures import Signature, installed_signatures
from qlora_doctor.logs.words import COMMON


def search(text: str) -> tuple[Signature, ...]:
    """The signatures whose pattern matches `text`; else those that hold its words, the fitting ones first."""
    known = installed_signatures().all
    whole = [s for s in known if s.matches(text) or text in (s.id, *(c.id for c in s.causes))]
    if whole:
        return tuple(whole)
    if re.fullmatch(r"[A-Za-z0-9]+(-[a-z0-9]+)*", text):
        # One plain word, or one in the form of a check's name, is a code or name that was misspelt.
        return ()
    words = {w for w in re.findall(r"\w+", text.lower()) if w not in COMMON and len(w) > 2}
    if not words:
        return ()
    scored = [(_score(words, signature), signature) for signature in known]
    best = max((score for score, _ in scored), default=0.0)
    if best < max(1.0, len(words) * 0.6):
        return ()
    return tuple(s for score, s in sorted(scored, key=lambda pair: -pair[0]) if score == best)


def _score(words: set[str], signature: Signature) -> float:
    """How many of the words the messages hold, and, for less, the explanations."""
    messages = " ".join(signature.patterns).replace("\\", "").lower()
    pages = " ".join(f"{c.id} {c.says} {c.fix}" for c in signature.causes).lower()
    return sum(1.0 if word in messages else 0.5 if word in pages else 0.0 for word in words)
