"""One report before it is dressed: what `check`, `fix`, `plan` and `diagnose` have to say, as plain data.

SARIF, annotations, Markdown and HTML are made from a Paper alone. Text and JSON are not: they are older and must start fast.
All text in a Paper is hostile (a model's name, a line of a log); each dress escapes it in its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

from qlora_doctor import redaction
from qlora_doctor.i18n import said, speaking, tr
from qlora_doctor.source import Site

Tone = Literal["error", "warning", "info", "ok"]


@dataclass(frozen=True, slots=True)
class Replacement:
    """Text that takes the place of a stretch of a file. Lines and columns count from 1, in characters; the end is exclusive."""

    path: str
    start: tuple[int, int]
    end: tuple[int, int]
    text: str


@dataclass(frozen=True, slots=True)
class Remedy:
    """One proposed repair. `copy` is what a person would paste: a command, an export line, an argument."""

    title: str
    applicability: str
    copy: str = ""
    replacements: tuple[Replacement, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that was found. `where` is its place in words, `site` the same as data; `help` the page of its check.

    `template` is the message with its fields unfilled, the same for each finding of one kind.
    """

    code: str
    name: str
    severity: Tone
    text: str
    where: str = ""
    site: Site | None = None
    evidence: tuple[tuple[str, str], ...] = ()
    remedies: tuple[Remedy, ...] = ()
    help: str = ""
    template: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A titled part: lines of text, a `diff`, `commands` to copy, or a `table` whose first row is its head.

    `folded`: shown closed where a reader can open it. `versions`: its cells are names and versions, and `9.1.0.70` no address.
    """

    title: str
    lines: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    kind: Literal["text", "diff", "commands", "table"] = "text"
    folded: bool = False
    versions: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """What a run takes on a card, in bytes. `parts` add up to `expected`; `room` is 0 where no card was named."""

    title: str
    parts: tuple[tuple[str, int], ...]
    low: int
    expected: int
    high: int
    card: str = ""
    room: int = 0
    verdict: str = ""
    settings: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """The losses of a run by step. `title` names the file that they were read from."""

    title: str
    train: tuple[tuple[float, float], ...]
    held_out: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Paper:
    """A whole report. `command` is the one that made it, `about` what it judged, `verdict` the answer in one line."""

    command: str
    about: str
    verdict: str
    tone: Tone
    exit_code: int = 0
    entries: tuple[Entry, ...] = ()
    sections: tuple[Section, ...] = ()
    bar: Bar | None = None
    curves: tuple[Curve, ...] = ()
    unsaid: tuple[tuple[str, str, str], ...] = ()


def without_secrets(paper: Paper) -> Paper:
    """The paper without tokens, keys and passwords, in whatever text they stood."""
    found: Paper = _mapped(paper, redaction.secrets)
    return found


def for_strangers(paper: Paper) -> Paper:
    """The paper without what tells whose machine it is either: for a public issue."""
    texts: list[str] = []

    def note(text: str) -> str:
        texts.append(text)
        return text

    _mapped(paper, note)
    names = redaction.users_in("\n".join(texts))
    found: Paper = _mapped(paper, lambda text: redaction.private(text, names))
    sections = [
        _mapped(old, redaction.secrets) if old.versions else new
        for old, new in zip(paper.sections, found.sections, strict=True)
    ]
    return replace(found, sections=tuple(sections))


def translated(paper: Paper) -> Paper:
    """The paper in the reader's language. What is quoted or meant to be copied stays: evidence, diffs, commands, code names."""
    if not speaking():
        return paper
    found: Paper = _mapped(paper, said)
    entries = tuple(
        replace(new, code=old.code, name=old.name, evidence=old.evidence, remedies=_copied(new.remedies, old.remedies))
        for new, old in zip(found.entries, paper.entries, strict=True)
    )
    sections = tuple(
        new if old.kind in ("text", "table") else replace(old, title=new.title)
        for new, old in zip(found.sections, paper.sections, strict=True)
    )
    return replace(found, command=paper.command, entries=entries, sections=sections)


def _copied(new: Sequence[Remedy], old: Sequence[Remedy]) -> tuple[Remedy, ...]:
    return tuple(replace(n, copy=o.copy, applicability=tr(o.applicability)) for n, o in zip(new, old, strict=True))


# Words that a dress chooses a colour or a shape by, and no text.
_KEYS = frozenset({"tone", "severity", "kind", "applicability"})


def _mapped(value: Any, rule: Callable[[str], str]) -> Any:
    """`value` with `rule` applied to each text in it; a Site and a Replacement stay, as they must be exact."""
    if isinstance(value, str):
        return rule(value)
    if isinstance(value, tuple):
        return tuple(_mapped(one, rule) for one in value)
    if is_dataclass(value) and not isinstance(value, (type, Site, Replacement)):
        return replace(
            value, **{f.name: _mapped(getattr(value, f.name), rule) for f in fields(value) if f.name not in _KEYS}
        )
    return value


def evidence_rows(evidence: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The evidence as words, sorted by name."""
    return tuple((name, shown(value)) for name, value in sorted(evidence.items()))


def shown(value: Any, most: int = 400) -> str:
    """A JSON value as a person reads it, cut at `most` characters."""
    if isinstance(value, Mapping):
        text = ", ".join(f"{k}={shown(v)}" for k, v in value.items())
    elif isinstance(value, (list, tuple)):
        text = ", ".join(shown(v) for v in value)
    else:
        text = "none" if value is None else str(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def worst(tones: Iterable[Tone]) -> Tone:
    """The gravest of them; `ok` for none."""
    order: Sequence[Tone] = ("error", "warning", "info", "ok")
    return min(tones, key=order.index, default="ok")


def visible(text: str, newlines: bool = False) -> str:
    """`text` with what would reorder, hide or command made visible: control characters, bidi marks, surrogates."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(char, newlines) for char in text)


def _visible(char: str, newlines: bool) -> str:
    code = ord(char)
    if char in "\n\t":
        return char if newlines else " "
    if code < 0x20 or 0x7F <= code <= 0x9F or 0xD800 <= code <= 0xDFFF or code in (0xFFFE, 0xFFFF):
        return "\ufffd"
    # Left as they are, they would show a name in another order than it has (Trojan Source, CVE-2021-42574).
    if code in (0x061C, 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF) or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069:
        return f"[U+{code:04X}]"
    return char
